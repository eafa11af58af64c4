"""Names adapters that do not train because the model does not use them."""

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lora_lightning.lora.delta import adapted_layers, adapter_factors
from lora_lightning.lora.target_modules import summarize_names


class UnusedAdapters(Callback):
    """Warns at the first optimizer step of adapters without a gradient, such as those of an image encoder."""

    def __init__(self) -> None:
        self._looked = False

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Looks at the gradients of B, once."""
        del trainer, optimizer
        if self._looked:
            return
        self._looked = True
        unused = [name for name, layer in adapted_layers(pl_module).items() if adapter_factors(layer)[1].grad is None]
        if unused:
            rank_zero_warn(
                f"{len(unused)} adapters have no gradient, because the model did not call their layers in the first "
                f"step: {summarize_names(unused)}. They do not train; model.lora.exclude_modules can leave them out."
            )
