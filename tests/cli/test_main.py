"""The entry: fast, quiet, and without heavy imports before they are needed."""

import signal
import subprocess
import sys
import time
import warnings

import pytest

from lora_lightning import __version__
from lora_lightning.cli.main import COMMANDS, main, printable_line
from lora_lightning.errors import ConfigurationError, ExitStatus, TrainingStopped, VerificationError


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_importing_the_package_is_cheap() -> None:
    code = "import time; start = time.process_time(); import lora_lightning; print(time.process_time() - start)"
    assert min(float(python(code)) for _ in range(3)) < 0.1


def test_help_answers_within_a_second_and_names_every_command() -> None:
    seconds, outputs = [], []
    for _ in range(3):
        start = time.perf_counter()
        result = subprocess.run([sys.executable, "-m", "lora_lightning", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - start)
        outputs.append(result.stdout.decode())
    assert min(seconds) < 1
    assert all(command in outputs[0] for command in COMMANDS)
    assert "configs/quickstart.yaml" in outputs[0]


def test_nothing_heavy_is_imported_for_help() -> None:
    code = "import sys, lora_lightning.cli.main as m; m.build_parser(); print({*sys.modules} & {'torch', 'lightning'})"
    assert python(code) == "set()"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert __version__ in capsys.readouterr().out


def test_a_warning_is_a_sentence_without_the_place_in_the_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_words: list[str]) -> None:
        warnings.simplefilter("always")
        warnings.warn("2 rows are\nin both splits.", stacklevel=2)

    monkeypatch.setattr("lora_lightning.cli.commands.run_command", run)
    before = warnings.showwarning
    assert main(["fit"]) == 0
    assert capsys.readouterr().err == "lora-lightning: warning: 2 rows are in both splits.\n"
    assert warnings.showwarning is before


def test_unknown_command_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == ExitStatus.WRONG_INPUT
    assert "there is no command trian; the choices are allocate, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("as it is: caf\u00e9 \u6c34 'x'", "as it is: caf\u00e9 \u6c34 'x'"),
        ("two\n\tlines \r\n", "two lines"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\u202edesrever \ud800", r"\u202edesrever \ud800"),
        ("a" * 5000, "a" * 600 + " ... " + "a" * 350),
    ],
)
def test_a_message_is_one_line_that_moves_no_cursor(text: str, line: str) -> None:
    assert printable_line(text) == line


@pytest.mark.parametrize(
    ("main_process", "alone", "status"), [(True, False, 75), (True, True, 75), (False, False, 0), (False, True, 75)]
)
def test_a_process_that_stops_without_the_others_does_not_look_well(
    main_process: bool, alone: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(_: list[str]) -> None:
        raise TrainingStopped(signal.SIGTERM, 3, main_process, alone)

    monkeypatch.setattr("lora_lightning.cli.commands.run_command", stop)
    assert main(["fit"]) == status
    assert capsys.readouterr().err.count("stopped by SIGTERM after step 3") == main_process


def test_a_signal_is_heard_while_modules_are_imported() -> None:
    code = "import os, signal, lora_lightning.cli.main as program\n"
    code += "program.import_program = lambda: os.kill(os.getpid(), signal.SIGTERM)\nprogram.main(['fit'])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 75
    assert ended.stderr == "lora-lightning: stopped by SIGTERM before there was anything to save\n"


def test_a_signal_at_the_very_end_changes_nothing() -> None:
    code = "import atexit, os, signal, sys, lora_lightning.cli.main as program\nsys.argv[1:] = ['fit']\n"
    code += "program.import_program = lambda: lambda words: None\n"
    code += "atexit.register(lambda: os.kill(os.getpid(), signal.SIGTERM))\nprogram.program()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_second_lost_data_loading_process_changes_nothing() -> None:
    code = """if True:
        import atexit, os, signal, sys
        import lora_lightning.cli.main as program
        from lora_lightning.errors import TrainingError

        def command(words):
            signal.signal(signal.SIGCHLD, lambda *_: 1 / 0)
            raise TrainingError("a data loading process died.")

        sys.argv[1:] = ["fit"]
        program.import_program = lambda: command
        program.printable_line = lambda text: os.kill(os.getpid(), signal.SIGCHLD) or text
        atexit.register(os.kill, os.getpid(), signal.SIGCHLD)
        program.program()
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (2, "lora-lightning: error: a data loading process died.\n")


@pytest.mark.parametrize(
    ("error", "status", "printed"),
    [
        (ValueError("a bug"), 1, True),
        (ConfigurationError("r is 0."), 2, False),
        (VerificationError("merging changes the outputs."), 3, False),
        (KeyboardInterrupt(), 130, False),
    ],
    ids=repr,
)
@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_the_same_exit_statuses_and_debug_prints_every_traceback(
    command: str,
    error: BaseException,
    status: int,
    printed: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(words: list[str]) -> None:
        given.append(words)
        raise error

    given: list[list[str]] = []
    monkeypatch.setattr("lora_lightning.cli.commands.run_command", run)
    assert main([command, "--config=x"]) == status
    plain = capsys.readouterr().err
    assert ("Traceback (most recent call last)" in plain) == printed
    for words in ([command, "--debug", "--config=x"], ["--debug", command, "--config=x"]):
        assert main(words) == status
        said = capsys.readouterr().err
        assert "Traceback (most recent call last)" in said
        assert "in run\n" in said
        assert printed or said.endswith(plain)
    assert given == [[command, "--config=x"], *[[command, "--config=x", "--debug"]] * 2]


def test_help_explains_debug_and_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([])
    said = capsys.readouterr().out
    assert "--debug" in said
    for status in ExitStatus:
        assert f"\n  {int(status)} " in said


def test_an_unknown_option_is_a_sentence_and_with_debug_a_traceback_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--no_such_option=1"]) == 2
    plain = capsys.readouterr().err
    assert main(["fit", "--debug", "--no_such_option=1"]) == 2
    said = capsys.readouterr().err
    assert plain.startswith("lora-lightning: error: ")
    assert "Traceback" in said
    assert said.endswith(plain)
