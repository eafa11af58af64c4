"""What is printed may be lost; what a command computes is not."""

import io
import subprocess
import sys

import pytest

from lora_lightning.cli.output import TolerantStream


class Broken(io.StringIO):
    """A stream that fails after a while.

    Args:
        error: What it raises from the second write on.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error, self.writes = error, 0

    def write(self, text: str) -> int:
        self.writes += 1
        if self.writes > 1:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(("error", "said"), [(BrokenPipeError(), ""), (OSError(28, "No space left"), "No space left")])
def test_a_stream_that_fails_is_dropped(
    error: OSError, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.dup2", lambda *_: None)  # pytest needs its own
    broken = Broken(error)
    stream = TolerantStream(broken)
    assert [stream.write(text) for text in ("one", "two", "three")] == [3, 3, 5]
    stream.flush()
    assert broken.getvalue() == "one"
    assert broken.writes == 2  # the third write no longer reaches it
    assert said in capsys.readouterr().err
    assert stream.encoding == "utf-8"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no head")
def test_warnings_that_nobody_reads_end_no_command() -> None:
    code = "import sys, warnings, lora_lightning.cli.main as program\nsys.argv[1:] = ['fit']\n"
    code += "def work(words):\n    print('first', flush=True)\n    sys.stdin.read()\n"
    code += "    for number in range(100): warnings.warn(f'warning {number}')\n"
    code += "program.import_program = lambda: work\nprogram.program()"
    both = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}  # as in `2>&1 | head -1`
    with subprocess.Popen([sys.executable, "-c", code], **both) as command:  # type: ignore[call-overload]
        assert command.stdout.readline() == b"first\n"
        command.stdout.close()
        command.stdin.close()
        assert command.wait() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="there is no head")
def test_a_closed_pipe_ends_no_command() -> None:
    code = "import sys, lora_lightning.cli.main as program\nsys.argv[1:] = ['fit']\n"
    code += "def work(words):\n    for _ in range(100000): print('a line that nobody reads')\n"
    code += "    print('done', file=sys.stderr)\nprogram.import_program = lambda: work\nprogram.program()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as command:
        assert command.stdout is not None
        command.stdout.readline()
        command.stdout.close()
        assert command.stderr is not None
        said = command.stderr.read().decode()
        assert command.wait() == 0, said
    assert said == "done\n"
