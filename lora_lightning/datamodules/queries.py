"""Read the queries to predict from a text file or standard input."""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from lora_lightning.errors import DataError
from lora_lightning.runs.tables import decode_text


def read_queries(predict_file: str | None) -> list[str]:
    """Reads the queries to predict, one a line.

    Args:
        predict_file: A text file in UTF-8, or `-` for standard input.

    Returns:
        The lines without their ends; empty lines after the last query are left out.

    Raises:
        DataError: If no file was given, it cannot be read, contains no query, or has an empty line between queries.
    """
    if predict_file is None:
        msg = "predict needs --data.predict_file with a text file of one query per line, or - for standard input."
        raise DataError(msg)
    name = "standard input" if predict_file == "-" else predict_file
    try:
        # Bytes: standard input may have been opened with another encoding, and keeps a byte order mark.
        raw = sys.stdin.buffer.read() if predict_file == "-" else Path(predict_file).expanduser().read_bytes()
    except OSError as error:
        why = str(error.strerror).lower() if error.strerror else type(error).__name__
        msg = f"--data.predict_file {predict_file}: {why}; give a UTF-8 text file with one query per line."
        raise DataError(msg) from error
    content = decode_text(raw, name).rstrip()
    # Not splitlines(): to it a form feed or U+2028 inside a query ends a line, and row numbers would shift.
    lines = re.split("\r\n|\r|\n", content) if content else []
    check_texts(lines, name, "line")
    if not lines:
        msg = f"{name} contains no query; write one query per line."
        raise DataError(msg)
    return lines


def check_texts(texts: Iterable[str], name: str, unit: str) -> None:
    """Refuses empty texts.

    Args:
        texts: In the order of the file.
        name: What to call the file.
        unit: What to call a position in it, for example `line`; counted from 1.

    Raises:
        DataError: At the first empty text.
    """
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            msg = f"{name}, {unit} {number}: the text is empty; remove the row or fill it in."
            raise DataError(msg)
