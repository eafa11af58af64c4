"""TensorBoard: curves in few groups, of which training is the first; the rest in HParams and on cards of text."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from lora_lightning.compat.torch import add_summary
from lora_lightning.figures.histograms import histogram_of
from lora_lightning.loggers.board import Board, RunSettings, Table
from lora_lightning.loggers.hparams import end_summary, start_summaries
from lora_lightning.runs.curves import RESULTS
from lora_lightning.runs.history import Ending
from lora_lightning.runs.place import class_name, logger_entries

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CurveLogger(TensorBoardLogger):
    """Lightning's logger for TensorBoard, without curves that are a single dot, or a staircase.

    TensorBoard opens on the groups of tags that come first in the alphabet. The metrics of the test, which are among
    the run's results, would be the first screen, and so would Lightning's number of the epoch.
    """

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds points to curves.

        Args:
            metrics: Values by tag.
            step: Optimizer steps.
        """
        curves = {tag: value for tag, value in metrics.items() if tag != "epoch" and not is_of_test(tag)}
        super().log_metrics(curves, step)

    def log_hyperparams(self, params: Any, metrics: dict[str, Any] | None = None, step: int | None = None) -> None:
        """Keeps them for `hparams.yaml`; TensorBoard gets those of `RunSettings` instead.

        Args:
            params: The settings.
            metrics: Ignored, as Lightning's placeholder `hp_metric` would be one of them.
            step: Ignored.
        """
        del metrics
        super().log_hyperparams(params, metrics={}, step=step)


def is_of_test(tag: str) -> bool:
    """Whether a tag is that of a test split, such as `test/loss` or `test_mismatched/loss`."""
    return tag.startswith(("test/", "test_"))


def log_curves_alone(trainer: Any) -> None:
    """Replaces Lightning's logger for TensorBoard by `CurveLogger`.

    Args:
        trainer: The trainer's options, changed in place.
    """
    for entry in logger_entries(trainer):
        if class_name(entry) == "TensorBoardLogger" and entry.class_path.startswith("lightning."):
            entry.class_path = f"{CurveLogger.__module__}.{CurveLogger.__name__}"


class TensorBoardBoard(Board):
    """What TensorBoard shows."""

    shows_pictures = True
    shows_texts = True

    def add_constants(self, values: Mapping[str, float], step: int) -> None:
        """Adds nothing: constants are on cards of text and in HParams."""

    def add_figure(self, tag: str, figure: "Figure", step: int) -> None:
        """Adds a picture; those of the test are among the results, or TensorBoard would open on them."""
        place = f"{RESULTS}/{tag}" if is_of_test(tag) else tag
        self.logger.experiment.add_figure(place, figure, global_step=step)

    def add_histogram(self, tag: str, values: Sequence[Tensor], step: int) -> None:
        """Adds a histogram."""
        if (found := histogram_of(values)) is None:
            return
        low, high, sums = found.edges[0], found.edges[-1], found.sums
        # TensorBoard stores upper limits alone: the first bucket is empty and marks the lower end.
        self.logger.experiment.add_histogram_raw(
            tag,
            low,
            high,
            sums.entries,
            sums.total,
            sums.energy,
            list(found.edges),
            [0.0, *found.counts],
            global_step=step,
        )

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Adds a card of Markdown."""
        self.logger.experiment.add_text(tag, text, global_step=step)

    def add_table(self, tag: str, table: Table, step: int) -> None:
        """Adds a card with a table."""
        self.add_text(tag, markdown_table(table), step)

    def start(self, settings: RunSettings) -> None:
        """Adds the run's row of HParams, the layout of Custom Scalars, and a card with `config.yaml`."""
        for summary in start_summaries(settings):
            add_summary(self.logger.experiment, summary)
        self.logger.experiment.add_custom_scalars(overview(settings.monitor))
        self.add_text("config.yaml", "\n".join(f"    {line}" for line in settings.config.splitlines()), 0)

    def end(self, ending: Ending, results: Mapping[str, float], step: int) -> None:
        """Completes the run's row of HParams, and adds a card with the results."""
        super().end(ending, results, step)
        if results:
            self.add_table("results", Table(["", "value"], [*results.items()]), step)
        add_summary(self.logger.experiment, end_summary(ending))
        self.logger.experiment.close()


def overview(monitor: str) -> dict[str, dict[str, list[Any]]]:
    """The layout of the tab Custom Scalars: the few charts that tell how a run goes.

    Args:
        monitor: The tag of the metric that selects the best checkpoint.

    Returns:
        As `SummaryWriter.add_custom_scalars` takes it; tags are regular expressions.
    """
    charts = {
        "loss": ["^train/loss$", "^val[^/]*/loss$"],
        monitor: [f"^{monitor}$"],
        "learning rate": ["^train/learning_rate"],
        "share of the rank in use": ["^weights/rank/utilization$"],
        "size of the update, ||dW|| / ||W||": ["^weights/norms/relative_delta_norm$"],
        "norms of the gradients": ["^weights/norms/[AB]_gradient_norm$"],
    }
    return {"Overview": {title: ["Multiline", tags] for title, tags in charts.items()}}


def markdown_table(table: Table) -> str:
    """Formats a table as Markdown, which TensorBoard renders.

    Args:
        table: The table.

    Returns:
        A line per row.
    """
    lines = [table.columns, ["---"] * len(table.columns), *table.rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return "" if value is None else str(value).lower()
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"  # noqa: PLR2004
    text = f"{value:,}" if isinstance(value, int) else " ".join(str(value).split())
    return text.replace("|", "\\|")
