"""Attach adapters to a pretrained model and settle which parameters train."""

import warnings
from collections.abc import Collection

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lora_lightning.errors import ConfigurationError, nearest
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.quantized import weight_shape
from lora_lightning.lora.target_modules import linear_layers, resolve_target_modules

HEADS = (
    "classifier",
    "score",
    "qa_outputs",
)  # PEFT trains what is called so in any case, found in the checkpoint or not


def modules_lacked(model: nn.Module, missing_parameters: Collection[str]) -> list[str]:
    """The largest modules all of whose parameters the pretrained checkpoint lacked.

    RoBERTa's two-layer head is one module, DeBERTa's pooler and classifier are two. Their weights are random, so
    they have to train.

    Args:
        model: The model as `from_pretrained` made it.
        missing_parameters: Dotted parameter names, from `from_pretrained(..., output_loading_info=True)`.

    Returns:
        Dotted module names, none inside another, in the model's order.
    """
    missing = set(missing_parameters)
    found: list[str] = []
    for name, module in model.named_modules():
        parameters = [f"{name}.{parameter}" for parameter, _ in module.named_parameters()]
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name and parameters and missing.issuperset(parameters) and not inside:
            found.append(name)
    return found


def modules_trained_in_full(model: nn.Module, settings: LoraSettings, lacked: Collection[str]) -> list[str]:
    """The modules that train whole, beside the adapters.

    Args:
        model: The model before adapters are attached; may be on the meta device.
        settings: The adapter's settings; its `modules_to_save` may be the end of a dotted name.
        lacked: What the pretrained checkpoint lacked, from `modules_lacked`.

    Returns:
        Full dotted module names, the head among them.

    Raises:
        ConfigurationError: If an entry of `modules_to_save` is no module of the model.
    """
    names = [name for name, _ in model.named_modules() if name]
    chosen = list(lacked)
    chosen += [name for name in names if name.endswith(HEADS) and name not in chosen]
    for wanted in settings.modules_to_save or []:
        matches = [name for name in names if name == wanted or name.endswith(f".{wanted}")]
        if not matches:
            choices = {name.rsplit(".", 1)[-1] for name in names if not name.rsplit(".", 1)[-1].isdigit()}
            msg = f"model.lora.modules_to_save: the model has no module {wanted!r}; {nearest(wanted, choices)}"
            raise ConfigurationError(msg)
        chosen += [name for name in matches if name not in chosen]
    return [name for name in chosen if not any(name.startswith(f"{other}.") for other in chosen)]


def check_rank(model: nn.Module, targets: Collection[str], r: int) -> None:
    """Refuses a rank that makes every adapter larger than its layer, before memory is asked for.

    Args:
        model: Before adapters are attached, also without storage.
        targets: Dotted names of the layers to adapt.
        r: The rank.

    Raises:
        ConfigurationError: If it is above the larger side of every layer.
    """
    layers = linear_layers(model)
    longest = max(max(weight_shape(layers[name])) for name in targets)
    if r > longest:
        msg = (
            f"model.lora.r is {r}, but no layer to adapt has a side longer than {longest}, so that every adapter would "
            "be larger than its layer; lower it, or write `lora: null`."
        )
        raise ConfigurationError(msg)


def attach_lora(
    model: PreTrainedModel,
    settings: LoraSettings,
    lacked: Collection[str],
    task_type: str | None,
    never_adapted: Collection[str] = (),
) -> PeftModel:
    """Freezes the base and adds trainable adapters.

    Args:
        model: The pretrained model; changed in place.
        settings: Rank, scaling, targets.
        lacked: Module names from `modules_lacked`; they train in full and are saved with the adapter.
        task_type: PEFT's word for the task, for example `SEQ_CLS`; `None` for a wrapper that changes no argument.
        never_adapted: Dotted names of modules that get no adapter either, such as a language model's head.

    Returns:
        The PEFT model. Adapters are float32 and start at dW = 0 (B = 0).

    Raises:
        ConfigurationError: If a target or a module to save does not exist, or the rank is larger than every layer.
    """
    whole = modules_trained_in_full(model, settings, lacked)
    targets = resolve_target_modules(model, settings.target_modules, exclude=[*whole, *never_adapted])
    check_rank(model, targets, settings.r)
    _warn_if_rank_is_full(model, targets, settings.r)
    config = LoraConfig(
        task_type=task_type,
        r=settings.r,
        lora_alpha=settings.lora_alpha,  # type: ignore[arg-type]  # PEFT annotates int and divides
        lora_dropout=settings.lora_dropout,
        target_modules=targets,
        bias=settings.bias,
        use_rslora=settings.use_rslora,
        modules_to_save=whole,
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    peft_model: PeftModel = get_peft_model(model, config)
    return peft_model


def trained_parameters(model: nn.Module) -> list[str]:
    """Dotted names of the parameters that train."""
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _warn_if_rank_is_full(model: nn.Module, targets: Collection[str], r: int) -> None:
    layers = linear_layers(model)
    sizes = {name: min(weight_shape(layers[name])) for name in targets}
    smallest = min(sizes, key=lambda name: sizes[name])
    if r > sizes[smallest]:
        msg = (
            f"model.lora.r is {r}, above the smaller side of {smallest} ({sizes[smallest]}): ranks beyond it add "
            f"parameters and no capacity; r up to {sizes[smallest]} is enough."
        )
        warnings.warn(msg, stacklevel=3)
