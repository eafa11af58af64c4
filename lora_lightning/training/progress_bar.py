"""Lightning's progress bar with metrics that fit the terminal."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    CustomBarColumn,
    RichProgressBarTheme,
)
from rich import get_console
from rich.progress import ProgressColumn, TextColumn, TimeRemainingColumn

from lora_lightning.compat.lightning import EpochsFromOne, epoch_of

OTHER_COLUMNS = 32  # epoch, batches and remaining time, with the spaces between
METRICS = 44  # usually, such as `loss: 1.234 in_scope_accuracy: 0.9125`
NARROWEST_BAR, WIDEST_BAR = 4, 40


class MetricsProgressBar(EpochsFromOne):
    """Shows epoch, batches, remaining time and as many metrics as fit in one line, each with its complete number.

    Lightning's own has a bar of fixed width, breaks names and numbers in narrow terminals, shows `v_num` and counts
    epochs from 0. Where there is no terminal, such as in a log file, a line tells of every validation.

    Args:
        console_kwargs: Of rich's console.
    """

    def __init__(self, console_kwargs: dict[str, Any] | None = None) -> None:
        super().__init__(theme=RichProgressBarTheme(metrics_format=".4g"), console_kwargs=console_kwargs)

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        """Returns the columns in front of the metrics.

        Args:
            trainer: Not used.
        """
        del trainer
        return [
            TextColumn("{task.description}"),
            CustomBarColumn(
                bar_width=bar_width(get_console().width),
                complete_style=self.theme.progress_bar,
                finished_style=self.theme.progress_bar_finished,
                pulse_style=self.theme.progress_bar_pulse,
            ),
            BatchesProcessedColumn(style=self.theme.batch_progress),
            TimeRemainingColumn(),
        ]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints a line where no bar is drawn.

        Args:
            trainer: The trainer.
            pl_module: The task.
        """
        super().on_validation_end(trainer, pl_module)
        if self.is_disabled or trainer.state.fn != "fit" or trainer.sanity_checking or get_console().is_terminal:
            return
        values = {tag: value for tag, value in trainer.progress_bar_metrics.items() if tag.startswith("val")}
        shown = ", ".join(f"{tag} {value:.4g}" for tag, value in values.items())
        print(f"{epoch_of(trainer).lower()}, step {trainer.global_step}{': ' * bool(shown)}{shown}", flush=True)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Returns the metrics to show.

        Args:
            trainer: The trainer.
            pl_module: The task.

        Returns:
            Values by name without the split, in the order in which they were logged.
        """
        found = super().get_metrics(trainer, pl_module)
        found.pop("v_num", None)  # the number in the name of the run folder, which is printed above
        width = get_console().width
        return fitting_metrics(found, width - OTHER_COLUMNS - bar_width(width), self.theme.metrics_format)


def bar_width(width: int) -> int:
    """Returns the width of the bar, in characters.

    Args:
        width: Of the terminal, in characters.
    """
    return min(WIDEST_BAR, max(NARROWEST_BAR, width - OTHER_COLUMNS - METRICS))


def fitting_metrics(metrics: dict[str, Any], room: int, form: str) -> dict[str, Any]:
    """Chooses metrics for one line.

    Args:
        metrics: Values by tag.
        room: Number of characters.
        form: How numbers are written.

    Returns:
        The first of them that fit, by tag without the split, unless two have the same name then.
    """
    names = {tag: tag.rpartition("/")[2] for tag in metrics}
    shown: dict[str, Any] = {}
    for tag, value in metrics.items():
        name = names[tag] if list(names.values()).count(names[tag]) == 1 else tag
        text = format(value, form) if isinstance(value, float) else str(value)
        room -= len(f"{name}: {text} ")
        if room < 0:
            break
        shown[name] = value
    return shown
