"""How much each label counts in the training loss: from weights by name, or balanced by the training rows."""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.metrics import MULTI_LABEL, OUT_OF_SCOPE_TARGET, REGRESSION, LabelSpace

ClassWeight = Literal["balanced"] | dict[str, float]


def check_class_weight(class_weight: ClassWeight | None, space: LabelSpace) -> None:
    """Refuses weights that do not fit the labels.

    Args:
        class_weight: `model.class_weight`.
        space: The labels.

    Raises:
        ConfigurationError: If the data has no classes, or a label is unknown, or a weight is not a positive number.
    """
    if class_weight is None:
        return
    if space.problem_type == REGRESSION:
        msg = f"model.class_weight is {class_weight!r}, but this data is regression and has no labels; set it to null."
        raise ConfigurationError(msg)
    if class_weight == "balanced":
        return
    if not class_weight:
        msg = "model.class_weight is {}, but needs the weight of at least one label; write balanced, weights or null."
        raise ConfigurationError(msg)
    for name, weight in _by_name(class_weight).items():
        if name not in space.names:
            msg = f"model.class_weight names {name!r}, which is no label; {suggest_names(name, space.names)}"
            if name in ("True", "False"):
                msg = f"{msg.rstrip('.?')}; quote a label that YAML reads as a truth value, such as yes or no."
            raise ConfigurationError(msg)
        if not (math.isfinite(weight) and weight > 0):
            msg = (
                f"model.class_weight of {name!r} is {weight}, but it must be a positive number; to ignore a label, "
                "leave its rows out of the training data."
            )
            raise ConfigurationError(msg)


def class_weights(
    class_weight: ClassWeight, space: LabelSpace, count_rows: Callable[[], tuple[NDArray[np.int64], int]]
) -> tuple[Tensor, str]:
    """The weight of each label.

    `balanced` is rows / (labels * rows of the label), as in scikit-learn, so that all labels together weigh alike; of
    labels without training rows, which do not count as labels, it is 1. With several labels a text, each label is a
    choice of its own between its rows and all others. Without `balanced`, labels that are not named weigh 1.

    Args:
        class_weight: `balanced`, or checked weights by name.
        space: The labels.
        count_rows: Returns the number of training rows of each label, (labels,), and of all; for `balanced`.

    Returns:
        (labels,) float32; for several labels a text (2, labels), first the weights of rows without a label. And a
        sentence about labels that the user may not have thought of, possibly empty.
    """
    if class_weight == "balanced":
        counts, rows = count_rows()
        return _balanced(space, torch.from_numpy(counts).double(), rows)
    named = _by_name(class_weight)
    weights = torch.tensor([named.get(name, 1.0) for name in space.names], dtype=torch.float32)
    rest = len(space.names) - len(named)
    note = f"model.class_weight names {len(named)} of {len(space.names)} labels; the others weigh 1." if rest else ""
    if space.problem_type == MULTI_LABEL:
        weights = torch.stack([torch.ones_like(weights), weights])
    return weights, note


def cell_weights(labels: Tensor, weights: Tensor) -> Tensor:
    """The weight of each term of the loss.

    Args:
        labels: (batch,) int64 class indices, -1 for rows without a class; or (batch, labels) float32 of 0 and 1.
        weights: From `class_weights`, on the same device.

    Returns:
        The shape of `labels`, float32; 0 for a row without a class.
    """
    if weights.dim() > 1:
        return torch.where(labels > 0, weights[1], weights[0])
    return weights[labels.clamp(min=0)] * (labels != OUT_OF_SCOPE_TARGET)


def examples_of(labels: Tensor, weights: Tensor | None) -> float:
    """By what the summed loss of a batch is divided: its rows, or the sum of their weights.

    Args:
        labels: As in `cell_weights`, or (batch,) numbers.
        weights: From `class_weights`; `None` if all rows weigh 1.

    Returns:
        Of several labels a text, the mean over the labels.
    """
    if weights is None:
        return len(labels)
    found = cell_weights(labels, weights).sum()
    return float(found) / (labels.shape[1] if weights.dim() > 1 else 1)


def _balanced(space: LabelSpace, counts: Tensor, rows: int) -> tuple[Tensor, str]:
    if space.problem_type == MULTI_LABEL:
        sizes = torch.stack([rows - counts, counts])
        known = (sizes > 0).all(dim=0)
        weights = torch.where(known, rows / (2 * sizes.clamp(min=1)), 1.0)
        what = "are in no training row, or in every one"
    else:
        known = counts > 0
        weights = torch.where(known, counts.sum() / (known.sum() * counts.clamp(min=1)), 1.0)
        what = "have no training row"
    unknown = [name for name, found in zip(space.names, known.tolist(), strict=True) if not found]
    shown = ", ".join(map(repr, unknown[:5])) + ", ..." * (len(unknown) > 5)  # noqa: PLR2004  # a line
    note = f"model.class_weight is balanced, but {len(unknown)} labels {what} and weigh 1: {shown}." if unknown else ""
    return weights.float(), note


def _by_name(class_weight: Mapping[str, float] | str) -> dict[str, float]:
    """YAML reads an unquoted 0 as a number, but labels are words."""
    return {str(name): weight for name, weight in dict(class_weight).items()}  # type: ignore[arg-type]
