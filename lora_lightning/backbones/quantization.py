"""Quantizes a frozen base while it loads: modules, dtype and devices. `lora.quantized` has the layers."""

import warnings
from collections.abc import Collection
from dataclasses import dataclass

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from lora_lightning.backbones.head_modules import modules_beside_base
from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.injection import LITTLE, modules_trained_in_full
from lora_lightning.lora.target_modules import linear_layers, summarize_names, weights_outside_linear_layers
from lora_lightning.lora.uncalled_layers import is_multiplied_directly

DEVICES = ("cpu", "cuda")
# Instructions that multiply bfloat16; without them a CPU emulates it. A training step of a 4-bit layer of 576 x 1536
# took 44 ms in bfloat16 and 92 ms in float32 with AVX512-BF16, and 1,750 ms in float16, which is always emulated.
BFLOAT16_OF_CPUS = ("avx512_bf16", "amx_bf16")


@dataclass(frozen=True)
class Quantization:
    """What `load_model` needs to quantize while it loads.

    Attributes:
        settings: As the user gave them.
        lora: The adapter's; what it trains in full is not quantized.
        device: Where the weights go; they are quantized there.
        compute_dtype: From `compute_dtype_on`.
    """

    settings: QuantizationSettings
    lora: LoraSettings
    device: torch.device
    compute_dtype: torch.dtype


def compute_dtype_on(settings: QuantizationSettings, device: torch.device, precision: str) -> torch.dtype:
    """The dtype that 4-bit weights are multiplied in.

    Args:
        settings: Whose `compute_dtype` decides, unless it is `auto`.
        device: Where the model runs.
        precision: The trainer's, for example `32-true` or `bf16-mixed`.

    Returns:
        float32, bfloat16 or float16.

    Raises:
        ConfigurationError: If bitsandbytes does not run there or is very slow, or the dtypes contradict each other.
    """
    if device.type not in DEVICES:
        msg = (
            f"model.quantization does not run on {device.type} (trainer.accelerator); set --trainer.accelerator to cpu "
            "or gpu, or write `quantization: null`."
        )
        raise ConfigurationError(msg)
    if precision == "64-true":
        msg = (
            "trainer.precision is 64-true, in which quantized weights do not compute; set it to 32-true or bf16-mixed."
        )
        raise ConfigurationError(msg)
    asked = {"bf16": torch.bfloat16, "16": torch.float16}.get(precision.partition("-")[0])
    is_auto = settings.compute_dtype == "auto"
    dtype: torch.dtype = (asked or _natural_dtype(device)) if is_auto else getattr(torch, settings.compute_dtype)
    if dtype == torch.float16 and device.type == "cpu" and settings.bits == 4:  # noqa: PLR2004
        found, remedy = "model.quantization.compute_dtype is float16", "auto"
        if asked == dtype:
            found, remedy = f"trainer.precision is {precision}", "bf16-mixed or 32-true"
        msg = (
            f"{found}, but CPUs emulate products of 4-bit weights in float16, some twenty times slower than in "
            f"float32; set it to {remedy}, or run on a GPU."
        )
        raise ConfigurationError(msg)
    if asked is not None and dtype not in {asked, torch.float32}:
        msg = (
            f"model.quantization.compute_dtype is {settings.compute_dtype}, but trainer.precision is {precision}, and "
            "the two 16-bit formats do not hold each other's numbers; set compute_dtype to auto."
        )
        raise ConfigurationError(msg)
    return dtype


def _natural_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    fast = any(torch.cpu.get_capabilities().get(name) for name in BFLOAT16_OF_CPUS)
    return torch.bfloat16 if fast else torch.float32


def check_quantization(
    model: PreTrainedModel, settings: QuantizationSettings, trained: Collection[str], parameters: Collection[str] = ()
) -> None:
    """Finds a wrong entry of `skip_modules`, and adapters on packed parameters, before any weights load.

    Args:
        model: Without storage.
        settings: The quantization's settings.
        trained: Dotted names of the modules that train in full.
        parameters: Dotted names of the parameters that get an adapter by `target_parameters`.

    Raises:
        ConfigurationError: If a module in `skip_modules` does not exist, no layer is left, or a parameter would be
            quantized.
    """
    quantized = linear_layers(model, modules_left(model, settings, trained))
    packed = [name.rpartition(".")[0] for name in parameters if name.rpartition(".")[0] in quantized]
    if packed:
        skip = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in packed))
        msg = (
            f"model.lora.target_parameters names {packed[0]}.weight, but PEFT adds its update to the parameter, which "
            f"model.quantization packs; add {skip} to model.quantization.skip_modules."
        )
        raise ConfigurationError(msg)


def modules_left(model: PreTrainedModel, settings: QuantizationSettings, trained: Collection[str]) -> list[str]:
    """The modules that are not quantized: the head, what trains in full, and what the user names.

    Args:
        model: Any, also without storage.
        settings: Its `skip_modules` may be the ends of dotted names.
        trained: Dotted names of the modules that train in full.

    Returns:
        Dotted names, in the model's order.

    Raises:
        ConfigurationError: If an entry of `skip_modules` is no module of the model, or nothing is left to quantize.
    """
    names = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    left = {*modules_beside_base(model), *trained}
    left |= {name for name in linear_layers(model) if is_multiplied_directly(model, name)}
    for wanted in settings.skip_modules or []:
        matches = {name for name in names if name == wanted or name.endswith(f".{wanted}")}
        if not matches:
            choices = {name.rsplit(".", 1)[-1] for name in names if not name.rsplit(".", 1)[-1].isdigit()}
            msg = (
                f"model.quantization.skip_modules: the model has no module {wanted!r}; {suggest_names(wanted, choices)}"
            )
            raise ConfigurationError(msg)
        left |= matches
    if not linear_layers(model, left):
        msg = (
            f"model.quantization.skip_modules is {settings.skip_modules}, which leaves no layer to quantize; shorten "
            "it, or write `quantization: null`."
        )
        raise ConfigurationError(msg)
    return [name for name in names if name in left]


def warn_of_unquantized_weights(model: PreTrainedModel, exclude: Collection[str]) -> None:
    """Says how much memory is taken by weights that bitsandbytes cannot quantize, such as the experts of a mixture.

    Args:
        model: Quantized.
        exclude: Dotted names of modules that are not meant to be quantized, such as the head.
    """
    outside = weights_outside_linear_layers(model, exclude)
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in model.named_parameters()}
    stay = sum(sizes[name] for name in outside)
    if stay < LITTLE * sum(sizes.values()):
        return
    msg = (
        f"{stay / 2**20:,.1f} MiB of the base's {sum(sizes.values()) / 2**20:,.1f} MiB stay in "
        f"{str(model.dtype).removeprefix('torch.')}, because bitsandbytes quantizes linear layers only: "
        f"{summarize_names(outside)}."
    )
    warnings.warn(msg, stacklevel=2)


def bitsandbytes_config(
    model: PreTrainedModel, quantization: Quantization, lacked: Collection[str]
) -> BitsAndBytesConfig:
    """What to ask of transformers.

    Args:
        model: The architecture, also without storage.
        quantization: What to quantize.
        lacked: Dotted names of the modules that the checkpoint lacked.

    Returns:
        The configuration for `from_pretrained`, complete: it quantizes the same layers without this package.
    """
    settings = quantization.settings
    skip = modules_left(model, settings, modules_trained_in_full(model, quantization.lora, lacked))
    if settings.bits == 8:  # noqa: PLR2004
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.type,
        bnb_4bit_use_double_quant=settings.double_quantization,
        bnb_4bit_compute_dtype=quantization.compute_dtype,
        llm_int8_skip_modules=skip,
    )
