"""Numbers of parameters by kind of module; an adapter counts to the module that it adapts."""

from dataclasses import dataclass

from torch import nn

from lora_lightning.lora.delta import split_layer_number
from lora_lightning.lora.parameter_names import adapted_module_name, is_added_by_peft
from lora_lightning.lora.quantized import parameter_count


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters.

    Attributes:
        trained: Trainable parameters.
        total: All parameters in memory, with the frozen copies that PEFT keeps of `modules_to_save`.
        pretrained: Parameters of the model before PEFT, which full fine-tuning would train.
        trained_bytes: Size of the trainable parameters in their own dtype.
    """

    trained: int = 0
    total: int = 0
    pretrained: int = 0
    trained_bytes: int = 0

    def __add__(self, other: "ParameterCounts") -> "ParameterCounts":
        """Adds the counts."""
        return ParameterCounts(
            self.trained + other.trained,
            self.total + other.total,
            self.pretrained + other.pretrained,
            self.trained_bytes + other.trained_bytes,
        )


def count_by_kind(model: nn.Module) -> dict[str, ParameterCounts]:
    """Counts each parameter once, even if several modules share it.

    Args:
        model: With or without adapters.

    Returns:
        Counts by the module's name within its layer, such as `attention.self.query`, in the model's order; modules
        of the same name in several layers are one kind.
    """
    kinds: dict[str, ParameterCounts] = {}
    for name, parameter in model.named_parameters():
        size = parameter_count(parameter)
        own = ParameterCounts(
            trained=size * parameter.requires_grad,
            total=size,
            pretrained=0 if is_added_by_peft(name) else size,
            trained_bytes=parameter.numel() * parameter.element_size() * parameter.requires_grad,
        )
        kind = split_layer_number(adapted_module_name(name))[1]
        kinds[kind] = kinds.get(kind, ParameterCounts()) + own
    return kinds
