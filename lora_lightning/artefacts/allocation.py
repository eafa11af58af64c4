"""What `allocate` chose: ranks by layer, as JSON and as a partial config of `fit`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.rank_patterns import most_common, shortest_patterns

# What decides which layers get an adapter, its scaling, how many parameters a rank takes, and who chooses the ranks.
# A base config with other values would train other adapters than those that were allocated.
DECIDING = (
    "target_modules",
    "target_parameters",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "eva_config",
    "adalora",
)


@dataclass(frozen=True)
class LayerRank:
    """One layer's share of the budget.

    Attributes:
        name: Full dotted name in the pretrained model.
        rank: Its rank.
        alpha: Its lora_alpha, which keeps its scaling.
        parameters: Trainable adapter parameters that depend on the rank.
        kept: Share of its measured squared singular values that the rank keeps, in [0, 1].
    """

    name: str
    rank: int
    alpha: float
    parameters: int
    kept: float


@dataclass(frozen=True)
class Allocation:
    """Ranks of all layers under one budget.

    Attributes:
        output: The partial config.
        measured_by: What decided, in words.
        shuffled: The seed with which the ranks were shuffled over layers of the same shape; `None` if they were not.
        budget: Trainable adapter parameters that were allowed.
        parameters: Trainable adapter parameters that there are; at most the budget.
        layers: In the model's order, or, of a run, in that of the names, numbers as such.
        kept: Share of all measured squared singular values that the ranks keep, in [0, 1].
        uniform: The largest rank for all layers within the budget, not in layers that have fewer.
        uniform_kept: What it keeps.
        lora: The settings to which the ranks belong.
        lorafa: Whether LoRA-FA leaves A frozen; `None` for a task without `model.optimization`.
    """

    output: Path
    measured_by: str
    shuffled: int | None
    budget: int
    parameters: int
    layers: tuple[LayerRank, ...]
    kept: float
    uniform: int
    uniform_kept: float
    lora: LoraSettings
    lorafa: bool | None

    @property
    def picture(self) -> Path:
        """The picture beside the config."""
        return self.output.with_suffix(".png")

    @property
    def ranks(self) -> dict[str, int]:
        """By layer."""
        return {layer.name: layer.rank for layer in self.layers}

    def settings(self) -> dict[str, Any]:
        """The options of `model.lora` that ranks and scalings depend on; they replace those of the base config."""
        alphas = {layer.name: layer.alpha for layer in self.layers}
        r, alpha = most_common(self.ranks), most_common(alphas)
        return {
            "r": r,
            "lora_alpha": alpha,
            "rank_pattern": shortest_patterns(self.ranks, r) or None,
            "alpha_pattern": shortest_patterns(alphas, alpha) or None,
            **{name: getattr(self.lora, name) for name in DECIDING},
        }

    def config(self) -> str:
        """The partial config, YAML."""
        shuffled = "" if self.shuffled is None else f", shuffled over layers of the same shape (seed {self.shuffled})"
        lines = [
            f"Ranks by {self.measured_by}{shuffled}.",
            f"Trainable adapter parameters: {self.parameters:,} of a budget of {self.budget:,}.",
            "Every layer keeps the scaling that it had where it was measured.",
            "What ranks and scalings depend on is set too, so that another base config trains the same adapters.",
            f"lora-lightning fit --config BASE.yaml --config {self.output.name}",
        ]
        comment = "".join(f"# {line}\n" for line in lines)
        model: dict[str, Any] = {"lora": self.settings()}
        if self.lorafa is not None:
            model["optimization"] = {"lorafa": self.lorafa}
        options: str = yaml.safe_dump({"model": model}, sort_keys=False)
        return comment + options

    def as_json(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        found: dict[str, Any] = asdict(self)
        del found["lora"]  # what counts of it is in the settings
        return {**found, "output": str(self.output), "picture": str(self.picture), "settings": self.settings()}
