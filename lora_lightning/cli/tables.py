"""Tables that commands print."""

from collections.abc import Mapping

from rich.table import Table

from lora_lightning.metrics.direction import LOWER_IS_BETTER

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
