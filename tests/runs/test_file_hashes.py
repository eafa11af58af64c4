"""Hashes of large files are cached, and never outlive the content that they are of."""

import hashlib
import os
import time
from pathlib import Path

import pytest

from lora_lightning.runs import file_hashes
from lora_lightning.runs.file_hashes import CACHED_FROM, hash_files

CONTENT = b"a" * CACHED_FROM
OTHER = b"b" * CACHED_FROM


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that was written long ago, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_hashes, "SETTLED_AFTER", 0)
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were read."""
    found: list[Path] = []
    compute = file_hashes._hash
    monkeypatch.setattr(file_hashes, "_hash", lambda path, advance: found.append(path) or compute(path, advance))
    return found


def test_hashes_are_in_the_order_of_the_files(tmp_path: Path) -> None:
    contents = [b"", b"x", b"y" * 10]
    paths = [tmp_path / str(number) for number in range(3)]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    assert hash_files(paths) == [hashlib.sha256(content).hexdigest() for content in contents]
    assert hash_files([]) == []


def test_a_file_is_read_once(file: Path, reads: list[Path]) -> None:
    assert hash_files([file]) == hash_files([file]) == [hashlib.sha256(CONTENT).hexdigest()]
    assert reads == [file]


def test_a_changed_file_of_the_same_size_and_modification_time_is_read_again(file: Path) -> None:
    hash_files([file])
    times = file.stat()
    file.write_bytes(OTHER)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert hash_files([file]) == [hashlib.sha256(OTHER).hexdigest()]


def test_a_file_that_takes_the_place_of_another_is_read_again(file: Path, tmp_path: Path) -> None:
    hash_files([file])
    other, times = tmp_path / "other", file.stat()
    other.write_bytes(OTHER)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(file)
    assert hash_files([file]) == [hashlib.sha256(OTHER).hexdigest()]


def test_a_file_that_has_just_been_written_is_not_cached(
    file: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hashes, "SETTLED_AFTER", 3600)
    hash_files([file])
    hash_files([file])
    assert reads == [file, file]


@pytest.mark.parametrize("spoiled", ["", "{", "[]", '{"state": [1]}', '{"sha256": "0"}'])
def test_a_damaged_cache_is_ignored(file: Path, tmp_path: Path, spoiled: str) -> None:
    hash_files([file])
    (entry,) = (tmp_path / "cache/lora_lightning/hashes").iterdir()
    entry.write_text(spoiled)
    assert hash_files([file]) == [hashlib.sha256(CONTENT).hexdigest()]


def test_a_cache_that_cannot_be_written_only_costs_time(file: Path, reads: list[Path], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    hash_files([file])
    assert hash_files([file]) == [hashlib.sha256(CONTENT).hexdigest()]
    assert reads == [file, file]


def test_a_file_that_changes_while_it_is_read_is_not_cached(
    file: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_hashes, "BLOCK", CACHED_FROM // 2)
    file_hashes._hash(file, lambda _: (time.sleep(0.02), file.touch()))
    reads.clear()
    hash_files([file])
    assert reads == [file]
