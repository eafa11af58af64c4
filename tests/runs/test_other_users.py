"""Folders and files that this user may not read or write: a sentence, or a warning, never a traceback."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lora_lightning.cli.main import main
from tests.cli.test_commands import Words, fit_words
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150

NOBODY = 65534
CHECKPOINT = "run/version_0/checkpoints/best.ckpt"


@contextmanager
def as_other_user() -> Iterator[None]:
    """Root may do everything, so the process is another user for a while; other users stay who they are."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture(scope="module")
def finished(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Words]:
    """A place that belongs to nobody, with a backbone, data and a finished run, and the command that made it."""
    libraries = Path(sys.prefix)
    if os.geteuid() == 0 and any(folder.stat().st_mode & 0o5 != 0o5 for folder in [libraries, *libraries.parents]):
        pytest.skip(f"no other user may read {libraries}; .ci/run uses an environment that all may read")
    place = tmp_path_factory.mktemp("place")
    shutil.copytree(tiny_backbone("bert"), place / "backbone")
    save_tiny_clinc150(place / "data")
    words = fit_words(place / "backbone", place / "data", place, "--trainer.max_steps=1")
    assert main(words) == 0
    for path in [place, *place.rglob("*")]:
        if os.geteuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        path.chmod(0o755)
    for folder in place.parents:
        if folder.stat().st_mode & 0o5 != 0o5 and folder.stat().st_uid == os.geteuid() and "pytest" in str(folder):
            folder.chmod(0o755)
    return place, words


Command = Callable[[Path, Words], Words]


def again(_: Path, words: Words) -> Words:
    return words


def resume(_: Path, words: Words) -> Words:
    return [*words, "--resume=auto"]


def evaluation(place: Path, _: Words) -> Words:
    return ["test", f"--config={place / 'run/version_0/config.yaml'}", f"--ckpt_path={place / CHECKPOINT}"]


@pytest.mark.skipif(os.name != "posix", reason="permissions as POSIX has them")
@pytest.mark.parametrize(
    ("path", "mode", "command", "status", "said"),
    [
        ("backbone", 0, again, 2, "backbone/"),
        ("data", 0, again, 2, "cannot be read"),
        ("run", 0o555, again, 2, "is not writable (Permission denied); set --trainer.logger"),
        ("run/version_0", 0, resume, 0, ""),  # another user's run is not this one
        ("run/version_0/config.yaml", 0, resume, 0, ""),
        ("run/version_0/summary.json", 0, resume, 2, "summary.json cannot be read or written (permission denied)"),
        ("run/version_0/checkpoints", 0, evaluation, 2, "best.ckpt cannot be read or written (permission denied)"),
        (CHECKPOINT, 0, evaluation, 2, "cannot be read at the moment (Permission denied)"),
        (
            "run/version_0/config.yaml",
            0,
            evaluation,
            2,
            "config.yaml cannot be read (Permission denied); check the path",
        ),
        ("cache", 0, again, 0, "cannot be cached in"),
    ],
)
def test_what_may_not_be_read_or_written_is_a_sentence(
    finished: tuple[Path, Words],
    path: str,
    mode: int,
    command: Command,
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    place, words = finished
    before = set((place / "run").iterdir())
    (place / path).chmod(mode)
    if os.geteuid() == 0:
        os.chown(place / path, 0, 0)
    try:
        with as_other_user():
            assert main(command(place, words)) == status
    finally:
        (place / path).chmod(0o755)
        if os.geteuid() == 0:
            os.chown(place / path, NOBODY, NOBODY)
        for folder in set((place / "run").iterdir()) - before:
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    printed = capsys.readouterr()
    assert said in printed.err
    assert "Traceback" not in printed.err
    assert ("because it is not readable" in printed.out) == (command is resume and status == 0)
