"""How PEFT names the parameters that it adds or wraps; no other module takes such a name apart or puts one together."""

import re
from typing import Literal

ADAPTER = "default"  # PEFT's name for the only adapter that this package trains
TASK_PREFIX = "network."  # where a task of this package keeps its model
PEFT_PREFIX = "base_model.model."  # where PEFT keeps the pretrained model

WRAPPERS = re.compile(rf"^({re.escape(TASK_PREFIX)})?({re.escape(PEFT_PREFIX)})?")
ADAPTER_PARAMETER = re.compile(r"(^|\.)lora_")
FACTOR = re.compile(r"(^|\.)(lora_[AB]|lora_embedding_[AB])(\.|$)")
EMBEDDING_FACTOR = re.compile(r"(^|\.)lora_embedding_[AB]\b")
UPDATED_TOKENS = re.compile(r"(^|\.)trainable_tokens_delta\b")
FACTOR_B = re.compile(r"(^|\.)lora_B\.")
TRAINABLE_PARAMETER = re.compile(r"(^|\.)(lora_|modules_to_save\.|trainable_tokens_delta\.)")
ADDED_PARAMETER = re.compile(r"\.(original_module|lora_\w+|ranknum|trainable_tokens_delta)\b")
PARTS_OF_PEFT = re.compile(
    r"\.(base_layer|original_module|token_adapter|modules_to_save\.\w+"
    r"|(lora_\w+|ranknum|trainable_tokens_delta)(\.\w+)?)\b"
)
KEYED_BY_ADAPTER = re.compile(r"\.(lora_embedding_[AB]|ranknum|trainable_tokens_delta|lora_[ABE])\.\w+$")


def pretrained_name(name: str) -> str:
    """The name that a module or parameter has in the pretrained model.

    Args:
        name: Dotted, in a task, in a PEFT model or in the pretrained model itself.

    Returns:
        The name without the prefixes of the task and of PEFT.
    """
    return WRAPPERS.sub("", name)


def peft_name(module: str) -> str:
    """The name that a module of the pretrained model has in the PEFT model."""
    return f"{PEFT_PREFIX}{module}"


def name_without_wrappers(module: str) -> str:
    """The name in the pretrained model of a module that PEFT wraps, or that lies inside such a module.

    Args:
        module: Dotted, in a task or in a PEFT model. Wrappers around several parameters of a module are nested.

    Returns:
        The name without prefixes and without `base_layer`.
    """
    return pretrained_name(module).replace(".base_layer", "")


def weight_name(module: str, factor: Literal["A", "B"]) -> str:
    """The name of a LoRA factor in the state of a PEFT model.

    Args:
        module: The adapted layer's name in the pretrained model.
        factor: `A` or `B`.

    Returns:
        The name, for example `base_model.model.encoder.query.lora_A.default.weight`.
    """
    return f"{peft_name(module)}.lora_{factor}.{ADAPTER}.weight"


def adalora_weight_names(module: str) -> list[str]:
    """The names of AdaLoRA's factors A and B and of its singular values E in the state of a PEFT model."""
    return [f"{peft_name(module)}.lora_{factor}.{ADAPTER}" for factor in "ABE"]


def adalora_rank_key(module: str) -> str:
    """The key under which AdaLoRA's `rank_pattern` keeps which directions of a layer are in use."""
    return f"{module}.lora_E.{ADAPTER}"


def is_adapter_parameter(name: str) -> bool:
    """Whether a parameter belongs to an adapter: a factor, AdaLoRA's singular values, or DoRA's magnitudes."""
    return ADAPTER_PARAMETER.search(name) is not None


def is_factor(name: str) -> bool:
    """Whether a tensor is a factor A or B of an adapter, of a linear layer or of an embedding."""
    return FACTOR.search(name) is not None and not name.endswith(".bias")


def is_embedding_factor(name: str) -> bool:
    """Whether a parameter is a factor of an adapter on an embedding."""
    return EMBEDDING_FACTOR.search(name) is not None


def is_token_update(name: str) -> bool:
    """Whether a parameter holds the embeddings of `trainable_token_indices`."""
    return UPDATED_TOKENS.search(name) is not None


def saved_module_name(name: str) -> str:
    """The module of the pretrained model that a parameter in an adapter's file adapts.

    Args:
        name: Of a parameter of an adapter, in a file.

    Returns:
        The module's dotted name.
    """
    return name_without_wrappers(ADAPTER_PARAMETER.split(name)[0])


def is_factor_b(name: str) -> bool:
    """Whether a parameter is the factor B of a linear layer's adapter."""
    return FACTOR_B.search(name) is not None


def is_trainable_by_name(name: str) -> bool:
    """Whether PEFT trains a parameter of this name: an adapter's, a copied module's or a token's."""
    return TRAINABLE_PARAMETER.search(name) is not None


def is_added_by_peft(name: str) -> bool:
    """Whether the pretrained model has no such parameter: an adapter's, or the frozen copy of a module that trains."""
    return ADDED_PARAMETER.search(f".{name}") is not None


def is_part_of_peft(name: str) -> bool:
    """Whether only a model that PEFT wraps has such a tensor: an adapter's, or one of a module with an adapter."""
    return PARTS_OF_PEFT.search(f".{name}") is not None


def name_without_copies(name: str) -> str | None:
    """The name that a parameter has in a model without PEFT's copies of modules that train in full.

    Args:
        name: Dotted, in the pretrained model with adapters in place.

    Returns:
        The name; `None` for a parameter of the frozen original, whose place the trained copy takes.
    """
    return None if ".original_module." in name else name.replace(f".modules_to_save.{ADAPTER}.", ".")


def is_trained_copy(name: str) -> bool:
    """Whether a parameter belongs to the copy of a module that PEFT trains in full."""
    return f".modules_to_save.{ADAPTER}." in name


def name_saved_once(name: str) -> str:
    """The name under which an adapter's file holds a copied module's weight, which PEFT may have saved twice."""
    return name.replace(".modules_to_save.", ".")


def plain_name(name: str) -> str | None:
    """The name that a parameter or buffer has in a plain transformers model, once PEFT is out of it.

    Args:
        name: Dotted, in a PEFT model or in the pretrained model with adapters in place.

    Returns:
        The name; `None` for what only PEFT has: adapters, and the frozen copy of a module that is trained in full.
    """
    if is_added_by_peft(name) or (copied := name_without_copies(name)) is None:
        return None
    return name_without_wrappers(copied).replace(".token_adapter", "")


def adapted_module_name(name: str) -> str:
    """The module of the pretrained model that a parameter belongs to.

    Args:
        name: Of the parameter, in a task, in a PEFT model or in the pretrained model itself.

    Returns:
        The module's dotted name in the pretrained model; for a parameter that PEFT added the module that it adapts.
    """
    path = pretrained_name(name)
    clean = PARTS_OF_PEFT.sub("", path)
    # The last part is the parameter's own name, unless PEFT keeps it in a dictionary (lora_embedding_A.default).
    return clean if KEYED_BY_ADAPTER.search(path) else clean.rpartition(".")[0]
