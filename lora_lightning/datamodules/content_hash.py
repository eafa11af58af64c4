"""A hash of a data set's rows, which tells whether they are the same as those of another run."""

import hashlib
import json
from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np


def content_hash(value: Any) -> str:
    """Hashes rows.

    Args:
        value: What JSON can hold, with dataclasses and NumPy arrays in it.

    Returns:
        SHA-256 as hexadecimal digits, the same on every machine.
    """
    return hashlib.sha256(json.dumps(value, default=_plain).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, np.ndarray):
        return [str(value.dtype), list(value.shape), hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()]
    return str(value)
