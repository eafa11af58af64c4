"""Check that a checkpoint holds all of the pretrained model, and nothing of it that the model would leave out."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lora_lightning.backbones.vocabulary import text_config_of
from lora_lightning.compat.transformers import ignored_weights
from lora_lightning.errors import BackboneError
from lora_lightning.lora.injection import HEADS, newly_initialized_modules
from lora_lightning.lora.parameter_names import is_part_of_peft

POOLER = "pooler"
# Constants that older releases of transformers saved, and a format version of fairseq's.
CONSTANTS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|(cos|sin)_cached|masked_bias|causal_mask|num_batches_tracked|version)$"
)
# Buffers that pretraining changed, as it changes parameters; all others are constants that the model makes itself.
LEARNT_BUFFERS = re.compile(r"(^|\.)(e_score_correction_bias|balancing_biases|layer_scalar)$")
SHOWN = 3  # names in a message


def check_complete(
    model: PreTrainedModel, info: Mapping[str, Any], backbone: str, names_of_base: Callable[[], Collection[str]]
) -> list[str]:
    """Refuses weights that lack a part of the pretrained model, or hold a part that the model does not have.

    Only a head and a pooler may be new, and only those of another task may be left over, beside what transformers
    itself ignores for the architecture.

    Args:
        model: As it was loaded; may be on the meta device.
        info: The loading info of `from_pretrained`.
        backbone: What to call the weights in messages.
        names_of_base: Returns the names of all tensors of the architecture without a head; called only if weights are
            left over, since some heads use a part of the architecture.

    Returns:
        Dotted names of the modules that are new: a head, a pooler, or both.

    Raises:
        BackboneError: If anything else is missing or left over; names the modules and how many there are.
    """
    missing, unfit = set(info["missing_keys"]), [name for name, *_ in info["mismatched_keys"]]
    is_base = _belongs_to_base(model)
    _refuse_adapters(info["unexpected_keys"], backbone)
    prefix = f"{model.base_model_prefix}."
    if wrong := sorted(name for name in unfit if is_base(name) or name.startswith(prefix)):
        _refuse_other_architecture(backbone, wrong[0])
    lacked = newly_initialized_modules(model, {*missing, *unfit})
    absent = _parts([name for name in _needed(model) if name in missing and is_base(name)], model)
    surplus = _left_over(model, info["unexpected_keys"], names_of_base)
    surplus += _left_over_of_heads(model, info["unexpected_keys"], lacked)
    if model.base_model_prefix in lacked:
        _refuse_other_architecture(backbone, f"all of {model.base_model_prefix}.*")
    faults = [*_clause("lack", absent), *_clause("also hold", surplus)]
    if faults:
        reason = (
            "which the model would have to start from random values" if absent else "which the model has no place for"
        )
        msg = (
            f"the weights of {backbone!r} {' and '.join(faults)}, {reason}: config.json describes "
            "another model, or the file is incomplete; download the model again, or save it again with save_pretrained."
        )
        raise BackboneError(msg)
    new = [name for name in missing if not is_base(name) and name in _needed(model)]
    if holes := sorted(name for name in new if not any(name.startswith(f"{module}.") for module in lacked)):
        msg = (
            f"the weights of {backbone!r} lack {holes[0]} (one of {len(holes)}), but not the rest of its module: "
            "the file is incomplete; download or save the model again."
        )
        raise BackboneError(msg)
    return lacked


def check_gguf_layers(model: PreTrainedModel, path: Path, backbone: str) -> None:
    """Refuses a GGUF file with more layers than its header announces, of which transformers says nothing.

    Args:
        model: As it was loaded.
        path: The file.
        backbone: What to call it in messages.

    Raises:
        BackboneError: If it has such layers.
    """
    from gguf import GGUFReader  # noqa: PLC0415  # an optional package

    layers = int(text_config_of(model.config).num_hidden_layers)
    names = [str(tensor.name) for tensor in GGUFReader(str(path)).tensors]
    numbers = [(int(found[1]), name) for name in names if (found := re.match(r"blk\.(\d+)\.", name))]
    extra = {number for number, name in numbers if ".nextn." in name}  # for speculative decoding
    surplus = sorted({number for number, _ in numbers if number >= layers} - extra)
    if surplus:
        msg = (
            f"the weights of {backbone!r} also hold {_listed([f'blk.{number}' for number in surplus])}, but the file's "
            f"own header announces {layers} layers; download or convert the model again."
        )
        raise BackboneError(msg)


def _refuse_other_architecture(backbone: str, first: str) -> None:
    msg = (
        f"the weights of {backbone!r} do not fit its config.json, {first} first: the architecture or a size differs; "
        "save the model again with its own configuration."
    )
    raise BackboneError(msg)


def _refuse_adapters(unexpected: Iterable[str], backbone: str) -> None:
    if marked := sorted(name for name in unexpected if is_part_of_peft(name)):
        msg = (
            f"the weights of {backbone!r} hold {_listed(marked)}: they were saved with an adapter around the "
            "model's own layers; load them with PEFT, call merge_and_unload() or unload(), and save the model again."
        )
        raise BackboneError(msg)


def _needed(model: nn.Module) -> list[str]:
    """Parameters, and buffers that pretraining changes, in the model's order."""
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return parameters + [name for name, _ in model.named_buffers() if LEARNT_BUFFERS.search(name)]


def _belongs_to_base(model: PreTrainedModel) -> Callable[[str], bool]:
    """Whether a name in the model belongs to the base, of which everything but a pooler must be in the checkpoint."""
    prefix = model.base_model_prefix
    if hasattr(model, prefix):
        heads = {name for name, _ in model.named_children() if name != prefix}
    else:  # T5's question answerer has the encoder and the decoder beside its head
        head = model.get_output_embeddings()
        heads = {name for name, module in model.named_children() if name.endswith(HEADS) or module is head}

    def is_base(name: str) -> bool:
        first, *rest = name.split(".")
        return first not in heads and POOLER not in rest

    return is_base


def _left_over(
    model: PreTrainedModel, unexpected: Collection[str], names_of_base: Callable[[], Collection[str]]
) -> list[str]:
    """What the checkpoint holds of the base and the model has no place for, grouped by module."""
    base, prefix = model.base_model, f"{model.base_model_prefix}."
    parts = {name for name, _ in base.named_children()}
    buffers = {name.removeprefix(prefix) for name, _ in model.named_buffers()}
    ignored = ignored_weights(model)

    def is_surplus(name: str) -> bool:
        inner = name.removeprefix(prefix)
        of_base = inner != name or inner.partition(".")[0] in parts
        harmless = inner in buffers or CONSTANTS.search(name) or POOLER in inner.split(".") or ignored(name)
        return of_base and not harmless and not _is_prediction_layer(model, inner)

    surplus = [name for name in unexpected if is_surplus(name)]
    if surplus:
        known = {name.removeprefix(prefix) for name in names_of_base()}
        surplus = [name for name in surplus if name.removeprefix(prefix) not in known]
    return _parts(
        [prefix + name.removeprefix(prefix) if model.base_model is not model else name for name in surplus], model
    )


def _left_over_of_heads(model: PreTrainedModel, unexpected: Collection[str], lacked: Collection[str]) -> list[str]:
    """What the checkpoint holds of a head that is loaded from it, such as a bias that the model's own has not."""
    if model.base_model is model:  # all of its parts are the base's
        return []
    heads = {name for name, module in model.named_children() if module is not model.base_model}
    loaded = heads - {module.partition(".")[0] for module in lacked}
    buffers, ignored = {name for name, _ in model.named_buffers()}, ignored_weights(model)
    names = [name for name in unexpected if name.partition(".")[0] in loaded and name not in buffers]
    return _parts([name for name in names if not ignored(name)], model)


def _is_prediction_layer(model: PreTrainedModel, name: str) -> bool:
    """Whether a tensor is of the layers after the last one, which predict several tokens ahead (DeepSeek-V3, GLM 4)."""
    config = text_config_of(model.config)
    extra, layers = getattr(config, "num_nextn_predict_layers", 0) or 0, getattr(config, "num_hidden_layers", 0)
    found = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return found is not None and layers <= int(found[1]) < layers + extra


def _parts(names: Iterable[str], model: nn.Module) -> list[str]:
    """The largest modules that tensors are all of, or lie in although the model has no such module."""
    names = list(names)
    existing = {name for name, _ in model.named_modules()}
    complete = newly_initialized_modules(model, names)
    found: dict[str, None] = {}
    for name in sorted(names, key=_in_order_of_numbers):
        words = name.split(".")
        outer = [".".join(words[:end]) for end in range(1, len(words) + 1)]
        found[next(part for part in outer if part in complete or part not in existing)] = None
    return list(found)


def _in_order_of_numbers(name: str) -> list[tuple[int, str]]:
    return [(int(word), "") if word.isdigit() else (-1, word) for word in name.split(".")]


def _clause(verb: str, parts: list[str]) -> list[str]:
    return [f"{verb} {_listed(parts)}"] if parts else []


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"
