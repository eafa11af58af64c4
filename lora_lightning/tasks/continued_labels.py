"""The labels of an adapter that training continues, compared with those of the data."""

import warnings
from collections.abc import Collection, Sequence

from lora_lightning.backbones.adapter_labels import has_numbered_names
from lora_lightning.backbones.finished_head import plain_label
from lora_lightning.errors import CheckpointError
from lora_lightning.metrics import LabelSpace

LABELS_SHOWN = 3


def label_order(own: LabelSpace, space: LabelSpace, source: str) -> list[int] | None:
    """Where each label of the data is in an adapter's head; names match like those of a finished backbone.

    Args:
        own: The adapter's labels.
        space: The labels of the data.
        source: What to call the adapter in messages.

    Returns:
        Row numbers; `None` if the labels are in the same order.

    Raises:
        CheckpointError: If the adapter has other labels, or labels of another kind.
    """
    if own.problem_type != space.problem_type and not has_numbered_names(own):
        msg = (
            f"the adapter {source} has labels of kind {own.problem_type}, but those of the data are of kind "
            f"{space.problem_type}; choose other data, or another adapter."
        )
        raise CheckpointError(msg)
    if own.names == space.names:
        return None
    if has_numbered_names(own) and len(own.names) == len(space.names):
        warnings.warn(
            f"the labels of the adapter {source} have no names, so they are taken to be in the order of the data's: "
            f"{', '.join(space.names)[:200]}.",
            stacklevel=2,
        )
        return None
    order = _matching_order(own.names, space.names)
    if order is None:
        msg = f"the adapter {source} has other labels than the data: {_differences(own.names, space.names)}; "
        raise CheckpointError(msg + "give data with the adapter's labels, or leave model.adapter out.")
    return None if order == sorted(order) else order


def _matching_order(own: Sequence[str], data: Sequence[str]) -> list[int] | None:
    """Where each name of the data is among the adapter's: exactly, or else up to case and surrounding spaces."""
    for old, new in ((own, data), ([plain_label(name) for name in own], [plain_label(name) for name in data])):
        if sorted(old) == sorted(new) and len(set(new)) == len(new):
            return [old.index(name) for name in new]
    return None


def _differences(own: Collection[str], data: Collection[str]) -> str:
    parts = []
    for words, more, less in (("the adapter alone has", own, data), ("the data alone has", data, own)):
        if alone := [name for name in more if name not in set(less)]:
            rest = f" and {len(alone) - LABELS_SHOWN} more" if len(alone) > LABELS_SHOWN else ""
            parts.append(f"{words} {', '.join(alone[:LABELS_SHOWN])}{rest}")
    return "; ".join(parts) or "some occur several times"
