"""Memory that a process has freed goes back to the system, and the program starts with an allocator that reuses it."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lora_lightning.compat.glibc import TUNABLES, VARIABLE, give_back_free_memory

# The program with a command that says what it was started with, and ends as a training does that is told to stop.
PROGRAM = f"""
import os, signal, sys
import lora_lightning.cli.main as program

def command(words):
    print(os.getpid(), os.environ.get({VARIABLE!r}), sys.flags.dev_mode, *words, sep="|", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)

program.import_program = lambda: command
"""
BLOCK, BLOCKS = 100_000, 400  # bytes; too small for a mapping of its own


def resident() -> int:
    """Resident memory of this process, in bytes."""
    return 1024 * int(re.findall(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text(encoding="ascii"))[0])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory is read from /proc")
def test_free_blocks_between_live_ones_are_given_back() -> None:
    blocks = [np.ones(BLOCK, dtype=np.uint8) for _ in range(BLOCKS)]
    before = resident()
    del blocks[::2]
    assert give_back_free_memory()
    assert before - resident() > 0.7 * BLOCK * BLOCKS / 2


def run(file: Path, code: str, words: list[str], variable: str | None = None, **more: str) -> tuple[list[str], int]:
    """What the command says after its process's id, which must be that of the process we started; and its status."""
    file.write_text(PROGRAM + code)
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | more
    environment |= {} if variable is None else {VARIABLE: variable}
    command = [sys.executable, "-X", "dev", "-W", "ignore", str(file), *words]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        process_id, *said = process.communicate(timeout=60)[0].strip().split("|")
    assert int(process_id) == process.pid
    return said, process.returncode


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
@pytest.mark.parametrize(
    ("words", "variable", "expected"),
    [
        (["fit", "--config", "a b"], None, TUNABLES),
        (["study", "run", "a"], None, TUNABLES),
        (["fit"], "", ""),
        (["fit"], "glibc.malloc.check=0", "glibc.malloc.check=0"),
        (["plan"], None, "None"),
    ],
)
def test_commands_that_train_start_again_with_tunables_unless_the_user_has_set_some(
    words: list[str], variable: str | None, expected: str, tmp_path: Path
) -> None:
    said, status = run(tmp_path / "program.py", "program.program()", words, variable)
    assert said == [expected, "True", *words]
    assert status == (75 if expected != "None" else -signal.SIGTERM)


@pytest.mark.parametrize(
    "code", ["program.main(['fit'])", "sys.argv[1:] = ['fit']; program.program()"], ids=["main", "another program"]
)
def test_what_runs_inside_another_process_replaces_nothing(code: str, tmp_path: Path) -> None:
    said, _ = run(tmp_path / "program.py", code, [])
    assert said == ["None", "True", "fit"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs glibc")
@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_thresholds_of_the_user_are_kept(name: str, tmp_path: Path) -> None:
    said, _ = run(tmp_path / "program.py", "program.program()", ["fit"], **{name: "131072"})
    assert said[0] == "None"


def test_a_variable_that_is_stripped_restarts_nothing_twice(tmp_path: Path) -> None:
    said, _ = run(tmp_path / "program.py", f"os.environ.pop({VARIABLE!r}, None); program.program()", ["fit"])
    assert said == ["None", "True", "fit"]


def test_a_program_from_standard_input_is_not_lost() -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-X", "dev", "-", "fit"]
    code = PROGRAM + "program.program()\n"
    done = subprocess.run(command, input=code, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip().split("|")[1:] == ["None", "True", "fit"]


def test_the_documentation_names_the_same_tunables() -> None:
    text = (Path(__file__).parents[2] / "docs" / "faq.md").read_text(encoding="utf-8")
    assert f"export {VARIABLE}={TUNABLES}\n" in text
