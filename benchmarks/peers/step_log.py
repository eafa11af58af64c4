"""When steps ended and what they worked on: written by both sides in the same way, so that one formula serves both."""

import json
import os
import time
from pathlib import Path
from typing import Any

FILE = "STEP_LOG"  # environment variable with the file to write to


class StepLog:
    """Records the end of every step; `write` writes all to the file that the environment names.

    Attributes:
        more: Further numbers to write, such as `reached`, the time at which a quality was reached.
    """

    def __init__(self) -> None:
        self.more: dict[str, float] = {}
        self._ends: list[float] = []
        self._masks: list[Any] = []

    def add(self, mask: Any) -> None:
        """Records that a step has ended.

        Args:
            mask: (rows, tokens) of the step's batch, 1 for a token and 0 for padding.
        """
        if not self._ends and mask.is_cuda:
            _wait_for_gpu()
        self._ends.append(time.time())
        self._masks.append(mask)

    def write(self) -> None:
        """Writes the times in seconds since the epoch, the rows and the tokens (without padding) of every step."""
        if self._masks and self._masks[-1].is_cuda:
            _wait_for_gpu()
            self._ends[-1] = time.time()
        found: dict[str, Any] = {
            "ends": self._ends,
            "samples": [len(mask) for mask in self._masks],
            "tokens": [int(mask.sum()) for mask in self._masks],
            **self.more,
            **_gpu_memory(),
        }
        Path(os.environ[FILE]).write_text(json.dumps(found), encoding="utf-8")


def _wait_for_gpu() -> None:
    import torch  # noqa: PLC0415  # whoever has a mask has imported it

    torch.cuda.synchronize()


def _gpu_memory() -> dict[str, float]:
    import torch  # noqa: PLC0415

    return {"gpu_peak_mib": torch.cuda.max_memory_allocated() / 2**20} if torch.cuda.is_available() else {}
