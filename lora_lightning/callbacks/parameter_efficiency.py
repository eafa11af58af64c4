"""How few parameters are trainable: by kind of module, in bytes, and against full fine-tuning."""

from lightning import LightningModule, Trainer

from lora_lightning.analysis.parameter_counts import ParameterCounts, count_by_kind
from lora_lightning.callbacks.adapter_monitor import TOTAL, AdapterMonitor, Export, Measurement


class ParameterEfficiency(AdapterMonitor):
    """Counts parameters when training starts; a quantized tensor counts as the parameters that it represents.

    The table `efficiency` has `trained_parameters`, `total_parameters`, `trained_share` in [0, 1], `trained_bytes` (of
    what a checkpoint or an exported adapter holds), and `reduction`: the ratio of the parameters that full fine-tuning
    trains to the trainable ones. For each kind of module, such as `attention.self.query`, it has the first three, over
    all layers; adapters count to the module that they adapt.
    """

    table = "parameter_efficiency"
    tag = "efficiency"
    result_metrics = ("trained_share", "trained_bytes", "reduction")

    def __init__(self) -> None:
        super().__init__()

    @property
    def measures_once(self) -> bool:
        """Counts do not change."""
        return True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts, unless the run that is resumed in this folder has done so."""
        super().on_train_start(trainer, pl_module)
        counts = self.measure(trainer, pl_module)
        self._keep_results(counts)
        if trainer.global_step and any(part.num_rows for part in self._parts):
            return
        self._parts = []
        self.publish(trainer, trainer.global_step, counts)
        self.write(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing has changed."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing has changed."""

    def record_export(self, trainer: Trainer, pl_module: LightningModule, export: Export) -> None:
        """Nothing has changed."""

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> list[Measurement]:
        """Counts now."""
        del trainer
        kinds = count_by_kind(pl_module)
        total = sum(kinds.values(), start=ParameterCounts())
        measurements = [*_rows(TOTAL, total), Measurement(TOTAL, "trained_bytes", total.trained_bytes)]
        if total.trained:
            measurements.append(Measurement(TOTAL, "reduction", total.pretrained / total.trained))
        return measurements + [row for kind, counts in kinds.items() for row in _rows(kind, counts)]


def _rows(module: str, counts: ParameterCounts) -> list[Measurement]:
    return [
        Measurement(module, "trained_parameters", counts.trained),
        Measurement(module, "total_parameters", counts.total),
        Measurement(module, "trained_share", counts.trained / counts.total),
    ]
