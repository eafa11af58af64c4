"""The labels of a bare classifier: as its run wrote them, as its configuration has them, as its base's, or numbered."""

from collections.abc import Mapping
from typing import Any, get_args

import transformers
from torch import Tensor

from lora_lightning.backbones import load_config
from lora_lightning.backbones.adapter_config import AdapterConfig
from lora_lightning.backbones.export import CONFIG_FOLDER
from lora_lightning.backbones.finished_head import is_finished_classifier, output_layer_name
from lora_lightning.backbones.loading import build_without_storage
from lora_lightning.backbones.model_card import CLASSIFIER
from lora_lightning.errors import CheckpointError
from lora_lightning.lora.parameter_names import pretrained_name
from lora_lightning.metrics import LabelSpace
from lora_lightning.metrics.label_space import MULTI_LABEL, REGRESSION, SINGLE_LABEL, ProblemType

LABELS = "labels.json"  # of a run's export
CONFIG = f"{CONFIG_FOLDER}/config.json"


def read_label_space(config: AdapterConfig, weights: Mapping[str, Tensor]) -> LabelSpace | None:
    """Finds out which labels a classifier has.

    Args:
        config: Of the adapter.
        weights: Of the adapter's file, by PEFT's names.

    Returns:
        The labels; `None` for other models, and for a classifier of which neither a file nor a head says so.

    Raises:
        CheckpointError: If a file of the folder holds something else than labels.
        BackboneError: If the base cannot be found.
    """
    if config.auto_class != CLASSIFIER:
        return None
    if (saved := config.file(LABELS)) is not None:
        return _read(config, LABELS, lambda: _space_of_run(saved))
    if (saved := config.file(CONFIG)) is not None and "id2label" in saved:
        return _read(config, CONFIG, lambda: _space(saved["id2label"], saved.get("problem_type")))
    return _space_of_weights(config, weights)


def has_numbered_names(space: LabelSpace) -> bool:
    """Whether labels are called LABEL_0, LABEL_1 and so on, as transformers calls those without names."""
    return space.names == [f"LABEL_{number}" for number in range(len(space.names))]


def _read(config: AdapterConfig, name: str, read: Any) -> LabelSpace:
    try:
        space: LabelSpace = read()
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        msg = f"{config.folder / name} does not hold a classifier's labels ({error!r}); export the adapter again."
        raise CheckpointError(msg) from error
    return space


def _space_of_run(saved: Mapping[str, Any]) -> LabelSpace:
    names, index = saved["names"], saved.get("out_of_scope_index")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise TypeError(names)
    if index is not None and not 0 <= index < len(names):
        raise ValueError(index)
    return LabelSpace(
        names, index, "out_of_scope_threshold" in saved, problem_type=_checked_kind(saved["problem_type"], len(names))
    )


def _space(names: Mapping[Any, str], kind: str | None) -> LabelSpace:
    by_number = {int(number): str(name) for number, name in names.items()}
    if not by_number:
        raise ValueError(names)
    return LabelSpace(
        [by_number[number] for number in range(len(by_number))], problem_type=_checked_kind(kind, len(by_number))
    )


def _checked_kind(kind: str | None, labels: int) -> ProblemType:
    """The kind of labels; a single output without a kind is a regression's, as in transformers."""
    if kind not in {None, *get_args(ProblemType)}:
        raise ValueError(kind)
    if labels == 1:
        return MULTI_LABEL if kind == MULTI_LABEL else REGRESSION
    return next((known for known in get_args(ProblemType) if known == kind), SINGLE_LABEL)


def _space_of_weights(config: AdapterConfig, weights: Mapping[str, Tensor]) -> LabelSpace | None:
    base = load_config(config.base)
    plain = build_without_storage(transformers.AutoModelForSequenceClassification, base)
    head = {pretrained_name(name): tensor for name, tensor in weights.items()}.get(f"{output_layer_name(plain)}.weight")
    is_finished = is_finished_classifier(base)
    if head is None and not is_finished:
        return None
    rows = int(base.num_labels or 0) if head is None else len(head)
    if is_finished and base.num_labels == rows:
        return _space(base.id2label or {}, base.problem_type)
    return _space({number: f"LABEL_{number}" for number in range(rows)}, None)
