"""What the losses and predictions of a task are, for the words beside its numbers."""

from dataclasses import dataclass

from lora_lightning.backbones.adapter_config import ADAPTER_CONFIG, read_json_file
from lora_lightning.backbones.adapter_labels import LABELS
from lora_lightning.diagnosis.finished_runs import FinishedRun
from lora_lightning.metrics.label_space import REGRESSION

LANGUAGE_MODEL = "CAUSAL_LM"  # the task type in an adapter's file


@dataclass(frozen=True)
class TaskNumbers:
    """What the numbers of a task are.

    Attributes:
        of_tokens: Whether predictions are of tokens, of which there are too many to compare all.
        of_errors: Whether the loss of an example is a squared error, which has no unit, and there are no divergences.
    """

    of_tokens: bool = False
    of_errors: bool = False

    @property
    def loss(self) -> str:
        """What the loss is."""
        return "squared error" if self.of_errors else "loss"

    @property
    def unit(self) -> str:
        """The unit of the loss and of scores of one backward pass, after a space; empty if they have none."""
        return "" if self.of_errors else " nats"

    def heading(self, name: str) -> str:
        """A heading of numbers in the unit of the loss.

        Args:
            name: What they are.
        """
        return f"{name},{self.unit}" if self.unit else name


OF_LABELS = TaskNumbers()


def task_numbers(run: FinishedRun) -> TaskNumbers:
    """Finds out what the numbers of a run are.

    Args:
        run: With an exported adapter.

    Returns:
        What the files of its adapter say.
    """
    folder = run.record.adapter or run.record.folder
    config, labels = (
        read_json_file(folder / name) if (folder / name).is_file() else {} for name in (ADAPTER_CONFIG, LABELS)
    )
    return TaskNumbers(config.get("task_type") == LANGUAGE_MODEL, labels.get("problem_type") == REGRESSION)
