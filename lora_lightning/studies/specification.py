"""What a study is: what it varies, over which seeds, and what decides."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lora_lightning.statistics.claims import Claim

SEED_OPTION, RATE_OPTION = "seed_everything", "model.optimization.learning_rate"
# The columns of `results.csv` that are no settings; settings of these names get longer ones there.
FACTS_OF_TRIALS = ("trial", "configuration", "seed", "is_tested", "state", "error")
COSTS = (
    "trainable_parameters",
    "peak_memory_bytes",
    "seconds_per_step",
    "wall_seconds",
    *(f"inference_ms_{kind}_batch_{size}" for kind in ("adapter", "merged") for size in (1, 32)),
)


@dataclass(frozen=True)
class Range:
    """Numbers from which a search draws.

    Attributes:
        low: The smallest.
        high: The largest; an integer if `low` is one, and then only integers are drawn.
        log: Whether the logarithm is drawn evenly; `low` is above 0 then.
        step: Difference between neighbors; `None` for 1 between integers, and for any number between floats.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class Axis:
    """What is varied.

    Attributes:
        name: An option of `fit` by its dotted name, such as `"model.lora.r"`, or any name for named values.
        values: Value by label; each is the value of the option, or for named values a mapping of options. Empty if the
            axis has a range.
        is_named: Whether each value is a mapping of options.
        range: What a search draws from, instead of values.
    """

    name: str
    values: Mapping[str, Any]
    is_named: bool
    range: Range | None = None

    @property
    def short_name(self) -> str:
        """The last part of the name, such as `"r"`."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class LearningRates:
    """From which learning rates a study chooses, on validation and with seeds of its own.

    Attributes:
        values: The learning rates.
        seeds: Each is tried with each of them.
        shared: Whether all configurations get the rate that is best on average; otherwise each gets its own.
        extend: How many further rates are tried, one after the other, for a configuration whose best rate is the
            smallest or the largest one.
    """

    values: tuple[float, ...]
    seeds: tuple[int, ...]
    shared: bool = False
    extend: int = 0


@dataclass(frozen=True)
class Search:
    """How a study looks for a good configuration, on validation alone.

    Attributes:
        trials: How many configurations are tried; `None` as many as the budget allows.
        seeds: Each configuration is trained with each of them, one after the other.
        sampler: `"tpe"`, `"random"` or `"grid"`.
        pruning: Whether a run ends if its metric is worse than the median of the others at the same step.
    """

    trials: int | None
    seeds: tuple[int, ...]
    sampler: str = "tpe"
    pruning: bool = False


@dataclass(frozen=True)
class Study:
    """A study as its YAML describes it.

    Attributes:
        name: Of the study and its folder.
        base: Configs of `fit`: files, or one that is part of the YAML; later ones override earlier ones.
        options: Options of all runs, which override those of the base.
        axes: What is varied; all combinations are trained.
        derived: Expressions by option, such as `{"model.lora.lora_alpha": "2 * r"}`.
        seeds: Each configuration is trained with each of them.
        objective: The metric that decides, such as `"accuracy"` or `"test/accuracy"`.
        margin: The largest loss of quality that does not matter; `None` for the metric's usual one.
        direction: `"higher"` or `"lower"`; `None` if the metric's name says it.
        reference: What every configuration is compared with: its name, or a label for each axis.
        costs: Measurements of which less is better; the first decides what is cheapest.
        sequence: Names of configurations in the order of a fixed sequence of tests; `None` to derive it from ranks.
        full_fine_tuning: The name of the configuration without LoRA, if there is one.
        learning_rate: From which learning rates to choose before the configurations are compared; `None` to choose
            none.
        search: How to look for one configuration that is compared with the reference; `None` to compare all of them.
        storage: URL of a database that has the trials; `None` for a journal file in the study's folder.
        budget: Hours of training, of all workers together, after which no further run is started; `None` without limit.
        claims: Claims of others that the study checks.
        truncations: By configuration: ranks to which its tested adapters are truncated, to be tested once more.
        further_seeds: By configuration: seeds beyond those of all configurations.
    """

    name: str
    base: tuple[Path | Mapping[str, Any], ...]
    axes: tuple[Axis, ...]
    seeds: tuple[int, ...]
    objective: str
    reference: str | Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    derived: Mapping[str, str] = field(default_factory=dict)
    margin: float | None = None
    direction: str | None = None
    costs: tuple[str, ...] = COSTS[:1]
    sequence: tuple[str, ...] | None = None
    full_fine_tuning: str | None = None
    learning_rate: LearningRates | None = None
    search: Search | None = None
    budget: float | None = None
    storage: str | None = None
    claims: tuple[Claim, ...] = ()
    truncations: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    further_seeds: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def seeds_of(self, configuration: str) -> tuple[int, ...]:
        """The seeds with which a configuration is trained and tested."""
        return (*self.seeds, *self.further_seeds.get(configuration, ()))


def label_of(value: object) -> str:
    """Writes a value as in YAML, on one line unless a text in it has line breaks."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")
