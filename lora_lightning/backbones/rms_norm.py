"""Root mean square norms in one function where they train on a CPU.

Transformers computes them by separate operations, each of which reads and writes all numbers, and the backward pass has
twice as many. In one function both together take less than half of the time.
"""

from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call

EPSILONS = ("variance_epsilon", "eps")  # what architectures call it
TRIAL = (1e-4, 1e-2, 1.0, 100.0)  # sizes of rows; for the small ones epsilon matters
SWITCHED = "trains_in_one_function"  # an attribute of the classes that are made here


class _RmsNorm(torch.autograd.Function):
    """y = w x / sqrt(mean(x^2) + epsilon), with w frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable  # a second derivative would lack terms; now it raises
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        grad = grad * weight
        along = torch.linalg.vecdot(grad, x).unsqueeze(-1).mul_(scale**3).div_(-x.shape[-1])
        return grad.mul_(scale).addcmul_(x, along), None, None


def use_fast_rms_norm(model: nn.Module) -> int:
    """Switches frozen root mean square norms to one function while they train on a CPU in float32, in place.

    Which modules are such norms is found out by trying: architectures have classes of their own, some with another
    formula. What a norm computes in evaluation, its name and its saved files do not change.

    Args:
        model: May be on the meta device.

    Returns:
        How many were switched.
    """
    named = [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]
    norms = [module for module in named if not hasattr(module, SWITCHED) and _is_plain(module)]
    for norm in norms:
        norm.__class__ = _fast_class(type(norm))  # type: ignore[arg-type]  # a class is hashable
    return len(norms)


@cache
def _fast_class(plain: type[nn.Module]) -> type[nn.Module]:
    """A class of norms that differs in nothing but how it trains: not in its name, nor where it is found."""

    @wraps(plain.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        x = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(x, Tensor) and _trains_on_cpu(self, x):
            return _RmsNorm.apply(x, self.weight, _epsilon(self))  # type: ignore[no-untyped-call]
        return plain.forward(self, *args, **kwargs)

    def reduce(self: nn.Module) -> tuple[Any, ...]:
        return _remade, (plain,), self.__dict__  # pickle would take the plain class, which has the same name

    members = {"forward": forward, "__module__": plain.__module__, "__reduce__": reduce, SWITCHED: True}
    return type(plain.__name__, (plain,), members)


def _remade(plain: type[nn.Module]) -> nn.Module:
    fast = _fast_class(plain)  # type: ignore[arg-type]
    return fast.__new__(fast)


def _trains_on_cpu(norm: nn.Module, x: Tensor) -> bool:
    """Whether gradients are computed, but not of the norm's weight, and all is in float32.

    Whether x needs one does not matter: with gradient checkpointing it does everywhere, and numbers stay the same.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    weight = norm.weight
    return (
        isinstance(weight, Tensor)
        and not weight.requires_grad
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == "cpu"
    )


def _epsilon(norm: nn.Module) -> float | None:
    found = [value for name in EPSILONS if isinstance(value := getattr(norm, name, None), float)]
    return found[0] if len(found) == 1 else None


def _is_plain(norm: nn.Module) -> bool:
    """Whether a module is the formula above with a weight and an epsilon, in what it returns and in its gradient."""
    epsilon = _epsilon(norm)
    tensors = {**dict(norm.named_parameters()), **dict(norm.named_buffers())}
    if epsilon is None or list(tensors) != ["weight"] or tensors["weight"].ndim != 1:
        return False
    with torch.device("cpu"), torch.enable_grad(), torch.autocast("cpu", enabled=False):  # `plan` builds on meta
        return _computes(norm, len(tensors["weight"]), epsilon)


def _computes(norm: nn.Module, n: int, epsilon: float) -> bool:
    weight = torch.arange(n).mul(0.7).cos().add(1.5)  # not random: the run's numbers stay the same
    rows = torch.arange(len(TRIAL) * n).mul(1.3).sin().view(len(TRIAL), n)
    x = ((rows + 0.2) * torch.tensor(TRIAL)[:, None]).requires_grad_()
    try:
        theirs = functional_call(norm, {"weight": weight}, (x,))
        (their_grad,) = torch.autograd.grad(theirs, x, rows.flip(0))
    except (AttributeError, RuntimeError, TypeError, ValueError):  # it takes something else
        return False
    ours = _RmsNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    (our_grad,) = torch.autograd.grad(ours, x, rows.flip(0))
    return _agrees(ours, theirs) and _agrees(our_grad, their_grad)


def _agrees(ours: Tensor, theirs: Tensor) -> bool:
    same_kind = ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return same_kind and bool(((ours - theirs).norm(dim=-1) <= 1e-5 * theirs.norm(dim=-1)).all())
