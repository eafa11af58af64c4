"""The LightningModule that learns planted updates: a test of adapters and monitors that takes seconds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from lora_lightning.analysis.outputs import Outputs
from lora_lightning.backbones.planted_rank import PlantedRank, PlantedRankConfig, PlantedRankModel
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.fused import fuse_lora_layers
from lora_lightning.lora.injection import attach_lora
from lora_lightning.metrics.all_rows import WeightedMean
from lora_lightning.tasks.base import EVALUATED, AdaptationTask
from lora_lightning.tasks.hyperparameters import as_settings
from lora_lightning.tasks.optimization import OptimizationSettings

Batch = dict[str, Tensor]


class PlantedRankTask(AdaptationTask):
    """Regression on frozen linear layers plus planted updates: y = (W + dW) x, where dW has a chosen rank.

    An adapter whose r is at least that rank can learn dW exactly, so the spectrum of the trained adapter must show it.

    Args:
        problem: Sizes, planted ranks, seed.
        lora: The adapter; `null` trains the layers themselves.
        optimization: Learning rate, schedule, decay.
    """

    planted: Tensor

    def __init__(
        self,
        *,
        problem: PlantedRank = PlantedRank(),  # noqa: B008  # jsonargparse shows it; never changed
        lora: LoraSettings | None = LoraSettings(r=16, lora_alpha=16, lora_dropout=0.0),  # noqa: B008
        optimization: OptimizationSettings = OptimizationSettings(),  # noqa: B008
    ) -> None:
        super().__init__("planted_rank", lora, optimization=optimization)
        self.problem = as_settings(PlantedRank, problem) or PlantedRank()
        self.save_task_hyperparameters(problem=problem, lora=lora, optimization=optimization)
        self.metrics.update({split: WeightedMean() for split in ("val", "test")})
        planted = self.problem.base_weights() + self.problem.deltas()
        self.register_buffer("planted", planted)

    @cached_property
    def base_identity(self) -> None:
        """Not needed: the problem's settings make the base."""
        return

    def setup(self, stage: str) -> None:
        """Checks that the data fits.

        Args:
            stage: Not used.

        Raises:
            ConfigurationError: If the width of the inputs is not that of the layers.
        """
        del stage
        width = self.trainer.datamodule.in_features  # type: ignore[attr-defined]
        if width != self.problem.in_features:
            msg = (
                f"data.in_features is {width}, but model.problem.in_features is {self.problem.in_features}; give both "
                "the same number."
            )
            raise ConfigurationError(msg)

    def build_network(self) -> nn.Module:
        """Makes the frozen layers and attaches the adapters."""
        model = PlantedRankModel(PlantedRankConfig(asdict(self.problem)))
        network: nn.Module = model
        if self.lora is not None:
            network = attach_lora(model, self.lora, [], None)
        fuse_lora_layers(network)
        return network

    def load_plain_base(self) -> PlantedRankModel:
        """The frozen layers once more; they are drawn, not loaded."""
        return PlantedRankModel(PlantedRankConfig(asdict(self.problem)))

    def forward(self, batch: Batch) -> Tensor:
        """The distance of the adapted layers' outputs from the planted outputs.

        Args:
            batch: `inputs`, (batch, in_features), floating dtype.

        Returns:
            (batch, layers), floating dtype, squared errors summed over the outputs; before training each layer's mean
            is its planted rank.
        """
        return self._squared_errors(batch, self.evaluate(batch))

    def evaluate(self, batch: Batch) -> Tensor:
        """The layers' outputs, (batch, layers, out_features)."""
        outputs: Tensor = self.built_network(batch["inputs"])
        return outputs

    def _squared_errors(self, batch: Batch, outputs: Tensor) -> Tensor:
        targets = torch.einsum("bi,loi->blo", batch["inputs"].to(self.planted.dtype), self.planted)
        return (outputs - targets).square().sum(dim=-1)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Squared errors of a batch, summed over its rows."""
        loss = self(batch).mean()
        rows = len(batch["inputs"])
        return self.scale_summed_loss(loss * rows, rows, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the validation loss."""
        del batch_idx
        self.add_to_metrics("val", batch, self.evaluate(batch))

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Adds a batch to the test loss, and returns what the model found for callbacks."""
        del batch_idx
        found = self.evaluate(batch)
        self.add_to_metrics("test", batch, found)
        return {EVALUATED: found}

    def add_to_metrics(self, split: str, batch: Batch, found: Tensor) -> None:
        """Adds the squared errors of a batch."""
        self._errors(split).update(self._squared_errors(batch, found))

    def on_validation_epoch_start(self) -> None:
        """Forgets the last epoch's batches."""
        self._errors("val").reset()

    def on_test_epoch_start(self) -> None:
        """Forgets the last test's batches."""
        self._errors("test").reset()

    def on_validation_epoch_end(self) -> None:
        """Logs the mean over all examples."""
        self.log("val/loss", self.metric_values("val")["loss"], prog_bar=True, sync_dist=True)

    def on_test_epoch_end(self) -> None:
        """Logs the mean over all examples."""
        self.log("test/loss", self.metric_values("test")["loss"], sync_dist=True)

    def _errors(self, split: str) -> WeightedMean:
        return cast("WeightedMean", self.metrics[split])

    def metric_values(self, split: str) -> dict[str, float]:
        """Mean squared error, summed over the outputs of a layer."""
        return {"loss": float(self._errors(split).compute())}

    def metric_names(self) -> list[str]:
        """The loss."""
        return ["loss"]

    def constant_answer(self, batches: Sequence[Batch]) -> Callable[[Batch], Tensor]:
        """Outputs of zero."""
        del batches
        return lambda batch: torch.zeros((len(batch["inputs"]), *self.planted.shape[:2]), device=self.planted.device)

    def outputs(self, batch: Batch, found: Tensor) -> Outputs:
        """The layers' outputs, which are numbers and decide nothing."""
        numbers = found.flatten(1)
        nothing = numbers.new_empty(0, dtype=torch.int64)
        return Outputs(numbers, "number", nothing, scores=-self._squared_errors(batch, found).mean(dim=-1))

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Squared errors of each row.

        Args:
            batch: From the data module's predict loader.
            batch_idx: Not used.

        Returns:
            `index`, the row number, (batch,) int64, and `squared_error`, (batch, layers).
        """
        del batch_idx
        return {"index": batch["index"], "squared_error": self(batch)}

    def prediction_rows(self, batches: Sequence[Mapping[str, Any]], inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Each row's number with its squared error in every layer."""
        found = {
            int(index): errors.tolist()
            for batch in batches
            for index, errors in zip(batch["index"], batch["squared_error"], strict=True)
        }
        return [{**inputs[index], "squared_error": found[index]} for index in sorted(found)]
