"""What a training on a CPU takes beside its tensors, which PyTorch's operations allocate."""

MEBIBYTE = 2**20
# Fitted on half of the runs of benchmarks/plan_memory.py and judged on the others; docs/plan.md has the errors.
CPU, QUANTIZED = 94 * MEBIBYTE, 75 * MEBIBYTE


def overhead_of(device: str, *, is_quantized: bool) -> int:
    """The part of the peak that is no tensor: what libraries load and allocate once they are used.

    Args:
        device: `cpu` or `cuda`. On `cuda` the peak is that of PyTorch's allocator, which counts tensors alone.
        is_quantized: Whether bitsandbytes keeps the base in 4 or 8 bits.

    Returns:
        Bytes.
    """
    return 0 if device == "cuda" else CPU + QUANTIZED * is_quantized
