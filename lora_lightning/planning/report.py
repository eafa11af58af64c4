"""Writes a plan as files: its numbers as JSON, its figures as PNG and SVG."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_lightning.artefacts.output_folder import new_folder
from lora_lightning.figures.plan import PARTS, MemoryBar, memory_figure, rank_figure
from lora_lightning.figures.png import png_bytes
from lora_lightning.planning.results import TrainingPlan
from lora_lightning.reports.drawing import svg_text
from lora_lightning.reports.study_json import json_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAN = "plan.json"


def write_plan(plan: TrainingPlan, output: Path, *, overwrite: bool = False) -> None:
    """Writes `plan.json`, `ranks.png`, `ranks.svg`, `memory.png` and `memory.svg`.

    Args:
        plan: What to write. Without LoRA there is no figure of ranks.
        output: The folder.
        overwrite: Whether a folder with another plan may be replaced.

    Raises:
        ConfigurationError: If the folder exists or cannot be written.
    """
    with new_folder(output, overwrite=overwrite, marker=PLAN) as draft:
        (draft / PLAN).write_text(json_text(plan.as_json()) + "\n", encoding="utf-8")
        for name, figure in figures_of(plan).items():
            (draft / f"{name}.png").write_bytes(png_bytes(figure))
            (draft / f"{name}.svg").write_text(svg_text(figure), encoding="utf-8")


def figures_of(plan: TrainingPlan) -> Mapping[str, "Figure"]:
    """Draws the figures of a plan.

    Args:
        plan: What to draw.

    Returns:
        Figures by name: `ranks` for LoRA, and `memory`.
    """
    figures: dict[str, Figure] = {}
    if plan.ranks and plan.r is not None:
        columns = ([row.r for row in plan.ranks], [row.trainable for row in plan.ranks])
        sizes = [row.adapter_bytes for row in plan.ranks]
        figures["ranks"] = rank_figure(*columns, sizes, plan.r, plan.pretrained)
    rows = [row for row in plan.memory if not row.unavailable]
    if rows:
        bars = [
            MemoryBar(row.precision + " *" * row.is_config, [int(getattr(row, part)) for part in PARTS]) for row in rows
        ]
        title = f"{plan.device}, {plan.batch.rows} rows of {plan.batch.tokens} tokens (* as in the config)"
        figures["memory"] = memory_figure(bars, plan.memory_limit, title)
    return figures
