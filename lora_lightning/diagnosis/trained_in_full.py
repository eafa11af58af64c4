"""What trains beside the adapters, such as a head or biases: updates that no similarity of adapters is about."""

from dataclasses import dataclass
from math import isnan, nan

from lora_lightning.backbones.adapter_weights import read_adapter_weights
from lora_lightning.diagnosis.finished_runs import FinishedRun
from lora_lightning.errors import few_names
from lora_lightning.lora.parameter_names import adapted_module_name, is_factor

BIAS = "bias"


@dataclass(frozen=True)
class TrainedInFull:
    """The trained numbers that are no factors of adapters.

    Attributes:
        modules: Those that train in full, in the order of the file.
        numbers: How many they are.
        share: Of all trained numbers, in [0, 1]; NaN if that number is not known.
        rank: Of the adapters beside them.
        biases: How many further modules train their biases alone.
    """

    modules: tuple[str, ...]
    numbers: int
    share: float
    rank: int
    biases: int = 0

    @property
    def note(self) -> str:
        """What the comparison of adapters leaves out; empty if adapters alone train."""
        if not self.numbers:
            return ""
        share = "" if isnan(self.share) else f", {self.share:.0%} of all that train at r = {self.rank}"
        verb = "trains" if len(self.modules) == 1 else "train"
        parts = [f"{few_names(self.modules)} {verb} in full"] if self.modules else []
        parts += [f"the biases of {self.biases} modules train"] if self.biases else []
        return (
            f"Beside the adapters, {' and '.join(parts)} ({self.numbers:,} numbers{share}); similarities of adapters, "
            "and the verdicts on them, say nothing about these."
        )


def trained_in_full(run: FinishedRun) -> TrainedInFull:
    """Finds what trained in full in the file of an adapter, which holds all that trained.

    Args:
        run: A run with an exported adapter.

    Returns:
        Modules and numbers.

    Raises:
        CheckpointError: If the file is missing or damaged.
    """
    weights = read_adapter_weights(run.record.adapter or run.record.folder)
    others = {name: weight.numel() for name, weight in weights.items() if not is_factor(name)}
    trained = run.record.trainable_parameters
    numbers = sum(others.values())
    parameters: dict[str, list[str]] = {}
    for name in others:
        parameters.setdefault(adapted_module_name(name), []).append(name.rpartition(".")[2])
    modules = [module for module, names in parameters.items() if names != [BIAS]]
    biases = len(parameters) - len(modules)
    return TrainedInFull(tuple(modules), numbers, numbers / trained if trained else nan, run.rank, biases)
