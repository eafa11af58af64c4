"""SHA-256 hashes of large files, each computed once until the file changes."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from lora_lightning.runs.files import write_text_atomically
from lora_lightning.runs.user_cache import user_cache_folder

BLOCK = 1 << 22  # bytes that are hashed between two updates of the bar
SHOWN_FROM = 1 << 31  # bytes; fewer take a few seconds
CACHED_FROM = 1 << 20  # bytes; fewer are hashed as fast as their hash is found
# A file that changed this recently (seconds) may change again within the resolution of its time stamp.
SETTLED_AFTER = 2.0


def hash_files(paths: Sequence[Path]) -> list[str]:
    """Hashes files, or finds their hashes in the cache.

    A cached hash counts as long as path, size, inode and both times of the file (of its content and of its status) are
    the same: a file that is replaced by another of the same size and the same modification time is read again.

    Args:
        paths: Existing files.

    Returns:
        SHA-256 as 64 hexadecimal digits for each.

    Raises:
        OSError: If a file cannot be read.
    """
    known = {path: _cached(path) for path in paths}
    missing = [path for path in paths if known[path] is None]
    computed = iter(_hash_all(missing))
    return [known[path] or next(computed) for path in paths]


def _hash_all(paths: Sequence[Path]) -> list[str]:
    total = sum(path.stat().st_size for path in paths)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    shown = total >= SHOWN_FROM and os.environ.get("LOCAL_RANK", "0") == "0"
    with (
        Progress(*columns, console=Console(stderr=True), transient=True, disable=not shown) as progress,
        ThreadPoolExecutor(max_workers=min(8, max(len(paths), 1))) as pool,
    ):
        bar = progress.add_task("hashing the weights of the base model, once", total=total)
        return list(pool.map(lambda path: _hash(path, lambda size: progress.advance(bar, size)), paths))


def _hash(path: Path, advance: Callable[[int], None]) -> str:
    before, digest = _state(path), hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            advance(len(block))
    if before == _state(path):  # or it changed while it was read
        _keep(path, before, digest.hexdigest())
    return digest.hexdigest()


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns]


def _entry(path: Path) -> Path | None:
    """The cache's file for a path; `None` if the hash is not cached."""
    if path.stat().st_size < CACHED_FROM or (folder := user_cache_folder()) is None:
        return None
    return folder / "hashes" / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]}.json"


def _cached(path: Path) -> str | None:
    if (entry := _entry(path)) is None:
        return None
    try:
        kept = json.loads(entry.read_text(encoding="utf-8"))
        return str(kept["sha256"]) if kept["state"] == _state(path) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(path: Path, state: list[int], digest: str) -> None:
    entry = _entry(path)
    if entry is None or time.time() - max(state[2:]) / 1e9 < SETTLED_AFTER:
        return
    with suppress(OSError):  # the next start computes it again
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(entry, json.dumps({"path": str(path.absolute()), "state": state, "sha256": digest}))
