"""Logs the ranks that AdaLoRA and EVA assign to the adapters."""

from lightning import LightningModule, Trainer

from lora_lightning.callbacks.adapter_monitor import TOTAL, AdapterMonitor, Export, Measurement, describe_weights
from lora_lightning.figures.layers import layer_map_figure
from lora_lightning.loggers import Board
from lora_lightning.lora.variants.adalora import ranks_in_use
from lora_lightning.tasks import AdaptationTask


class AdapterRanks(AdapterMonitor):
    """Logs the rank of each adapter if the variant chooses the ranks. Always on, and silent for other variants.

    Logs their mean, `weights/rank/r`, and a picture of all, `weights/rank/r_by_layer`, at the start of training, at
    each validation and at the end.
    """

    table = "adapter_ranks"
    tag = "weights/rank"

    def __init__(self) -> None:
        super().__init__()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the initial ranks, unless the run is resumed and has logged them before."""
        super().on_train_start(trainer, pl_module)
        found = self.measure(trainer, pl_module)
        if not self._parts:
            self.publish(trainer, trainer.global_step, found)

    def conclude(self, trainer: Trainer, pl_module: LightningModule, export: Export | None) -> None:
        """Prints the ranks of the exported adapter."""
        ranks = ranks_in_use(pl_module)
        if trainer.is_global_zero and chooses_ranks(pl_module) and ranks:
            print(
                f"ranks ({describe_weights(export)}): {sum(ranks.values()) / len(ranks):.2f} on average, from "
                f"{min(ranks.values())} ({min(ranks, key=lambda name: ranks[name])}) to {max(ranks.values())} "
                f"({max(ranks, key=lambda name: ranks[name])})"
            )

    def add_pictures(self, trainer: Trainer, board: Board, measurements: list[Measurement]) -> None:
        """Draws the ranks."""
        ranks = {m.module: m.value for m in measurements if m.module != TOTAL}
        title = f"step {trainer.global_step}: rank by layer and module"
        figure = layer_map_figure(ranks, title, number=lambda value: f"{value:.0f}")
        board.add_figure(f"{self.tag}/r_by_layer", figure, trainer.global_step)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> list[Measurement]:
        """Returns the current ranks."""
        del trainer
        ranks = ranks_in_use(pl_module) if chooses_ranks(pl_module) else {}
        if not ranks:
            return []
        mean = Measurement(TOTAL, "r", sum(ranks.values()) / len(ranks))
        return [mean, *(Measurement(name, "r", float(rank)) for name, rank in ranks.items())]


def chooses_ranks(model: LightningModule) -> bool:
    """Returns whether the ranks are determined by the data or by training, and not by the settings."""
    return isinstance(model, AdaptationTask) and any(variant.chooses_ranks for variant in model.variants)
