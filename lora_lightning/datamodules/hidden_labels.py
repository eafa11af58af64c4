"""Splits whose labels are not public: -1, `unlabeled`, empty or missing in every row, as of many benchmarks' tests."""

import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from lora_lightning.datamodules.label_doubts import is_missing_word
from lora_lightning.metrics.label_space import MULTI_LABEL, REGRESSION, SINGLE_LABEL, ProblemType


def hidden_labels(cells: Sequence[Any], known: Sequence[Any], problem_type: ProblemType) -> list[bool]:
    """Finds the rows of a split whose label stands for "not public" or "not known".

    Args:
        cells: The labels of an evaluation split.
        known: The labels of the training rows: names, or the numbers of a regression.
        problem_type: An empty text is no label, unless there may be several labels per text; a negative number is one
            in a regression, unless every row has it and training never does.

    Returns:
        Whether each row's label is hidden. All are if every row has the same value, training never has it, and it
        resembles no label of training's.
    """
    names = {_name_of(label) for label in known}
    hidden = [_is_hidden(cell, names, problem_type) for cell in cells]
    if not all(hidden) and _is_constant_and_unknown(cells, names, problem_type):
        return [True] * len(cells)
    return hidden


def _is_hidden(cell: Any, names: set[str], problem_type: ProblemType) -> bool:
    """Whether one cell has no label, whatever the other rows have."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return True
    if isinstance(cell, list):
        return bool(cell) and all(_is_hidden(part, names, problem_type) for part in cell)
    if isinstance(cell, str) and not cell.strip():
        return problem_type != MULTI_LABEL
    if _name_of(cell) in names:
        return False
    is_word = isinstance(cell, str) and is_missing_word(cell)
    return is_word or (problem_type != REGRESSION and _is_negative(cell))


def _is_constant_and_unknown(cells: Sequence[Any], names: set[str], problem_type: ProblemType) -> bool:
    if len({str(cell) for cell in cells}) != 1:
        return False
    cell = cells[0]
    if cell == [] or (isinstance(cell, str) and not cell.strip()):
        return True  # a test in which no label ever applies
    if isinstance(cell, list) or _name_of(cell) in names:
        return False
    is_foreign = not get_close_matches(str(cell).casefold(), [name.casefold() for name in names])
    return _is_negative(cell) or (problem_type == SINGLE_LABEL and len(cells) > 1 and is_foreign)


def _is_negative(cell: Any) -> bool:
    try:
        return not isinstance(cell, bool) and float(cell) < 0
    except (TypeError, ValueError, OverflowError):
        return False


def _name_of(cell: Any) -> str:
    """The label that a cell would be read as."""
    is_whole = isinstance(cell, float) and cell.is_integer()
    return str(int(cell) if is_whole else cell).strip()
