"""When steps ended and what they worked on: written by both sides in the same way, so that one formula serves both."""

import hashlib
import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

FILE = "STEP_LOG"  # environment variable with the file to write to
PACKAGES = ("transformers", "peft", "tokenizers", "accelerate", "bitsandbytes", "datasets", "safetensors", "numpy")
IGNORED = -100  # label of a token that is not learnt


class StepLog:
    """Records the end of every step; `write` writes all to the file that the environment names.

    Args:
        summed: Whether losses are sums over the rows of a batch, or over its labels in a language model; else means.

    Attributes:
        more: Further numbers to write, such as `reached`, the time at which a quality was reached.
    """

    def __init__(self, *, summed: bool = False) -> None:
        self.more: dict[str, float] = {}
        self._summed = summed
        self._ends: list[float] = []
        self._masks: list[Any] = []
        self._losses: list[Any] = []
        self._labels: list[Any] = []

    def describe(self, model: Any) -> None:
        """Counts the parameters that are trained, so that both sides can be seen to train the same ones.

        Args:
            model: As it is trained.
        """
        self.more["trainable"] = sum(each.numel() for each in model.parameters() if each.requires_grad)

    def add(self, mask: Any, loss: Any = None, labels: Any = None) -> None:
        """Records that a step has ended; tensors are read only once all steps are over.

        Args:
            mask: (rows, tokens) of the step's batch, 1 for a token and 0 for padding.
            loss: Of the step, a scalar tensor in nats without label smoothing, if there is one.
            labels: (rows, tokens) of a language model, -100 where nothing is learnt.
        """
        if not self._ends and mask.is_cuda:
            _wait_for_gpu()
        self._ends.append(time.time())
        self._masks.append(mask)
        if loss is not None:
            self._losses.append(loss.detach())
        if labels is not None and labels.ndim > 1:
            self._labels.append(labels)

    def write(self) -> None:
        """Writes the times in seconds since the epoch, rows, tokens (without padding), labels and losses of each step.

        Also the versions of what computed them, and the number of threads.
        """
        on_gpu = bool(self._masks) and self._masks[-1].is_cuda
        if on_gpu:
            _wait_for_gpu()
            self._ends[-1] = time.time()
        labels = [int((each != IGNORED).sum()) for each in self._labels]
        found: dict[str, Any] = {
            "ends": self._ends,
            "samples": [len(mask) for mask in self._masks],
            "tokens": [int(mask.sum()) for mask in self._masks],
            "places": [mask.numel() for mask in self._masks],
            "labels": labels,
            "losses": self._mean_losses(labels),
            "only_ends_count": on_gpu,  # steps are queued there, so that no end between the first and the last is one
            "environment": environment(),
            **self.more,
            **_gpu_memory(),
        }
        Path(os.environ[FILE]).write_text(json.dumps(found), encoding="utf-8")

    def _mean_losses(self, labels: list[int]) -> list[float]:
        losses = [float(loss) for loss in self._losses]
        counts = (labels or [len(mask) for mask in self._masks]) if self._summed else [1] * len(losses)
        return [loss / count for loss, count in zip(losses, counts, strict=True)]


def environment() -> dict[str, Any]:
    """The build of PyTorch, its threads, and the versions of the other packages that this process has imported."""
    import torch  # noqa: PLC0415  # whoever trained has imported it

    return {
        "torch": torch.__version__,
        "torch_build": hashlib.sha256(torch.__config__.show().encode()).hexdigest()[:16],
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in PACKAGES if name in sys.modules},
    }


def _wait_for_gpu() -> None:
    import torch  # noqa: PLC0415  # whoever has a mask has imported it

    torch.cuda.synchronize()


def _gpu_memory() -> dict[str, float]:
    import torch  # noqa: PLC0415

    return {"gpu_peak_mib": torch.cuda.max_memory_allocated() / 2**20} if torch.cuda.is_available() else {}
