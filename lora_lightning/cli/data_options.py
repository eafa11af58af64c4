"""Options of the data in commands whose other options argparse reads."""

import sys
from collections.abc import Sequence


def split_data_options(arguments: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """Separates the options of the data, which depend on the data module, and of the model from those of the command.

    Args:
        arguments: As on the command line.

    Returns:
        The other words; and names with values, such as `("data.data_dir", "DIR")`, in their order, since an option that
        appends to a list (`--data.columns+=a`) may be given several times.
    """
    words: list[str] = []
    data: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if name == "--data" or name.startswith(("--data.", "--model.")):
            has_value = bool(equals) or (bool(rest) and not rest[0].startswith("--"))
            data.append((name[2:], value if equals else rest.pop(0) if has_value else "true"))
        else:
            words.append(word)
    return words, data


def print_progress(line: str) -> None:
    """Prints a step on standard error, since standard output is for results."""
    print(line, file=sys.stderr, flush=True)
