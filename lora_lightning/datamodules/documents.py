"""Where the documents of one long text begin, for statistics over documents."""

import re

import numpy as np
from numpy.typing import NDArray

# A heading of WikiText's first level has a blank line before and after it; without these it is a row of a table.
ARTICLE = re.compile(r"(?:\A|\A ?\r?\n|(?<=\n) ?\r?\n)( ?= [^=\n]+ = ?)\r?\n(?= ?\r?\n)")
PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
LINE = re.compile(r"\n")


def document_starts(text: str) -> NDArray[np.int64]:
    """Finds the documents of a text that says nowhere what its documents are.

    Args:
        text: Of a file, or of a split of WikiText.

    Returns:
        The characters at which documents begin, ascending from 0: the articles of a text in WikiText's format; else
        paragraphs, which blank lines separate; else lines. One for a text of one line.
    """
    articles = [match.start(1) for match in ARTICLE.finditer(text)]
    if len(articles) > 1:
        return np.array([0, *articles[1:]], dtype=np.int64)
    first = len(text) - len(text.lstrip())
    for separator in (PARAGRAPH, LINE):
        starts = [match.end() for match in separator.finditer(text) if first < match.end() < len(text)]
        if starts:
            return np.array([0, *starts], dtype=np.int64)
    return np.zeros(1, dtype=np.int64)
