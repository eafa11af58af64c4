"""A file or folder is complete or as it was, whatever happens while it is written."""

import errno
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from lora_lightning.errors import TrainingError
from lora_lightning.runs.files import (
    atomic_file,
    atomic_folder,
    remove_drafts,
    save_text,
    write_error,
    write_text_atomically,
)


class Crash(BaseException):
    """What ends the writing in the middle."""


def test_a_file_is_replaced_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_atomically(path, "old")

    def write_half() -> None:
        with atomic_file(path) as file:
            file.write(b"half")
            raise Crash

    with pytest.raises(Crash):
        write_half()
    assert path.read_text() == "old"
    with atomic_file(path, former=tmp_path / "b.txt") as file:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"
    assert (path.read_text(), (tmp_path / "b.txt").read_text()) == ("new", "old")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a.txt", "b.txt"]


def test_a_folder_is_replaced_once_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "adapter"
    for text in ("old", "new"):
        with atomic_folder(path) as draft:
            (draft / f"{text}.txt").write_text(text)
    assert [entry.name for entry in path.iterdir()] == ["new.txt"]  # nothing of the former one is mixed in

    def write_half() -> None:
        with atomic_folder(path) as draft:
            (draft / "half.txt").touch()
            raise Crash

    with pytest.raises(Crash):
        write_half()
    assert [entry.name for entry in path.iterdir()] == ["new.txt"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_what_a_killed_process_left_is_no_obstacle(tmp_path: Path) -> None:
    for name in (".adapter.draft", ".adapter.former.draft"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old.txt").touch()
    with atomic_folder(tmp_path / "adapter") as draft:
        (draft / "new.txt").touch()
    assert [entry.name for entry in (tmp_path / "adapter").iterdir()] == ["new.txt"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_drafts_go_and_a_folder_that_was_about_to_be_replaced_returns(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".last.ckpt.draft").touch()
    for name in (".adapter.draft", ".adapter.former.draft"):  # killed between the two renames
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").touch()
    remove_drafts(tmp_path)
    assert [entry.name for entry in (tmp_path / "adapter").iterdir()] == [".adapter.former.draft.txt"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter", "checkpoints"]
    assert not list((tmp_path / "checkpoints").iterdir())


def save_tokenizer(path: Path) -> None:
    """With Rust's own file handling, as `save_pretrained` does."""
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(path))  # no password


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
@pytest.mark.parametrize("save", [save_tokenizer, lambda path: path.write_text("{}")], ids=["tokenizers", "Python"])
def test_a_full_disk_is_an_error_of_the_system_whatever_writes(save: Callable[[Path], None], tmp_path: Path) -> None:
    def write() -> None:
        with atomic_folder(tmp_path / "adapter") as draft:
            (draft / "full").symlink_to("/dev/full")
            save(draft / "full")

    with pytest.raises(OSError, match="No space left on device") as raised:
        write()
    assert raised.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def limit_and_save(folder: Path) -> None:
    """Writes tensors that are larger than a file may be, as with `ulimit -f`."""
    import resource  # noqa: PLC0415  # not on Windows

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
    try:
        with atomic_folder(folder) as draft:
            save_file({"a": torch.zeros(10_000)}, draft / "model.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the size of files")
def test_tensors_that_do_not_fit_are_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="File too large") as raised:
        limit_and_save(tmp_path / "adapter")
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(tmp_path / "adapter"))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_a_killed_process_was_about_to_replace_survives_another_failure(tmp_path: Path) -> None:
    former = tmp_path / ".adapter.former.draft"
    former.mkdir()
    (former / "kept").write_text("")

    def fail() -> None:
        with atomic_folder(tmp_path / "adapter"):
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (tmp_path / "adapter" / "kept").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_an_error_of_another_kind_stays_what_it_is(tmp_path: Path) -> None:
    def write() -> None:
        with atomic_folder(tmp_path / "adapter"):
            raise KeyError("os error 28")

    with pytest.raises(KeyError):
        write()


def test_a_text_that_cannot_be_saved_is_a_sentence(tmp_path: Path) -> None:
    assert save_text(tmp_path / "a.txt", "old").read_text() == "old"
    with pytest.raises(TrainingError, match=r"b\.txt cannot be written \(No such file or directory\)"):
        save_text(tmp_path / "gone/b.txt", "new")


@pytest.mark.parametrize(("named", "shown"), [("run/adapter", ""), ("run.draft", ""), ("../card.md", ": {}")])
def test_an_error_over_a_file_elsewhere_names_it(tmp_path: Path, named: str, shown: str) -> None:
    file = str((tmp_path / "runs" / named).resolve())
    said = str(write_error(tmp_path / "runs/run", PermissionError(errno.EACCES, "Permission denied", file)))
    assert f"runs/run cannot be written (Permission denied{shown.format(file)});" in said
