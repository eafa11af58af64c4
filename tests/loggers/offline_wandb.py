"""What Weights & Biases has written offline and would upload."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7  # bytes; the format is LevelDB's log


@dataclass
class OfflineRun:
    """One session of a run.

    Attributes:
        id: That W&B gives the run.
        name: As it is displayed.
        history: Values by key, in the order of logging, each with the step.
        config: Values by key.
        summary: What was set in the summary itself.
        exit_code: How the process ended.
        folder: Of the files.
    """

    folder: Path
    id: str = ""
    name: str = ""
    history: dict[str, list[tuple[int, Any]]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


def read_offline(save_dir: Path) -> list[OfflineRun]:
    """The runs below `<save_dir>/wandb`, oldest first."""
    return [_read(path) for path in sorted(save_dir.glob("wandb/offline-run-*/run-*.wandb"))]


def _read(path: Path) -> OfflineRun:
    run = OfflineRun(path.parent)
    for record in map(Record.FromString, _chunks(path.read_bytes())):
        if record.HasField("run"):
            run.id, run.name = record.run.run_id, record.run.display_name
        if record.HasField("exit"):
            run.exit_code = record.exit.exit_code
        run.config |= _values(record.config.update)
        run.summary |= _values(record.summary.update)
        row = _values(record.history.item)
        for key, value in row.items():
            run.history.setdefault(key, []).append((row.get("trainer/global_step", -1), value))
    return run


def _values(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        first, *rest = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        if rest:
            found.setdefault(first, {})["/".join(rest)] = value
        else:
            found[first] = value
    return found


def _chunks(content: bytes) -> Iterator[bytes]:
    place, parts = HEADER, b""
    while place + HEADER <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + HEADER])
        parts += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in {1, 4}:  # complete, or its last part
            yield parts
            parts = b""
