"""Private names of PyTorch 2.13: tensors that have a shape, a dtype and a device, and no values; modes that see all."""

from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["FakeTensorMode", "TorchDispatchMode", "is_fake", "tree_leaves"]


def is_fake(tensor: Tensor) -> bool:
    """Returns whether a tensor has no values, so that nothing may be drawn for it in NumPy."""
    return type(tensor) is FakeTensor
