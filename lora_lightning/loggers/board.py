"""The interface: what a run shows, whichever logger shows it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import Logger
from torch import Tensor

from lora_lightning.runs.curves import RESULTS
from lora_lightning.runs.history import Ending

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Value = str | float | bool


@dataclass(frozen=True)
class RunSettings:
    """What distinguishes a run from others.

    Attributes:
        title: Name of the run and its number, such as `quickstart/version_0`.
        main: The settings that tables of runs show, by short name; `None` for a number that the run does not have.
        telling: Names of those that differ most often between runs.
        config: The text of `config.yaml`.
        results: The tags of the results that the run will have, such as `test/loss`.
        monitor: The tag of the metric that selects the best checkpoint.
    """

    title: str
    main: Mapping[str, Value | None]
    telling: Collection[str]
    config: str
    results: Sequence[str]
    monitor: str


@dataclass(frozen=True)
class Table:
    """A small table.

    Attributes:
        columns: The names of its columns.
        rows: Text, numbers or `None`, one per column.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Board:
    """A logger that only shows numbers and settings. Other kinds of loggers have subclasses that show more.

    Steps are optimizer steps.

    Args:
        logger: One of Lightning's, on the main process.
    """

    shows_pictures = False  # figures and histograms, which are not even computed otherwise
    shows_texts = False

    def __init__(self, logger: Logger) -> None:
        self.logger: Any = logger

    def add_numbers(self, values: Mapping[str, float], step: int) -> None:
        """Adds points to curves.

        Args:
            values: By tag.
            step: When they were measured.
        """
        self.logger.log_metrics(values, step=step)

    def add_constants(self, values: Mapping[str, float], step: int) -> None:
        """Adds numbers that are measured once, and would be curves of a single point.

        Args:
            values: By tag.
            step: When they were measured.
        """
        self.add_numbers(values, step)

    def add_figure(self, tag: str, figure: "Figure", step: int) -> None:
        """Adds a picture.

        Args:
            tag: Its name.
            figure: Without a window.
            step: When it was drawn.
        """

    def add_histogram(self, tag: str, values: Sequence[Tensor], step: int) -> None:
        """Adds a histogram; nothing, if the values are empty or not finite.

        Args:
            tag: Its name.
            values: Tensors of any shape and floating dtype, whose entries are counted together.
            step: When they were measured.
        """

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Adds a text.

        Args:
            tag: Its name.
            text: Markdown.
            step: When it was written.
        """

    def add_table(self, tag: str, table: Table, step: int) -> None:
        """Adds a table.

        Args:
            tag: Its name.
            table: The table.
            step: When it was made.
        """

    def add_options(self, options: Mapping[str, Any]) -> None:
        """Shows every option, before the model is built.

        Args:
            options: As nested as in `config.yaml`, and `versions`.
        """
        self.logger.log_hyperparams(options)

    def start(self, settings: RunSettings) -> None:
        """Shows what the run is, when its training starts or is resumed.

        Args:
            settings: Of the run.
        """

    def end(self, ending: Ending, results: Mapping[str, float], step: int) -> None:
        """Shows what the run has achieved, when the process leaves it.

        Args:
            ending: How it ended.
            results: Metrics of the best checkpoint, and numbers of monitors, by tag; those so far if the run can be
                resumed.
            step: Of the end.
        """
        del ending
        if results:
            self.add_numbers({f"{RESULTS}/{tag}": value for tag, value in results.items()}, step)
            self.logger.save()
