"""Peak memory of this process, and a clock that waits for the GPU."""

import sys
import time
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # resets VmHWM, the high-water mark of resident memory; see proc(5)


def device_name(device: torch.device) -> str | None:
    """Returns the model of a GPU, such as `NVIDIA H200`; `None` for a CPU, whose model PyTorch does not know."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


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


def reset_peak_memory(device: torch.device) -> bool:
    """Resets the peak memory of this process, so that `peak_memory_since_reset` counts from now on.

    Args:
        device: The device on which it trains.

    Returns:
        Whether it is reset; resident memory can be on Linux alone.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        CLEAR.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def peak_memory_since_reset(device: torch.device) -> int:
    """Returns the peak memory of this process since a successful `reset_peak_memory`.

    Args:
        device: The device on which it trains.

    Returns:
        Bytes that PyTorch allocated on a GPU, or else resident memory.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = STATUS.read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def synchronized_time(device: torch.device) -> float:
    """Returns the time in seconds, after waiting until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
