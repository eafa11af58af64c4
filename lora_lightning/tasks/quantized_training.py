"""How a trainer's device, strategy and precision go together with a quantized backbone."""

import torch
from lightning import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lora_lightning.backbones.quantization import Quantization, compute_dtype_on
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings


def check_quantized_trainer(settings: QuantizationSettings, trainer: Trainer) -> None:
    """Refuses a trainer that bitsandbytes' layers cannot work with.

    Args:
        settings: How the backbone is quantized.
        trainer: Its device, strategy and precision matter.

    Raises:
        ConfigurationError: If it shards weights, or has a precision that does not work.
    """
    if type(trainer.strategy) not in {SingleDeviceStrategy, DDPStrategy}:
        msg = (
            f"model.quantization does not work with trainer.strategy {type(trainer.strategy).__name__}, which shards "
            "weights, and bitsandbytes' weights cannot be sharded; set it to auto or ddp, or write "
            "`quantization: null`."
        )
        raise ConfigurationError(msg)
    compute_dtype_on(settings, trainer.strategy.root_device, str(trainer.precision))


def quantization_for(trainer: Trainer | None, settings: QuantizationSettings, lora: LoraSettings) -> Quantization:
    """How to quantize a backbone for a trainer.

    Args:
        trainer: Its device and precision matter; `None` for the CPU in float32.
        settings: How the backbone is quantized.
        lora: The adapters on it.

    Returns:
        What loading needs.

    Raises:
        ConfigurationError: As `check_quantized_trainer`.
    """
    device, precision = torch.device("cpu"), "32-true"
    if trainer is not None:
        check_quantized_trainer(settings, trainer)
        device, precision = trainer.strategy.root_device, str(trainer.precision)
    return Quantization(settings, lora, device, compute_dtype_on(settings, device, precision))
