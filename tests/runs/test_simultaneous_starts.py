"""Of two processes that are to resume or start the same run at the same time, one does."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_lightning.cli.main import main
from lora_lightning.errors import ConfigurationError
from lora_lightning.runs import lock as locks
from lora_lightning.runs.lock import lock_starts
from lora_lightning.training.commands import prepare_command
from lora_lightning.training.fitting import TrainingRun
from tests.cli.test_commands import Words, fit_words
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150


@pytest.fixture
def words(tiny_backbone: TinyBackbone, tmp_path: Path) -> Words:
    """The command that both processes run, without `fit`."""
    data = save_tiny_clinc150(tmp_path / "clinc150")
    return [*fit_words(tiny_backbone("bert"), data, tmp_path)[1:], "--resume=auto"]


@pytest.mark.parametrize("holds_its_lock", [True, False])
def test_who_looked_before_the_other_started_does_not_start_a_second_run(
    words: Words, tmp_path: Path, holds_its_lock: bool
) -> None:
    first, second = prepare_command("fit", words), prepare_command("fit", words)  # both have looked, and found no run
    other = TrainingRun(first)
    other.prepare_folder()
    if not holds_its_lock:
        other._resources.close()  # it was killed since
    run = TrainingRun(second)
    assert run.folder.name == "version_1"
    with pytest.raises(ConfigurationError, match=r"another process has just started the run \S+version_0"):
        run.prepare_folder()
    assert not list(tmp_path.glob("run/version_1/config.yaml"))


def test_runs_of_other_settings_start_at_the_same_time(words: Words) -> None:
    first, second = prepare_command("fit", words), prepare_command("fit", [*words, "--model.lora.r=2"])
    one = TrainingRun(first)
    one.prepare_folder()
    two = TrainingRun(second)
    two.prepare_folder()
    assert (one.folder.name, two.folder.name) == ("version_0", "version_1")


def test_a_killed_process_holds_no_lock(tmp_path: Path) -> None:
    code = (
        "import sys, time, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); "
        "print('locked', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / locks.STARTS)], stdout=subprocess.PIPE)
    assert other.stdout is not None
    assert other.stdout.readline() == b"locked\n"
    other.kill()
    other.wait()
    start = time.monotonic()
    with lock_starts(tmp_path):
        assert time.monotonic() - start < 30  # well below STARTING


def test_a_lock_that_stays_taken_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "STARTING", 0.01)
    with (
        lock_starts(tmp_path),
        pytest.raises(ConfigurationError, match="another process is starting a run in"),
        lock_starts(tmp_path),
    ):
        pass


def test_a_lock_that_is_a_link_is_not_followed(
    words: Words, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = tmp_path / "thesis.txt"
    victim.write_text("years of work")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / locks.STARTS).symlink_to(victim)
    assert main(["fit", *words]) == 2
    assert "is a symbolic link" in capsys.readouterr().err
    assert victim.read_text() == "years of work"
