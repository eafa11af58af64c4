"""Undocumented names of PEFT 0.21: the layers that it puts into a model, and functions that it uses itself.

PEFT documents how to handle models, not layers; whatever looks at the update of a single layer needs its layer. The
attributes in use are listed in `LORA_ATTRIBUTES` and `ADALORA_ATTRIBUTES`.
"""

from collections.abc import Sequence
from typing import Any, cast

from peft import LoraConfig, PeftModel
from peft.tuners.adalora.layer import AdaLoraLayer
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba, cast_adapter_dtype
from peft.utils.integrations import dequantize_module_weight, get_bnb_param_type
from peft.utils.other import TrainableTokensWrapper, get_pattern_key
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn

__all__ = [
    "ADALORA_ATTRIBUTES",
    "LORA_ATTRIBUTES",
    "AdaLoraLayer",
    "DoraLinearVariant",
    "LoraLayer",
    "LoraLinear",
    "ParamWrapper",
    "TrainableTokensWrapper",
    "adapters_in_float32",
    "bitsandbytes_bits",
    "dequantized",
    "first_matching_pattern",
    "is_read_without_a_call",
    "is_taken_for_experts",
    "rank_allocator",
]

# Of every adapted layer: dictionaries by adapter, and what a forward pass looks at.
LORA_ATTRIBUTES = (
    "lora_A",
    "lora_B",
    "lora_embedding_A",
    "lora_embedding_B",
    "lora_dropout",
    "lora_bias",
    "lora_magnitude_vector",
    "lora_variant",
    "scaling",
    "active_adapters",
    "base_layer",
    "disable_adapters",
    "fan_in_fan_out",
    "merged",
)
# Under AdaLoRA also the diagonal between A and B, and the number of ranks in use.
ADALORA_ATTRIBUTES = ("lora_A", "lora_B", "lora_E", "ranknum", "scaling")


def first_matching_pattern(patterns: Sequence[str], module: str) -> str:
    """Finds the key of `rank_pattern` or `alpha_pattern` that PEFT applies to a module.

    PEFT's own function, so that a check before training and the adapter agree.

    Args:
        patterns: The keys in their order.
        module: Dotted name.

    Returns:
        The first key that matches; the module's name itself if none does.
    """
    return get_pattern_key(patterns, module)


def is_read_without_a_call(model: nn.Module, name: str) -> bool:
    """Returns whether an architecture computes with a layer's weight without calling the layer.

    Mamba's kernels do so with its convolution and output projection: an adapter there would have no effect. PEFT raises
    while it attaches adapters, after the weights are loaded.

    Args:
        model: A transformers model, before adapters are attached.
        name: Dotted name of one of its layers; only its last part matters.
    """
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.rsplit(".", 1)[-1])
    except ValueError:
        return True
    return False


def is_taken_for_experts(model: nn.Module, name: str) -> bool:
    """Returns whether PEFT takes a layer's name for the former name of a mixture's experts.

    Experts were separate layers before transformers 5 (`gate_proj`), and PEFT translates these names also if they are
    those of a dense or shared expert, both when it attaches adapters and when it loads a folder.

    Args:
        model: A transformers model, before adapters are attached.
        name: Dotted name of one of its layers; only its last part matters.
    """
    last = name.rsplit(".", 1)[-1]
    config: Any = LoraConfig(target_modules=[last])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # two of the former names are one parameter now
        return True
    return bool(config.target_modules != {last})


def adapters_in_float32(network: PeftModel, adapter: str) -> None:
    """Casts the adapters to float32, in place, as PEFT does when it attaches them.

    EVA replaces layers later, and the new ones have the dtype in which a quantized base computes.

    Args:
        network: The PEFT model.
        adapter: Its adapter's name.
    """
    cast_adapter_dtype(network, adapter)


def bitsandbytes_bits(weight: Tensor) -> int | None:
    """Returns in how many bits bitsandbytes keeps a weight: 4 or 8, `None` if it is not quantized.

    PEFT decides by it which layer class an adapter gets.

    Args:
        weight: A parameter.
    """
    kind = get_bnb_param_type(cast("nn.Parameter", weight))
    return None if kind is False else int(kind[0])


def dequantized(layer: nn.Module) -> Tensor:
    """Returns the weight of a layer that other libraries than bitsandbytes quantized; else the parameter itself.

    Args:
        layer: With a `weight`. Not one of bitsandbytes: PEFT (0.21.2) damages 8-bit layers on a CPU.
    """
    return cast("Tensor", dequantize_module_weight(layer))


def rank_allocator(network: PeftModel) -> Any:
    """Returns the object that holds AdaLoRA's importances, which a checkpoint needs and PEFT does not save.

    Args:
        network: Under AdaLoRA.
    """
    return cast("Any", network.base_model).rankallocator
