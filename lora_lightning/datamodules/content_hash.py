"""A hash of a data set's rows, which tells whether they are the same as those of another run."""

import hashlib
import json
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np
import torch


def content_hash(value: Any) -> str:
    """Hashes rows.

    Args:
        value: What JSON can hold, with dataclasses, NumPy arrays and tensors in it.

    Returns:
        SHA-256 as hexadecimal digits, the same on every machine.
    """
    return hashlib.sha256(json.dumps(value, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, torch.Tensor):  # its text leaves out the middle
        return [str(value.dtype), list(value.shape), _plain(value.detach().cpu().flatten().view(torch.uint8).numpy())]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    return str(value)
