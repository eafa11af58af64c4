"""Tables that commands print."""

from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.table import Table
from rich.text import Text

from lora_lightning.figures.confusion import short_label
from lora_lightning.metrics.direction import LOWER_IS_BETTER
from lora_lightning.metrics.label_scores import LabelScore, worst_first

FEW_LABELS = 20  # that are shown one by one
WORST_LABELS = 10  # that are shown of more
LONGEST_LABEL = 40  # characters
KINDS = {"val": "validation", "test": "test"}


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> Table:
    """Arranges metrics in a table.

    Args:
        metrics: Values by split and name, as in `RunRecord.metrics`.

    Returns:
        A table with one row per metric and one column per validation or test split; a dash where a split lacks one.
    """
    splits = sorted(
        (split for split in metrics if split.partition("_")[0] in KINDS),
        key=lambda split: (split.startswith("test"), split),
    )
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("metric")
    for split in splits:
        kind, _, part = split.partition("_")
        table.add_column(f"{KINDS[kind]} {part}".strip(), justify="right")
    for name in dict.fromkeys(name for split in metrics if split in splits for name in metrics[split]):
        values = [metrics[split].get(name) for split in splits]
        arrow = " (lower is better)" if name in LOWER_IS_BETTER else ""
        table.add_row(name + arrow, *["-" if value is None else f"{value:.4f}" for value in values])
    return table


def label_table(split: str, scores: Sequence[LabelScore]) -> Group:
    """Arranges the scores of labels in a table: of all if they are few, otherwise of those with the lowest F1.

    Args:
        split: Such as `test`, for the title.
        scores: Of all labels.

    Returns:
        A line, and a table with one row per label.
    """
    shown = list(scores) if len(scores) <= FEW_LABELS else worst_first(scores)[:WORST_LABELS]
    kind, _, part = split.partition("_")
    few = f"the {len(shown)} of {len(scores)} labels with the lowest F1" if len(shown) < len(scores) else "each label"
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("label")
    for name in ("precision", "recall", "F1", "support"):
        table.add_column(name, justify="right")
    for score in shown:
        values = ["-" if value is None else f"{value:.4f}" for value in score[1:4]]
        table.add_row(Text(short_label(score.label, LONGEST_LABEL)), *values, f"{score.support:,}")
    return Group(Text(f"\n{' '.join([KINDS[kind], part]).strip()}, {few}:"), table)
