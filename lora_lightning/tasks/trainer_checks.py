"""What a task asks of a trainer: whether it goes together with the model, and whether it is training."""

from lightning import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn

from lora_lightning.lora.combinations import check_sharding
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.tasks.compiled_layers import check_compiling
from lora_lightning.tasks.optimization import OptimizationSettings
from lora_lightning.tasks.quantized_training import check_quantized_trainer


def check_trainer_fits(
    trainer: Trainer,
    lora: LoraSettings | None,
    quantization: QuantizationSettings | None,
    optimization: OptimizationSettings,
    *,
    compiles: bool,
) -> None:
    """Refuses a trainer that does not, before any weights load.

    Args:
        trainer: Its device, strategy and precision matter.
        lora: Settings of the adapter; `None` for full fine-tuning.
        quantization: How the base is quantized; `None` if it is not.
        optimization: How the task trains.
        compiles: Whether the layers are compiled.

    Raises:
        ConfigurationError: If something does not work with it.
    """
    if isinstance(trainer.strategy, ModelParallelStrategy):
        check_sharding(lora, optimization)
    if quantization is not None:
        check_quantized_trainer(quantization, trainer)
    if compiles:
        check_compiling(trainer, quantization)


def chooses_thresholds(trainer: Trainer) -> bool:
    """Whether a validation chooses the threshold of decisions; otherwise it measures with the one that was chosen.

    Args:
        trainer: In a validation. The sanity check's few rows choose nothing.
    """
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
