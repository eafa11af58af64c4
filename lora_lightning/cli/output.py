"""Output that may be closed or full while a command runs; the results are saved to disk in any case."""

import contextlib
import os
import sys
from typing import Any, TextIO

STANDARD_OUTPUT, STANDARD_ERROR = 1, 2  # descriptors


class TolerantStream:
    """Discards output once its reader is gone, as in `lora-lightning fit ... | head -1`.

    Args:
        stream: Standard output or standard error, whose warnings must not end a command either.
        descriptor: The stream's: 1 or 2.
    """

    def __init__(self, stream: TextIO, descriptor: int = STANDARD_OUTPUT) -> None:
        self._stream = stream
        self._descriptor = descriptor

    def write(self, text: str) -> int:
        """Writes a text, or discards it.

        Args:
            text: The text to print.

        Returns:
            The length of the text.
        """
        try:
            return self._stream.write(text)
        except OSError as error:
            self._drop_output(error)
            return len(text)

    def flush(self) -> None:
        """Flushes the stream, or discards the rest of the output."""
        try:
            self._stream.flush()
        except OSError as error:
            self._drop_output(error)

    def _drop_output(self, error: OSError) -> None:
        is_told = self._descriptor == STANDARD_OUTPUT and not isinstance(error, BrokenPipeError)
        if is_told:  # such as a full disk, which the user should know about
            print(
                f"lora-lightning: warning: cannot write to standard output ({error.strerror}); the rest of the output "
                "is discarded.",
                file=sys.stderr,
            )
        self._stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  # until the process ends
        with contextlib.suppress(OSError):  # the interpreter flushes the descriptor once more when it exits
            os.dup2(self._stream.fileno(), self._descriptor)

    def __getattr__(self, name: str) -> Any:
        """Forwards all other attributes to the stream."""
        return getattr(self._stream, name)
