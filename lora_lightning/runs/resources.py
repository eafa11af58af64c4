"""Peak memory of this process, and a clock that waits for the GPU."""

import sys
import time

import torch


def peak_memory(device: torch.device) -> int:
    """Returns the peak memory of this process.

    Args:
        device: The device on which it trains.

    Returns:
        Bytes that PyTorch allocated on a GPU, or else resident memory. 0 on Windows, where it is unknown.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # noqa: PLC0415  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def synchronized_time(device: torch.device) -> float:
    """Returns the time in seconds, after waiting until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
