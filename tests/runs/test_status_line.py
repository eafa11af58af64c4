"""A user at a terminal sees what a command does from the first second; a file or a pipe gets no such lines."""

import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from lora_lightning.cli.main import main
from lora_lightning.runs.status_line import show_status

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("is_terminal", "rank", "said"),
    [(True, None, "loading weights ...\n"), (True, "1", ""), (True, "0", "loading weights ...\n"), (False, None, "")],
)
def test_only_a_terminal_and_one_process_gets_it(
    is_terminal: bool,
    rank: str | None,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    show_status("loading weights")
    assert capsys.readouterr().err == said


def test_the_first_line_comes_before_heavy_imports() -> None:
    ours, theirs = pty.openpty()
    code = "import sys; sys.modules['torch'] = None; from lora_lightning.cli.main import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "fit", "--config", "configs/quickstart.yaml"]
    subprocess.run(command, stderr=theirs, cwd=ROOT, check=False)
    os.close(theirs)
    with os.fdopen(ours, errors="replace") as terminal:
        assert terminal.readline() == "importing PyTorch and transformers ...\n"


def test_the_lines_are_in_order(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    words = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    assert main(["fit", f"--config={ROOT / 'configs/synthetic/planted_rank.yaml'}", *words]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.endswith(" ...")]
    assert lines == ["importing PyTorch and transformers ...", "reading data ...", "loading weights ..."]


@pytest.mark.parametrize(
    "words", [["configs"], ["study", "audit", "--help"], ["plan"], ["merge", "--help"]], ids=" ".join
)
def test_commands_that_import_nothing_say_nothing(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with suppress(SystemExit):  # argparse's way to end after help
        assert main(words) == 0
    assert capsys.readouterr().err == ""
