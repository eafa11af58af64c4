"""What a terminal shows while a study runs: how far all trials are, those of other workers, too."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lora_lightning.cli.study_audit import printable_name
from lora_lightning.cli.study_output import shown_time
from lora_lightning.errors import LoraLightningError
from lora_lightning.studies.journal import ENDED, TrialStatus
from lora_lightning.studies.open_study import OpenStudy
from lora_lightning.studies.trial_progress import Progress, estimate_seconds_left, read_progress
from lora_lightning.studies.trials import Trial

REFRESHES = 1.0  # a second
BAR, MOST_SHOWN = 30, 8  # width of a bar; running trials that have one


class StudyProgress:
    """How far a study is.

    Args:
        study: The study.
    """

    def __init__(self, study: OpenStudy) -> None:
        self.study = study
        self.measured: list[float] = []  # seconds of the trials that have ended here
        self._last: RenderableType = ""

    @contextmanager
    def shown_on(self, console: Console) -> Iterator[None]:
        """Shows it below what is printed meanwhile, if the console is a terminal.

        Args:
            console: The console.
        """
        if not console.is_terminal:
            yield
            return
        with Live(console=console, get_renderable=self.draw, refresh_per_second=REFRESHES, transient=True):
            yield

    def time_left(self) -> str:
        """Estimates the time left, as the end of a sentence; empty while nothing is known."""
        return self._time_left(self.study.statuses())

    def running(self) -> list[tuple[Trial, Progress | None]]:
        """How far each running trial is; `None` for one that has not begun its first step."""
        return self._running(self.study.statuses())

    def draw(self) -> RenderableType:
        """Draws a bar of all trials, and one for each that is running.

        While the storage does not answer, the last drawing remains: an error would end the thread that refreshes the
        display, or hide the error that ends the study. The worker meets the same error, and reports it.
        """
        with suppress(LoraLightningError):
            self._last = self._draw()
        return self._last

    def _draw(self) -> RenderableType:
        statuses, size = self.study.statuses(), self.study.plan.size
        ended = sum(status.state in ENDED for status in statuses.values())
        table = Table.grid(padding=(0, 1))
        table.add_row("trials", ProgressBar(size, ended, width=BAR), f"{ended} of {size}{self._time_left(statuses)}")
        running = self._running(statuses)
        for trial, found in running[:MOST_SHOWN]:
            bar = ProgressBar(found.steps, found.step, width=BAR) if found and found.steps else ""
            table.add_row(Text(printable_name(trial.title)), bar, describe(found))
        return Group(table, f"and {len(running) - MOST_SHOWN} more") if len(running) > MOST_SHOWN else table

    def _time_left(self, statuses: Mapping[str, TrialStatus]) -> str:
        running = {trial.id: found for trial, found in self._running(statuses) if found}
        seconds = estimate_seconds_left(self.study.plan.size, statuses, running, self.measured)
        return "" if math.isnan(seconds) or not seconds else f"; about {shown_time(seconds)} left"

    def _running(self, statuses: Mapping[str, TrialStatus]) -> list[tuple[Trial, Progress | None]]:
        trials = [trial for trial in self.study.plan.trials if trial.id in statuses]
        running = [trial for trial in trials if statuses[trial.id].state == "running"]
        return [(trial, read_progress(self.study.folder, trial)) for trial in running]


def describe(progress: Progress | None) -> str:
    """Says how far a trial is, such as `step 57 of 116`.

    Args:
        progress: Of the trial, if it is known.
    """
    if progress is None:
        return "starting"
    if progress.phase != "training":
        return progress.phase
    of = f" of {progress.steps}" if progress.steps else ""
    return f"step {progress.step}{of}"
