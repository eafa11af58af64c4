"""MLflow: curves and images with their steps, texts and tables as artifacts, options as parameters."""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lora_lightning.figures.histograms import histogram_figure, histogram_of
from lora_lightning.figures.pixels import image_of
from lora_lightning.loggers.board import Board, RunSettings, Table
from lora_lightning.runs.history import Ending
from lora_lightning.runs.settings import flatten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST_VALUE = 6000  # characters of a parameter
MOST_AT_ONCE = 100  # parameters
STATUSES: Mapping[Ending, str] = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class MLflowBoard(Board):
    """What MLflow shows."""

    shows_pictures = True
    shows_texts = True

    def add_figure(self, tag: str, figure: "Figure", step: int) -> None:
        """Adds an image with its step."""
        self._client.log_image(self.logger.run_id, image_of(figure), key=as_key(tag), step=step)

    def add_histogram(self, tag: str, values: Sequence[Tensor], step: int) -> None:
        """Adds a picture of the histogram, since MLflow has no histograms."""
        if (found := histogram_of(values)) is not None:
            self.add_figure(tag, histogram_figure(found, f"{tag}, step {step}"), step)

    def add_text(self, tag: str, text: str, step: int) -> None:
        """Adds the artifact `texts/<tag>/step_<step>.md`."""
        self._client.log_text(self.logger.run_id, text, f"texts/{as_key(tag)}/step_{step:06d}.md")

    def add_table(self, tag: str, table: Table, step: int) -> None:
        """Adds the artifact `tables/<tag>/step_<step>.json`, which MLflow shows as a table."""
        columns = {name: [row[place] for row in table.rows] for place, name in enumerate(table.columns)}
        self._client.log_table(self.logger.run_id, columns, f"tables/{as_key(tag)}/step_{step:06d}.json")

    def add_options(self, options: Mapping[str, Any]) -> None:
        """Logs the options as parameters."""
        self._log_parameters(flatten(options))

    def start(self, settings: RunSettings) -> None:
        """Logs the settings that tables of runs show as parameters, and `config.yaml` as an artifact."""
        self._log_parameters({name: value for name, value in settings.main.items() if value is not None})
        self._client.log_text(self.logger.run_id, settings.config, "config.yaml")

    def _log_parameters(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param  # installed if there is such a logger

        known = self._client.get_run(self.logger.run_id).data.params  # of a resumed run: MLflow refuses other values
        found = {as_key(name): str(value)[:LONGEST_VALUE] for name, value in values.items()}
        new = [Param(name, value) for name, value in found.items() if name not in known]
        for start in range(0, len(new), MOST_AT_ONCE):
            self._client.log_batch(self.logger.run_id, params=new[start : start + MOST_AT_ONCE])

    def end(self, ending: Ending, results: Mapping[str, float], step: int) -> None:
        """Logs the results, and how the run ended."""
        super().end(ending, results, step)
        self._client.set_terminated(self.logger.run_id, STATUSES[ending])

    @property
    def _client(self) -> Any:
        return self.logger.experiment


def as_key(tag: str) -> str:
    """Replaces characters that MLflow does not allow in names."""
    return re.sub(r"[^\w/. -]", "_", tag)
