"""What a kind of task has to implement, so that data modules, callbacks and commands can work with any task."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning import LightningModule
from torch import Tensor, nn

from lora_lightning.analysis.outputs import Outputs
from lora_lightning.metrics.label_space import LabelSpace


class TaskContract(LightningModule):
    """The methods by which kinds of tasks differ."""

    @abstractmethod
    def build_network(self) -> nn.Module:
        """Loads the backbone and attaches the adapters; called once, by `configure_model`."""

    @abstractmethod
    def evaluate(self, batch: dict[str, Tensor]) -> Any:
        """Runs the model once on a batch, for its metrics and its outputs.

        Args:
            batch: From the training or an evaluation loader.

        Returns:
            What `add_to_metrics` and `outputs` take.
        """

    @abstractmethod
    def add_to_metrics(self, split: str, batch: dict[str, Tensor], found: Any) -> None:
        """Adds a batch to the metrics of a split.

        Args:
            split: Such as `val`.
            batch: The batch.
            found: The result of `evaluate` for it.
        """

    def condense(self, batch: dict[str, Tensor], found: Any) -> Any:
        """Does the work of `add_to_metrics` that is the same for every copy of the metrics.

        Args:
            batch: The batch.
            found: The result of `evaluate` for it.

        Returns:
            What `add_to_metrics` takes instead of `found`.
        """
        del batch
        return found

    @abstractmethod
    def constant_answer(self, batches: Sequence[dict[str, Tensor]]) -> Callable[[dict[str, Tensor]], Any]:
        """The best answer that is the same for every example: what a model has to beat to have learnt anything.

        Args:
            batches: With the labels that it is the best for; on the host.

        Returns:
            What `add_to_metrics` takes, as a function of a batch.
        """

    @abstractmethod
    def outputs(self, batch: dict[str, Tensor], found: Any) -> Outputs:
        """The model's outputs for a batch, to compare two states of the model.

        Args:
            batch: The batch.
            found: The result of `evaluate` for it.

        Returns:
            Without padding and without positions that have no label.
        """

    @abstractmethod
    def metric_values(self, split: str) -> dict[str, float]:
        """The metrics of all batches added since the last reset; collective.

        Args:
            split: Such as `val`.

        Returns:
            Numbers by name, without the split's prefix.
        """

    @abstractmethod
    def metric_names(self) -> list[str]:
        """The names that `metric_values` may return; a split's rows decide which of them it returns."""

    @abstractmethod
    def prediction_rows(self, batches: Sequence[Mapping[str, Any]], inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Turns predictions into rows for people to read.

        Args:
            batches: The results of `predict_step` for one split, from every process, in any order.
            inputs: The data module's `prediction_inputs` of the split, by a batch's `index`.

        Returns:
            One row for each prediction, in the order of the input.
        """

    def choose_threshold(self, split: str) -> None:
        """Chooses the task's threshold by the batches in the metrics of a split; tasks without one do nothing.

        Args:
            split: Such as `val`; never a test split.
        """

    @property
    def threshold_name(self) -> str | None:
        """The buffer that holds what `choose_threshold` chooses; `None` without a threshold."""
        return None

    def metrics_at_threshold(self) -> list[str]:
        """The names of `metric_names` that follow the threshold."""
        return []

    @property
    def threshold(self) -> float | None:
        """What validation chose; `None` without a threshold."""
        return None if self.threshold_name is None else float(self.get_buffer(self.threshold_name))

    def set_threshold(self, value: float | None) -> None:
        """Sets the threshold.

        Args:
            value: From `threshold`; `None` leaves it as it is.
        """
        if self.threshold_name is not None and value is not None:
            self.get_buffer(self.threshold_name).fill_(value)

    def adopt_labels(self, space: LabelSpace) -> None:
        """Takes the labels from elsewhere, before the model is built; tasks without labels ignore them."""

    def check_data(self, datamodule: Any) -> None:
        """Refuses a data module that has nothing for this task, before the data is read.

        Args:
            datamodule: Of any kind.

        Raises:
            ConfigurationError: If it does not fit.
        """

    def check_settings(self) -> None:
        """Refuses settings that do not fit the backbone's architecture, before any weights load."""

    def export_files(self) -> dict[str, Any]:
        """Values to write as JSON beside exported weights, by file name."""
        return {}
