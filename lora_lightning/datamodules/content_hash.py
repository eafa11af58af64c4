"""A hash of a data set's rows, which tells whether they are the same as those of another run."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sized
from collections.abc import Set as AbstractSet
from dataclasses import asdict, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # in the text of an object that says nothing about its content


def content_hash(value: Any) -> str:
    """Hashes rows.

    Args:
        value: What JSON can hold, with dataclasses, NumPy arrays, tensors, and tables of pandas, polars, pyarrow and
            `datasets` in it. Fields of dataclasses that do not count in comparisons (`compare=False`), such as where a
            row was read, do not count here.

    Returns:
        SHA-256 as hexadecimal digits, the same on every machine.
    """
    return hashlib.sha256(json.dumps(value, default=_plain).encode()).hexdigest()


def former_content_hash(value: Any) -> str:
    """Hashes rows as releases before `content_hash` did, to compare them with runs of these releases.

    It counts where a row was read, and of tables and unknown objects their printed text only.

    Args:
        value: As in `content_hash`.

    Returns:
        SHA-256 as hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(value, default=_formerly_plain).encode()).hexdigest()


def has_places(rows: Any) -> bool:
    """Whether rows say where they were read, which `former_content_hash` counts.

    Args:
        rows: Of a split: a dataclass, or a list of them.
    """
    row = rows[0] if isinstance(rows, list) and rows else rows
    return is_dataclass(row) and any(not field.compare for field in fields(row))


def compared_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that make it equal to another one.

    Args:
        value: An object of a dataclass.

    Returns:
        Values by name.

    Raises:
        TypeError: If it is something else.
    """
    if not is_dataclass(value) or isinstance(value, type):
        msg = f"{type(value).__name__} is no dataclass, and nothing that JSON can hold"
        raise TypeError(msg)
    return {field.name: getattr(value, field.name) for field in fields(value) if field.compare}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return compared_fields(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        return _array(value)
    if (columns := _columns(value)) is not None:  # the items of such a table are the names of its columns
        return {str(name): _rows(cells) for name, cells in columns.items()}
    if isinstance(value, AbstractSet):
        return sorted(json.dumps(item, default=_plain) for item in value)
    if not isinstance(value, bytes | bytearray) and isinstance(value, Iterable) and isinstance(value, Sized):
        return _rows(value)
    return _single(value)


def _single(value: Any) -> Any:
    """What has no parts: bytes, a picture, a NumPy number, a date."""
    content = value if isinstance(value, bytes | bytearray) else getattr(value, "tobytes", bytes)()
    if content:
        return [type(value).__name__, hashlib.sha256(content).hexdigest()]
    text = str(value)
    if not ADDRESS.search(text):
        return text
    rank_zero_warn(
        f"the data has objects of the class {type(value).__name__}, whose content is not known, so a change of them is "
        "not noticed when a run is resumed or compared; let load_splits return lists, dataclasses or arrays."
    )
    return type(value).__name__


def _columns(value: Any) -> Mapping[Any, Iterable[Any]] | None:
    """The columns of a table of pyarrow, polars or pandas; none of these packages is needed here."""
    if not hasattr(value, "columns"):
        return None
    if hasattr(value, "to_pydict"):
        return value.to_pydict()  # type: ignore[no-any-return]
    if hasattr(value, "to_dicts"):
        return value.to_dict()  # type: ignore[no-any-return]
    return value.to_dict(orient="list") if hasattr(value, "to_dict") else None


def _rows(values: Iterable[Any]) -> list[Any]:
    """One by one: a table of the hub may be larger than memory."""
    digest = hashlib.sha256()
    count = 0
    for count, row in enumerate(values, start=1):  # noqa: B007  # their number, too
        digest.update(json.dumps(row, default=_plain).encode() + b"\n")
    return [count, digest.hexdigest()]


def _array(value: torch.Tensor | np.ndarray[Any, Any]) -> list[Any]:
    if isinstance(value, torch.Tensor):  # its text leaves out the middle
        content = value.detach().cpu().flatten().view(torch.uint8).numpy()
        return [str(value.dtype), list(value.shape), _array(content)]
    if value.dtype.hasobject:  # its bytes are addresses
        return [str(value.dtype), list(value.shape), value.tolist()]
    digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return [str(value.dtype), list(value.shape), digest]


def _formerly_plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return _array(value) if isinstance(value, torch.Tensor | np.ndarray) else str(value)
