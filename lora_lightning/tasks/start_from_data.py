"""EVA before the first step: now the data is there, and neither the optimizer nor DDP has seen the parameters."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lora_lightning.backbones.first_token import every_token
from lora_lightning.lora.variants.adalora import ranks_in_use
from lora_lightning.lora.variants.eva import directions_of_data, start_from_directions

if TYPE_CHECKING:
    from lora_lightning.tasks.base import AdaptationTask


def start_from_data(task: "AdaptationTask") -> None:
    """EVA's directions and ranks, from the first process's share of the training data, the same on all.

    Args:
        task: With a trainer and its model; adapters that start otherwise stay as they are.
    """
    if task.lora is None or task.lora.init_lora_weights != "eva":
        return
    network, trainer = task.adapted_network, task.trainer
    device = trainer.strategy.root_device  # the task's own device follows later
    network.to(device)

    def run(batch: Mapping[str, Tensor]) -> Any:
        return task.evaluate({name: value.to(device) for name, value in batch.items()})

    directions: dict[str, Tensor] = {}
    if trainer.is_global_zero:
        loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        with isolate_rng(), every_token(network):
            directions = directions_of_data(network, loader, run)
        directions = {name: values.cpu() for name, values in directions.items()}  # the others have GPUs of their own
    start_from_directions(network, trainer.strategy.broadcast(directions))
    if trainer.is_global_zero:
        ranks = ranks_in_use(network).values()
        print(
            f"EVA: {len(ranks)} of {len(directions)} layers have an adapter, of rank {min(ranks)} to {max(ranks)} "
            f"({sum(ranks)} in all)"
        )
