"""How much memory and time the work of this process takes."""

import sys
import time

import torch


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has held at once.

    Args:
        device: Where it trains.

    Returns:
        Bytes: allocated by PyTorch on a GPU; else resident, 0 on Windows, which does not say.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource  # noqa: PLC0415  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def time_when_idle(device: torch.device) -> float:
    """The clock, in seconds, once the device has done all of its work so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
