"""A test run that is killed leaves no training behind."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

START = """
import subprocess, sys, time
from processes import end_with_parent
child = subprocess.Popen(["/bin/sleep", "600"], preexec_fn=end_with_parent)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends children")
def test_a_child_ends_with_the_process_that_started_it() -> None:
    benchmarks = str(Path(__file__).parents[1] / "benchmarks")
    code = f"import sys; sys.path.insert(0, {benchmarks!r})\n{START}"
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = Path("/proc") / parent.stdout.readline().strip() / "stat"
    assert child.exists()
    parent.kill()
    parent.wait()
    began = time.monotonic()
    while child.exists() and " Z " not in child.read_text():  # a container may have nobody who collects it
        assert time.monotonic() - began < 60
        time.sleep(0.01)
