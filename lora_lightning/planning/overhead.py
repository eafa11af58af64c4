"""What a training takes beside the tensors that PyTorch's operations allocate."""

# Not fitted yet: docs/plan.md has the runs that were measured, and by how much they exceed the tensors.
CPU_BYTES, CPU_SHARE_OF_WEIGHTS, CPU_SHARE_OF_ACTIVATIONS = 0, 0.0, 0.0


def overhead_of(device: str, weights: int, activations: int) -> int:
    """The part of the peak that is no tensor: libraries' memory, fragments of the allocator, scratch space of kernels.

    Args:
        device: `cpu` or `cuda`. On `cuda` the peak is that of PyTorch's allocator, which counts tensors alone.
        weights: In bytes.
        activations: In bytes.

    Returns:
        Bytes.
    """
    if device == "cuda":
        return 0
    return round(CPU_BYTES + CPU_SHARE_OF_WEIGHTS * weights + CPU_SHARE_OF_ACTIVATIONS * activations)
