"""Figures of a plan: parameters and size of the adapter against its rank, and peak memory by precision."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_lightning.figures.study import FONT, GREY, INK, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEBIBYTE = 2**20
PARTS = ("weights", "gradients", "optimizer", "activations", "overhead")
COLORS = ("#4c72b0", "#dd8452", "#55a868", "#8172b3", "#bbbbbb")


@dataclass(frozen=True)
class MemoryBar:
    """Peak memory of one precision.

    Attributes:
        name: The precision.
        parts: Bytes by name, in the order of `PARTS`.
    """

    name: str
    parts: Sequence[int]


def rank_figure(
    ranks: Sequence[int], trainable: Sequence[int], adapter_bytes: Sequence[int], chosen: int, pretrained: int
) -> "Figure":
    """Draws trainable parameters against the rank, with the size of the adapter's file at each point.

    Args:
        ranks: In ascending order.
        trainable: Trainable parameters at each rank.
        adapter_bytes: Size of the adapter at each rank.
        chosen: The rank of the config, which is marked; it may be none of `ranks`.
        pretrained: The parameters that full fine-tuning trains.

    Returns:
        A matplotlib figure that belongs to no window; both axes are logarithmic.
    """
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415  # a second of import, needed only to draw

    figure, axes = new_figure()
    axes.plot(ranks, trainable, color=COLORS[0], marker="o", markersize=4)
    for r, count, size in zip(ranks, trainable, adapter_bytes, strict=True):
        axes.annotate(
            f"{100 * count / pretrained:.2g} %\n{size / MEBIBYTE:.3g} MiB",
            (r, count),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=FONT - 2,
            color=INK,
        )
    if chosen in ranks:
        axes.plot(chosen, trainable[list(ranks).index(chosen)], color=COLORS[1], marker="o", markersize=9, zorder=1)
    axes.axhline(pretrained, color=GREY, linestyle="--", linewidth=1)
    axes.annotate(
        "full fine-tuning", (ranks[0], pretrained), xytext=(0, 3), textcoords="offset points", fontsize=FONT - 1
    )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.minorticks_off()
    axes.set_xticks(list(ranks), [str(r) for r in ranks])
    axes.set_xlim(ranks[0] / 1.6, 1.6 * ranks[-1])
    axes.set_ylim(min(trainable) / 1.8, 2.5 * max(pretrained, *trainable))
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel(f"r (orange: r = {chosen}, as in the config)" if chosen in ranks else "r", fontsize=FONT)
    axes.set_ylabel("trainable parameters", fontsize=FONT)
    axes.set_title("% of full fine-tuning, and size of the adapter's file", fontsize=FONT, color=INK, loc="left")
    return figure


def memory_figure(bars: Sequence[MemoryBar], limit: int | None, title: str) -> "Figure":
    """Draws peak memory, a stacked bar for each precision.

    Args:
        bars: From top to bottom.
        limit: Memory that there is, in bytes, drawn as a line; `None` for none.
        title: Says device and batch.

    Returns:
        A matplotlib figure that belongs to no window.
    """
    figure, axes = new_figure(1.4 + 0.42 * len(bars))
    largest = max([sum(bar.parts) for bar in bars] + ([limit] if limit else []))
    unit, name = (2**30, "GiB") if largest >= 2**30 else (MEBIBYTE, "MiB")
    places = range(len(bars))
    start = [0.0] * len(bars)
    for part, color in enumerate(COLORS):
        widths = [bar.parts[part] / unit for bar in bars]
        axes.barh(places, widths, left=start, color=color, label=PARTS[part], height=0.6)
        start = [left + width for left, width in zip(start, widths, strict=True)]
    for place, total in zip(places, start, strict=True):
        axes.annotate(
            f"{total:.3g}", (total, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=FONT - 1
        )
    if limit:
        axes.axvline(limit / unit, color=INK, linestyle="--", linewidth=1)
        axes.annotate(
            " --memory", (limit / unit, 1), xycoords=("data", "axes fraction"), va="top", fontsize=FONT - 1, color=INK
        )
    axes.set_yticks(places, [bar.name for bar in bars])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * largest / unit)
    axes.set_xlabel(f"peak memory, {name}: {title}", fontsize=FONT)
    axes.legend(
        fontsize=FONT - 1, frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=len(PARTS), labelcolor=INK
    )
    return figure
