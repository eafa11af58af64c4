"""Says on the terminal what a command is doing while it cannot show progress yet."""

import os
import sys


def show_status(text: str) -> None:
    """Prints a line on standard error if it is a terminal, once for all processes of a machine.

    Args:
        text: What begins now, such as `loading weights`.
    """
    if sys.stderr.isatty() and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{text} ...", file=sys.stderr, flush=True)
