"""A file or folder is complete or as it was, whatever happens while it is written."""

from pathlib import Path

import pytest

from lora_lightning.runs.files import atomic_file, atomic_folder, remove_drafts, write_text_atomically


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
