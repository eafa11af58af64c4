"""Shows a confusion matrix of the most confused labels in TensorBoard."""

from typing import TYPE_CHECKING, Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lora_lightning.tasks import SequenceClassificationTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_LABEL = 40  # characters; CLINC150's longest has 25


class ConfusionFigure(Callback):
    """Draws the confusion among the most confused labels after each validation and test.

    Args:
        labels: Maximum number of labels to show.
    """

    def __init__(self, labels: int = 20) -> None:
        self.labels = labels

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the validation splits."""
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the test splits."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, SequenceClassificationTask):
            return
        boards = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        for split in pl_module.scored_splits:
            confusion = pl_module.split_metrics(split).confusion
            if confusion is None:  # only single labels can be confused
                continue
            counts = confusion.compute().cpu()  # collective
            if not boards or not trainer.is_global_zero:
                continue
            rows = most_confused_labels(counts, self.labels)
            figure = confusion_figure(counts[rows][:, rows], [pl_module.labels.names[row] for row in rows], split)
            for board in boards:
                board.experiment.add_figure(f"{split}/confusion", figure, global_step=trainer.global_step)


def most_confused_labels(counts: Tensor, limit: int) -> list[int]:
    """Selects the labels of the most frequent mistakes.

    Args:
        counts: (classes, classes), rows are truth, columns prediction.
        limit: Maximum number of labels to select.

    Returns:
        Label indices, sorted by pairs: the most confused pair first, its two labels next to each other.
    """
    mistakes = counts.clone().float().fill_diagonal_(0)
    mutual = torch.triu(mistakes + mistakes.T, diagonal=1)
    picked: list[int] = []
    for flat in torch.argsort(mutual.flatten(), descending=True, stable=True).tolist():
        first, second = divmod(flat, counts.shape[1])
        if mutual[first, second] == 0:
            break
        picked += [label for label in (first, second) if label not in picked]
        if len(picked) >= limit:
            break
    return picked[:limit] or list(range(min(limit, counts.shape[0])))


def label_for_figure(name: str) -> str:
    """Shortens a label for a figure.

    Args:
        name: Any text.

    Returns:
        One line of at most `LONGEST_LABEL` characters, control characters escaped.
    """
    line = "".join(letter if letter.isprintable() else f"{letter!a}"[1:-1] for letter in name)
    return line if len(line) <= LONGEST_LABEL else f"{line[: LONGEST_LABEL - 3]}..."


def confusion_figure(counts: Tensor, names: list[str], split: str) -> "Figure":
    """Draws a confusion matrix with its counts.

    Args:
        counts: (labels, labels), rows are truth, columns prediction.
        names: Label of each row.
        split: The split that the title names.

    Returns:
        A matplotlib figure without a window.
    """
    from matplotlib.figure import Figure  # noqa: PLC0415  # takes a second, and is needed only to draw

    size = 3.5 + 0.34 * len(names)
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts.float().sqrt().numpy(), cmap="Blues", vmin=0)
    strongest = float(counts.max()) or 1.0
    for row, column in counts.nonzero().tolist():
        value = int(counts[row, column])
        color = "white" if value > strongest / 2 else "black"
        axes.text(column, row, str(value), ha="center", va="center", color=color, fontsize=8)
    # Labels come from the user: a $ does not start a formula, and a very long label must not widen the figure.
    shown = [label_for_figure(name) for name in names]
    plain: dict[str, Any] = {"fontsize": 8, "parse_math": False}
    axes.set_xticks(range(len(names)), shown, rotation=60, ha="right", rotation_mode="anchor", **plain)
    axes.set_yticks(range(len(names)), shown, **plain)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{split}: the {len(names)} most confused labels (number of queries)", fontsize=10)
    return figure
