"""Weights & Biases: everything that TensorBoard shows, in W&B's own types."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from lora_lightning.figures.histograms import histogram_of
from lora_lightning.figures.pixels import image_of
from lora_lightning.loggers.board import Board, RunSettings, Table
from lora_lightning.runs.curves import RESULTS
from lora_lightning.runs.history import Ending

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class WandbBoard(Board):
    """What Weights & Biases shows, online or, with `offline: true`, after `wandb sync`."""

    shows_pictures = True
    shows_texts = True

    def add_figure(self, tag: str, figure: "Figure", step: int) -> None:
        """Adds an image."""
        self.logger.log_image(tag, [image_of(figure)], step=step)

    def add_histogram(self, tag: str, values: Sequence[Tensor], step: int) -> None:
        """Adds a histogram."""
        import wandb  # installed if there is such a logger

        if (found := histogram_of(values)) is not None:
            histogram = wandb.Histogram(np_histogram=(np.array(found.counts), np.array(found.edges)))
            self.logger.log_metrics({tag: histogram}, step=step)

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Adds a table of one text, since W&B has no texts of their own."""
        self.logger.log_table(tag, columns=["text"], data=[[text]], step=step)

    def add_table(self, tag: str, table: Table, step: int) -> None:
        """Adds a table."""
        rows = [list(row) for row in table.rows]
        self.logger.log_table(tag, columns=list(table.columns), data=rows, step=step)

    def start(self, settings: RunSettings) -> None:
        """Adds the settings that tables of runs show to the run's config, each by its short name.

        The options of the data are `data` there already, so its name is `data_name`.
        """
        main = {"data_name" if name == "data" else name: value for name, value in settings.main.items()}
        self.logger.log_hyperparams(main)
        self.add_text("config.yaml", settings.config, 0)

    def end(self, ending: Ending, results: Mapping[str, float], step: int) -> None:
        """Writes the results to the run's summary and finishes it; another run of this process is one of its own."""
        del step
        run = self.logger.experiment
        run.summary.update({f"{RESULTS}/{tag}": value for tag, value in results.items()})
        run.finish(exit_code=0 if ending == "finished" else 1)
