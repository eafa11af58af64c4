"""Shows which labels are confused: a matrix of the most confused ones, and a list of the most frequent mistakes."""

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from lora_lightning.figures.confusion import MOST_LABELS, confusion_figure
from lora_lightning.loggers import Table, boards_of
from lora_lightning.tasks import SequenceClassificationTask

LISTED = 40  # mistakes


class ConfusionFigure(Callback):
    """Draws the confusion among the most confused labels, and lists the mistakes, after each validation and test.

    Args:
        labels: Maximum number of labels in the matrix.
    """

    def __init__(self, labels: int = MOST_LABELS) -> None:
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
        boards = [board for board in boards_of(trainer) if board.shows_pictures or board.shows_texts]
        for split in pl_module.scored_splits:
            confusion = pl_module.split_metrics(split).confusion
            if confusion is None:  # only single labels can be confused
                continue
            counts = confusion.compute().cpu()  # collective
            if not boards:
                continue
            rows, names, step = most_confused_labels(counts, self.labels), pl_module.labels.names, trainer.global_step
            mistakes = confusion_table(counts, names)
            for board in boards:
                if board.shows_pictures:
                    figure = confusion_figure(counts[rows][:, rows], [names[row] for row in rows], split)
                    board.add_figure(f"{split}/confusion", figure, step)
                board.add_table(f"{split}/mistakes", mistakes, step)


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


def confusion_table(counts: Tensor, names: list[str], limit: int = LISTED) -> Table:
    """Lists the most frequent mistakes.

    Args:
        counts: (classes, classes), rows are truth, columns prediction.
        names: Label of each class.
        limit: Maximum number of rows.

    Returns:
        A row per pair of labels, the most frequent first: true and predicted label, count, and the share of the true
        label's examples.
    """
    mistakes = counts.clone().fill_diagonal_(0)
    totals = counts.sum(dim=1)
    rows = []
    for flat in torch.argsort(mistakes.flatten(), descending=True, stable=True)[:limit].tolist():
        truth, prediction = divmod(flat, counts.shape[1])
        if count := int(mistakes[truth, prediction]):
            rows.append([names[truth], names[prediction], count, count / int(totals[truth])])
    return Table(["true", "predicted", "count", "share of the true label"], rows)
