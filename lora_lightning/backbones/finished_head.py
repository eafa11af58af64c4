"""The head of a backbone that is a finished classifier: matched to the data's labels by name, or newly initialized."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from lora_lightning.backbones.loading import LoadedBackbone, load_config, load_model
from lora_lightning.backbones.quantization import Quantization
from lora_lightning.compat.transformers import initialize_again

CLASSIFIER = "ForSequenceClassification"  # how transformers ends the names of all such classes
SHOWN = 4  # labels in a message


def load_sequence_classifier(
    backbone: str, config: PretrainedConfig, quantization: Quantization | None = None, values: bool = True
) -> LoadedBackbone:
    """Loads `AutoModelForSequenceClassification`; a finished head is matched to the labels, or newly initialized.

    Args:
        backbone: Hub id, folder or `package://` name.
        config: From `load_classification_config`.
        quantization: How to quantize the base; `None` loads it in float32.
        values: As in `load_model`.

    Returns:
        The model and what its checkpoint lacked.

    Raises:
        BackboneError: If the weights cannot be found or do not fit the architecture.
    """
    loaded = load_model(AutoModelForSequenceClassification, backbone, config, quantization, values=values)
    return match_head_to_labels(loaded, backbone)


def match_head_to_labels(loaded: LoadedBackbone, backbone: str) -> LoadedBackbone:
    """Reorders the rows of a finished classifier's head to the data's labels, or initializes its last layer.

    transformers loads a head by its shape alone, so that its labels would change places. Labels match by name, whatever
    their case and the spaces around them.

    Args:
        loaded: The model with the data's labels in its configuration; its last layer is changed in place. A model on
            the meta device has no values to change.
        backbone: What it was loaded from.

    Returns:
        `loaded`, with the last layer among the modules that the checkpoint lacked if it is not as in the checkpoint,
        and with a sentence if a finished head was newly initialized.
    """
    model, saved = loaded.model, load_config(backbone)
    name = output_layer_name(model)
    if name is None:
        return loaded
    is_new = any(f"{name}.".startswith(f"{module}.") for module in loaded.lacked)
    order = None if is_new else _order_of_rows(saved, model.config)
    if order is not None and order == sorted(order):
        return loaded
    layer = model.get_submodule(name)
    if order is not None:
        _reorder_rows(layer, order)
    elif not is_new:
        initialize_again(model, layer)
    notice = (
        _notice(saved, model.config, backbone)
        if order is None and (is_finished_classifier(saved) or not is_new)
        else ""
    )
    return replace(loaded, lacked=loaded.lacked if is_new else [*loaded.lacked, name], notice=notice)


def output_layer_name(model: PreTrainedModel) -> str | None:
    """The dotted name of the layer that has one row for each label.

    Args:
        model: A classifier, with or without values.

    Returns:
        The last such layer outside the base, for example `classifier.out_proj`; `None` if the architecture has its head
        inside.
    """
    base = f"{model.base_model_prefix}."
    found = None
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if name.startswith(base) or not isinstance(weight, Tensor) or weight.ndim == 1:
            continue
        if len(weight) == model.config.num_labels:
            found = name
    return found


def plain_label(name: str) -> str:
    """What of a label's name is compared: neither its case nor the spaces around it."""
    return name.strip().casefold()


def is_sequence_classifier(model: nn.Module) -> bool:
    """Whether a model is one of transformers' `...ForSequenceClassification`."""
    return type(model).__name__.endswith(CLASSIFIER)


def is_finished_classifier(config: PretrainedConfig) -> bool:
    """Whether a model was saved as one of transformers' `...ForSequenceClassification`."""
    return any(name.endswith(CLASSIFIER) for name in config.architectures or [])


def _order_of_rows(saved: PretrainedConfig, wanted: PretrainedConfig) -> list[int] | None:
    """Which row of the saved head each label has; `None` if the labels or the kind of labels differ."""
    old, new = _plain_names(saved), _plain_names(wanted)
    same_names = sorted(old) == sorted(new) and len(set(new)) == len(new)
    if not is_finished_classifier(saved) or not same_names or _kind(saved) not in {None, _kind(wanted)}:
        return None
    return [old.index(name) for name in new]


def _kind(config: PretrainedConfig) -> str | None:
    """The kind of labels; transformers takes a single output without a kind for a regression's."""
    kind: str | None = config.problem_type
    return "regression" if kind is None and config.num_labels == 1 else kind


def _plain_names(config: PretrainedConfig) -> list[str]:
    return [plain_label(name) for name in _names(config)]


def _names(config: PretrainedConfig) -> list[str]:
    return [str(name) for _, name in sorted((config.id2label or {}).items())]


@torch.no_grad()
def _reorder_rows(layer: nn.Module, order: list[int]) -> None:
    for parameter in layer.parameters():
        parameter.copy_(parameter[order].clone())


def _notice(saved: PretrainedConfig, wanted: PretrainedConfig, backbone: str) -> str:
    old = f"{saved.num_labels} labels ({_listed(saved)})" if is_finished_classifier(saved) else "another task"
    return (
        f"the backbone {backbone!r} has a finished head for {old}, which does not match the labels of the data "
        f"({_listed(wanted)}); its last layer is newly initialized."
    )


def _listed(config: PretrainedConfig) -> str:
    names = _names(config)
    kind = f"{_kind(config)}: ".replace("_", " ") if _kind(config) not in {None, "single_label_classification"} else ""
    return kind + ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
