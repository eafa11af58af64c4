"""Standard output that may be closed or full while a command runs: the results are on the disk all the same."""

import contextlib
import os
import sys
from typing import Any, TextIO


class TolerantStream:
    """Drops what is printed once nobody reads it any more, as after `lora-lightning fit ... | head -1`.

    Args:
        stream: Standard output.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes, or drops the text.

        Args:
            text: What to print.

        Returns:
            Its length.
        """
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop_output(error)
            return len(text)

    def flush(self) -> None:
        """Flushes, or drops what is left."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop_output(error)

    def _drop_output(self, error: OSError) -> None:
        if not isinstance(error, BrokenPipeError):  # such as a full disk, which its user should know of
            print(f"lora-lightning: warning: standard output cannot be written ({error.strerror}).", file=sys.stderr)
        self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # until the process ends
        with contextlib.suppress(OSError):  # the interpreter flushes the descriptor once more when it ends
            os.dup2(self._stream.fileno(), 1)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the stream's."""
        return getattr(self._stream, name)
