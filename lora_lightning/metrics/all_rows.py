"""Metrics that keep every row of a split and compute in float64 once all processes have shared theirs."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

Array = NDArray[np.float64]


class AllRowsMetric(Metric):
    """A value of all rows, computed on the CPU in float64: running float32 sums lose digits, and MPS has no float64.

    Args:
        value: Takes the columns as NumPy arrays, (rows,) each: float64 for floating columns, int64 for others.
        columns: dtype of each column, by name, in which it is kept on the device.
    """

    full_state_update = False

    def __init__(self, value: Callable[..., Any], columns: Mapping[str, torch.dtype]) -> None:
        super().__init__()
        self.value = value
        self.columns = dict(columns)
        for name in columns:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, *columns: Tensor) -> None:
        """Adds rows.

        Args:
            columns: (rows,) each, any dtype and floating type.
        """
        for (name, dtype), column in zip(self.columns.items(), columns, strict=True):
            getattr(self, name).append(column.detach().reshape(-1).to(dtype))

    def sync(self, *arguments: Any, **more: Any) -> None:
        """Shares the rows of all processes; one without rows takes part with none of the right dtype."""
        self._fill_empty_columns()
        super().sync(*arguments, **more)

    def compute(self) -> Any:
        """What `value` returns; a number as a float64 scalar on the CPU."""
        self._fill_empty_columns()
        columns = [dim_zero_cat(getattr(self, name)).cpu() for name in self.columns]
        found = self.value(*(c.double().numpy() if c.is_floating_point() else c.long().numpy() for c in columns))
        return torch.tensor(found, dtype=torch.float64) if isinstance(found, float) else found

    def _fill_empty_columns(self) -> None:
        for name, dtype in self.columns.items():
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                setattr(self, name, [torch.empty(0, dtype=dtype, device=self.device)])


class WeightedMean(AllRowsMetric):
    """Mean of numbers, each with a weight; NaN if any of them is, whereas torchmetrics' `MeanMetric` drops it.

    A number of weight 0, such as the mean loss of a batch without labels, does not count, whatever it is.
    """

    def __init__(self) -> None:
        super().__init__(_weighted_mean, {"number": torch.float32, "weight": torch.float32})

    def update(self, number: Tensor, weight: Tensor | float = 1.0) -> None:  # type: ignore[override]
        """Adds numbers.

        Args:
            number: Any shape, floating.
            weight: One weight for all of them, such as the rows of a batch whose mean `number` is.
        """
        super().update(number, torch.as_tensor(weight, device=number.device).expand_as(number))


def _weighted_mean(numbers: Array, weights: Array) -> float:
    counted = weights != 0
    return float(np.average(numbers[counted], weights=weights[counted])) if counted.any() else float("nan")
