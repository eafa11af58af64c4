"""What the machine can do at most: dense matrix products, and copies in memory; writes the rate to `STEP_LOG`."""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from peers.step_log import FILE

SIZE, GPU_SIZE = 2048, 8192  # rows and columns of the products
GPU_CALLS = 20  # before the CPU waits for them; a product would take less than the wait
COPIED = 2**28  # bytes


def rate(work: Callable[[], object], amount: float, seconds: float) -> float:
    """Runs something again and again.

    Args:
        work: What.
        amount: How much one call does.
        seconds: For how long.

    Returns:
        Amount a second.
    """
    work()
    _wait()
    start, count = time.perf_counter(), 0
    calls = GPU_CALLS if _device() == "cuda" else 1
    while time.perf_counter() - start < seconds:
        for _ in range(calls):
            work()
        _wait()
        count += calls
    return amount * count / (time.perf_counter() - start)


def product_gflops(dtype: torch.dtype, seconds: float) -> float:
    """Speed of products of 2048 x 2048 matrices (8192 x 8192 on a GPU), in 10^9 operations a second."""
    size = GPU_SIZE if _device() == "cuda" else SIZE
    a, b = (torch.randn(size, size, device=_device()).to(dtype) for _ in range(2))
    return rate(lambda: a @ b, 2 * size**3 / 1e9, seconds)


def copied_gigabytes(seconds: float) -> float:
    """Bandwidth of copies of 256 MiB, in 10^9 bytes a second that are read or written."""
    source = torch.ones(COPIED, dtype=torch.uint8, device=_device())
    target = torch.empty_like(source)
    return rate(lambda: target.copy_(source), 2 * COPIED / 1e9, seconds)


def main() -> None:
    """Measures one limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["float32", "bfloat16", "copies"])
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    if options.what == "copies":
        found = copied_gigabytes(options.seconds)
    else:
        found = product_gflops(getattr(torch, options.what), options.seconds)
    Path(os.environ[FILE]).write_text(json.dumps({"rate": found}), encoding="utf-8")


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
