"""The scores of each label and the calibration after a validation or a test: files, tables and pictures."""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning import Callback, LightningModule, Trainer

from lora_lightning.errors import ConfigurationError
from lora_lightning.figures.calibration import calibration_figure
from lora_lightning.figures.labels import label_scores_figure
from lora_lightning.figures.png import png_bytes
from lora_lightning.loggers import boards_of
from lora_lightning.metrics.calibration import CalibrationBins
from lora_lightning.metrics.label_scores import LabelScore, label_scores
from lora_lightning.runs.files import atomic_file, write_text_atomically
from lora_lightning.tasks import SequenceClassificationTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class SplitResults:
    """What is known of the labels of one split.

    Attributes:
        scores: Of each label, in the order of their indices.
        calibration: `None` if a text has several labels.
    """

    scores: list[LabelScore]
    calibration: CalibrationBins | None

    def figures(self, split: str) -> "dict[str, Figure]":
        """Draws both, by the name of the picture.

        Args:
            split: The split's name.
        """
        drawn = {"labels": label_scores_figure(self.scores, split)}
        return (
            drawn if self.calibration is None else drawn | {"calibration": calibration_figure(self.calibration, split)}
        )


class LabelResults(Callback):
    """Keeps the results of the splits that were scored last, and draws those of a test.

    Attributes:
        results: By split; empty for tasks without labels, and for regression.
    """

    def __init__(self) -> None:
        self.results: dict[str, SplitResults] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores the validation splits."""
        if not trainer.sanity_checking:
            self._score(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores the test splits, and draws them for the loggers."""
        self._score(pl_module)
        boards = [board for board in boards_of(trainer) if board.shows_pictures] if self.results else []
        for split, found in self.results.items() if boards else ():
            for name, figure in found.figures(split).items():
                for board in boards:
                    board.add_figure(f"{split}/{name}", figure, trainer.global_step)

    def _score(self, task: LightningModule) -> None:
        """Computes the results, before the strategy takes the processes apart."""
        if not isinstance(task, SequenceClassificationTask):
            return
        self.results = {}
        for split in task.scored_splits:
            metrics = task.split_metrics(split)
            if (counts := metrics.label_counts()) is not None:
                self.results[split] = SplitResults(label_scores(task.labels.names, counts), metrics.calibration())


def results_of_last_splits(trainer: Trainer) -> dict[str, SplitResults]:
    """What the trainer's `LabelResults` keeps.

    Args:
        trainer: After a validation or a test.

    Returns:
        By split; empty where there are no labels.
    """
    kept = (found.results for found in trainer.callbacks if isinstance(found, LabelResults))  # type: ignore[attr-defined]
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
    with _writable(path):
        write_text_atomically(path, stream.getvalue())
    return path


def write_pictures(folder: Path, split: str, results: SplitResults) -> list[Path]:
    """Writes `<split>_labels.png`, and `<split>_calibration.png` if a text has a single label.

    Args:
        folder: The run folder.
        split: Such as `test`.
        results: Of the split.

    Returns:
        The files.

    Raises:
        ConfigurationError: If a file cannot be written.
    """
    paths = []
    for name, figure in results.figures(split).items():
        paths.append(folder / f"{split}_{name}.png")
        with _writable(paths[-1]), atomic_file(paths[-1]) as file:
            file.write(png_bytes(figure))
    return paths


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        msg = f"the results of labels cannot be written to {path} ({error.strerror}); make the run folder writable."
        raise ConfigurationError(msg) from error
