"""A cache only saves time: whatever is wrong with it, the data is tokenized again, with one warning that says why."""

import os
import re
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lora_lightning.datamodules import TextClassificationDataModule, token_cache
from lora_lightning.datamodules.batching import EncodedSplit
from lora_lightning.datamodules.text_base import TextDataModule
from lora_lightning.datamodules.token_cache import cache_file, own_code, read_splits, write_splits
from tests.datamodules.test_base import ROWS, TinyDataModule

SPLITS = {
    "val_a": EncodedSplit(
        np.array([2, 1]),
        {"input_ids": np.array([5, 6, 7], dtype=np.int32)},
        {"labels": np.array([[0.5, 1], [0, 0]], dtype=np.float32)},
        ("two of two.", "ünï"),
    ),
    "val": EncodedSplit(np.array([1]), {"input_ids": np.array([9], dtype=np.int32)}),
    "empty": EncodedSplit(np.zeros(0, dtype=np.int64), {"input_ids": np.zeros(0, dtype=np.int32)}),
}


def assert_equal(found: dict[str, EncodedSplit] | None, expected: dict[str, EncodedSplit]) -> None:
    assert found is not None
    assert found.keys() == expected.keys()
    for name, split in expected.items():
        assert found[name].lengths.tolist() == split.lengths.tolist()
        assert found[name].notes == split.notes
        for columns, wanted in ((found[name].tokens, split.tokens), (found[name].rows, split.rows)):
            assert {key: (value.dtype, value.tolist()) for key, value in columns.items()} == {
                key: (value.dtype, value.tolist()) for key, value in wanted.items()
            }


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "tokenized.safetensors"
    write_splits(path, SPLITS)
    return path


def test_splits_come_back_with_their_notes(file: Path) -> None:
    assert_equal(read_splits(file), SPLITS)
    assert list(file.parent.iterdir()) == [file]


def test_no_file_is_no_cache_and_no_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_splits(tmp_path / "absent") is None
        (tmp_path / "file").write_text("")
        assert read_splits(tmp_path / "file" / "absent") is None


def test_every_flipped_bit_is_noticed(file: Path) -> None:
    content = file.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    padding = set(range(len(content[:header].rstrip(b" ")), header))
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = read_splits(file)
        if place in padding and found is not None:
            continue  # a flipped space after the header changes nothing
        assert found is None, place
        assert f"the tokenized data in {file} is damaged (" in str(said[0].message)


@pytest.mark.parametrize("size", [0, 7, 50, -1])
def test_a_cut_file_is_noticed(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])
    with pytest.warns(UserWarning, match=r"is damaged \(.*\), so the data is tokenized again"):
        assert read_splits(file) is None


def test_a_file_without_a_checksum_is_not_trusted(file: Path) -> None:
    save_file(load_file(file), file)
    with pytest.warns(UserWarning, match="is damaged"):
        assert read_splits(file) is None


def test_an_unreadable_file_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    with pytest.warns(UserWarning, match=r"tokenized\.safetensors cannot be read \(permission denied\), so the data"):
        assert read_splits(file) is None


def test_a_folder_in_the_files_place_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"cannot be read \(is a directory\)"):
        assert read_splits(tmp_path) is None


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_file_that_cannot_be_written_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    wording = f"cannot be cached in {tmp_path} ({error.strerror.lower()}), so every start tokenizes the data again; set"
    with pytest.warns(UserWarning, match=re.escape(wording)):
        write_splits(tmp_path / "tokenized.safetensors", SPLITS)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_while_writing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", crash)
    with pytest.raises(KeyboardInterrupt):
        write_splits(tmp_path / "tokenized.safetensors", SPLITS)
    assert list(tmp_path.iterdir()) == []


def test_two_runs_that_write_at_once_do_not_share_a_draft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, others = tmp_path / "tokenized.safetensors", []
    pid, save = os.getpid(), token_cache.save

    def save_while_another_does(*arguments: Any) -> bytes:
        if not others:
            others.append(True)
            monkeypatch.setattr(os, "getpid", lambda: pid + 1)
            write_splits(path, SPLITS)
            monkeypatch.setattr(os, "getpid", lambda: pid)
        return save(*arguments)

    monkeypatch.setattr(token_cache, "save", save_while_another_does)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_splits(path, SPLITS)
        assert_equal(read_splits(path), SPLITS)


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # as of a UID that only the container knows
    assert cache_file(None, ["part"]) is None
    assert cache_file("~/cache", ["part"]) is None
    assert cache_file(str(tmp_path), ["part"]) is not None


# Within a data module


def started(**settings: Any) -> TinyDataModule:
    module = TinyDataModule(**settings)
    module.prepare_data()
    module.prepare_data()  # the trainer's own call
    module.setup("fit")
    module.setup("test")
    return module


def assert_usable(module: TinyDataModule) -> None:
    for split, rows in ROWS.items():
        assert module.splits[split][range(len(rows.texts))]["labels"].tolist() == rows.labels


def test_a_damaged_cache_is_written_again(backbone: str, tmp_path: Path) -> None:
    settings = {"backbone": backbone, "cache_dir": str(tmp_path / "cache")}
    path = started(**settings).cache_file
    assert path is not None
    whole, content = read_splits(path), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(UserWarning, match="is damaged") as said:
        assert_usable(started(**settings))
    assert len(said) == 1
    assert whole is not None
    assert_equal(read_splits(path), whole)


@pytest.mark.parametrize("cache", ["file", "file/deep", "/proc/nowhere"])
def test_training_goes_on_without_a_cache(backbone: str, tmp_path: Path, cache: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be cached in") as said:
        module = started(backbone=backbone, cache_dir=str(tmp_path / cache))
    assert len(said) == 1
    assert_usable(module)


def test_training_goes_on_without_a_home(backbone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    with pytest.warns(UserWarning, match="is not cached, because this user has no home folder, so every") as said:
        module = started(backbone=backbone)
    assert len(said) == 1
    assert_usable(module)


OWN = """
from tests.datamodules.test_base import TinyDataModule


class Own(TinyDataModule):
    def encode(self, split, rows):
        rows = type(rows)([text + " {word}" for text in rows.texts], rows.labels, rows.pairs)
        return super().encode(split, rows)
"""


def loaded(path: Path, word: str) -> ModuleType:
    path.write_text(OWN.replace("{word}", word))
    module = ModuleType("own_data")
    module.__file__ = str(path)
    sys.modules["own_data"] = module
    exec(compile(path.read_text(), path, "exec"), module.__dict__)  # noqa: S102  # an import would read a .pyc
    return module


def test_an_edited_data_module_is_tokenized_again(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "own_data", ModuleType("own_data"))
    settings = {"backbone": backbone, "cache_dir": str(tmp_path / "cache")}

    def tokens(word: str) -> tuple[list[int], Path | None]:
        module = loaded(tmp_path / "own_data.py", word).Own(**settings)
        module.prepare_data()
        module.setup("fit")
        return module.splits["train"][range(1)]["input_ids"].flatten().tolist(), module.cache_file

    first, file = tokens("w1")
    assert tokens("w1") == (first, file)
    second, other = tokens("w2 w3")
    assert len(second) > len(first)
    assert other != file


def test_a_class_without_source_is_not_cached(backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_data", ModuleType("own_data"))
    module = loaded(tmp_path / "own_data.py", "w1")
    del module.__file__
    assert own_code(module.Own, TextDataModule) is None
    assert own_code(TextClassificationDataModule, TextDataModule) == []
    data = module.Own(backbone=backbone, cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    assert not (tmp_path / "cache").exists()
