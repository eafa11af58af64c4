"""The scores of each label after a validation or a test, for files and tables."""

import csv
import io
from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics.label_scores import LabelScore, label_scores
from lora_lightning.runs.files import write_text_atomically
from lora_lightning.tasks import SequenceClassificationTask


class LabelResults(Callback):
    """Keeps precision, recall, F1 and support of each label of the splits that were scored last.

    Attributes:
        scores: By split; empty for tasks without labels, and for regression.
    """

    def __init__(self) -> None:
        self.scores: dict[str, list[LabelScore]] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores the validation splits."""
        if not trainer.sanity_checking:
            self._score(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores the test splits."""
        del trainer
        self._score(pl_module)

    def _score(self, task: LightningModule) -> None:
        """Computes the scores, before the strategy takes the processes apart."""
        if not isinstance(task, SequenceClassificationTask):
            return
        counts = {split: task.split_metrics(split).label_counts() for split in task.scored_splits}
        self.scores = {
            split: label_scores(task.labels.names, found) for split, found in counts.items() if found is not None
        }


def scores_of_last_splits(trainer: Trainer) -> dict[str, list[LabelScore]]:
    """The scores that the trainer's `LabelResults` keeps.

    Args:
        trainer: After a validation or a test.

    Returns:
        By split; empty where there are no labels.
    """
    kept = (found.scores for found in trainer.callbacks if isinstance(found, LabelResults))  # type: ignore[attr-defined]
    return next(kept, {})


def write_label_scores(folder: Path, split: str, scores: list[LabelScore]) -> Path:
    """Writes `<split>_labels.csv`.

    Args:
        folder: The run folder.
        split: Such as `test`.
        scores: Of all labels, in the order of their indices.

    Returns:
        The file; cells are empty where a score is not defined.

    Raises:
        ConfigurationError: If the file cannot be written.
    """
    path, stream = folder / f"{split}_labels.csv", io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(LabelScore._fields)
    writer.writerows(scores)
    try:
        write_text_atomically(path, stream.getvalue())
    except OSError as error:
        msg = f"the scores of labels cannot be written to {path} ({error.strerror}); make the run folder writable."
        raise ConfigurationError(msg) from error
    return path
