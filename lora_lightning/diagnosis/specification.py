"""What a diagnosis is: two precisions, over ranks and seeds, and what is measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_lightning.studies.specification import Study

PRECISION_AXIS, RANK_AXIS = "precision", "model.lora.r"
QUANTIZATION_OPTION = "model.quantization"
FEWEST_MODULES = 4  # that are quantized singly, to call one of them sensitive


@dataclass(frozen=True)
class Measuring:
    """How much of the validation split is measured.

    Attributes:
        rows: Examples, evenly spread over the split, for everything that runs a model.
        singles: How many modules are quantized singly, the most sensitive ones by the score of one backward pass.
        prompts: How many texts a language model continues greedily.
        new_tokens: Length of these completions.
    """

    rows: int = 256
    singles: int = 20
    prompts: int = 16
    new_tokens: int = 32


@dataclass(frozen=True)
class SkipProof:
    """How the list of modules to leave unquantized is proven by training.

    Attributes:
        more_bytes: What the list may add to the memory of the quantized model's weights, as a share of it.
        bought_back: The share of the loss by quantization that has to be bought back.
        random_lists: How many random lists of the same bytes it is compared with.
        seeds: Seeds of these runs, among those of the compared rank.
    """

    more_bytes: float = 0.15
    bought_back: float = 0.5
    random_lists: int = 3
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Diagnosis:
    """A diagnosis as its YAML describes it.

    Attributes:
        study: Its training runs: precision x rank x seed.
        full: Name of the precision that is not quantized.
        quantized: Name of the precision that is.
        ranks: All ranks, ascending.
        rank: The rank at which the two precisions are compared closely.
        seeds: Seeds that both precisions have at that rank.
        other_seeds: Further seeds of the quantized precision at that rank, so that its adapters are independent of the
            other precision's.
        measuring: How much is measured.
        proof: How the list of modules to skip is proven; `None` to train nothing for it.
        require: Names of verdicts that have to be reached.
    """

    study: Study
    full: str
    quantized: str
    ranks: tuple[int, ...]
    rank: int
    seeds: tuple[int, ...]
    other_seeds: tuple[int, ...] = ()
    measuring: Measuring = field(default_factory=Measuring)
    proof: SkipProof | None = None
    require: tuple[str, ...] = ()

    def configuration(self, precision: str, rank: int) -> str:
        """The name of a configuration of the study."""
        return configuration_name(precision, rank)

    @property
    def precisions(self) -> tuple[str, str]:
        """Both precisions, the one that is not quantized first."""
        return self.full, self.quantized

    def options_of(self, precision: str) -> Mapping[str, Any]:
        """The options of `fit` that make a precision."""
        axis = next(axis for axis in self.study.axes if axis.name == PRECISION_AXIS)
        options: Mapping[str, Any] = axis.values[precision]
        return options


def configuration_name(precision: str, rank: int) -> str:
    """The name that the study gives a precision at a rank."""
    return f"{precision}, r = {rank}"
