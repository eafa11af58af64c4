"""Whether merged weights are W + dW: a merge is wrong in its weights long before 16-bit outputs show it.

Rounding errors are as often positive as negative and independent of dW, so they cancel in the projection of a merge's
error onto dW, while a wrong scaling adds up over the entries of a layer.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_lightning.analysis.spectrum import in_float64

# The largest error that rounding explains, relative to that of rounding once. PEFT rounds twice in 16 bits; in float32
# the order of summation matters too, and any fault is far above.
ROUNDINGS, ROUNDINGS_FLOAT32 = 2.0, 20.0
LOST = 0.005  # of the update; or so many standard deviations of what rounding leaves of it, if that is more
DEVIATIONS = 6.0


@dataclass(frozen=True)
class MergedLayer:
    """How one layer's merged weight differs from W + dW.

    Attributes:
        recovered: The share of dW that is in it: 1 if it is merged, 0 if not, 2 with twice the scaling; NaN for a zero
            update.
        uncertainty: The standard deviation of `recovered` under rounding alone.
        roundings: The error's norm over that of rounding once to the dtype; infinity if the weight is not finite.
        is_float32: Whether the weight is kept in 32 bits, or more.
    """

    recovered: float
    uncertainty: float
    roundings: float
    is_float32: bool

    @property
    def fault(self) -> str | None:
        """What is wrong, as the end of a sentence; `None` if this is W + dW to rounding."""
        if not self.roundings < float("inf"):
            return "is not finite"
        allowed = max(LOST, DEVIATIONS * self.uncertainty)
        if abs(1 - self.recovered) > allowed:
            return f"holds {100 * self.recovered:.4g} % of its update"
        if self.roundings > (ROUNDINGS_FLOAT32 if self.is_float32 else ROUNDINGS):
            return f"is off by {self.roundings:.3g} times what rounding explains"
        return None


@torch.no_grad()
def compare_merged_weight(found: Tensor, base: Tensor, expected: Tensor) -> MergedLayer:
    """Compares one layer.

    Args:
        found: The merged weight, (out_features, in_features), in the dtype in which it is kept.
        base: W, the same shape, float32.
        expected: W + dW, float32, before it is rounded.

    Returns:
        The difference.
    """
    dtype = found.dtype if found.is_floating_point() else torch.float32
    is_float32 = torch.finfo(dtype).eps <= torch.finfo(torch.float32).eps
    update = in_float64(expected - base)
    error = in_float64(found) - in_float64(expected.to(dtype))
    one = torch.finfo(dtype).eps * in_float64(expected).abs() / 12**0.5
    rounding = float((one + torch.finfo(torch.float32).eps * in_float64(base).abs()).norm())
    size = float(update.square().sum())
    if not torch.isfinite(error).all():
        return MergedLayer(float("nan"), float("nan"), float("inf"), is_float32)
    roundings = float(error.norm()) / rounding if rounding else float("inf") * bool(error.any())
    if not size:
        return MergedLayer(1.0, 0.0, roundings, is_float32)
    # An entry that PEFT rounds another way than `expected` is one unit in the last place off; few are.
    share = float((error * update).sum()) / size
    spread = float((one * update).norm()) / size
    return MergedLayer(1 + share, spread, roundings, is_float32)


@torch.no_grad()
def first_other_weight(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str | None:
    """The first weight beside the adapted ones that a merged model has otherwise.

    Args:
        found: The merged model's, by name.
        expected: What they have to be, exactly, by name.

    Returns:
        What is wrong, such as `classifier.bias differs from the checkpoint's`; `None` if nothing is.
    """
    for name, tensor in expected.items():
        if name not in found:
            return f"{name} is missing"
        own = found[name]
        if own.shape != tensor.shape or not torch.equal(own, tensor.to(own)):
            return f"{name} differs from the checkpoint's"
    return None
