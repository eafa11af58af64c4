"""Lists of labels that a program wrote into a cell as text: Python, JSON, NumPy, pandas, Spark and PostgreSQL forms."""

import ast
import re
from typing import Any

PARTNERS = {"[": "]", "(": ")", "{": "}"}
CALL = re.compile(
    r"(?:(?:np|numpy|pd|pandas)\.)?(?:array|set|frozenset|list|tuple|deque|Index|Series|Categorical)\s*\((.*)\)",
    re.DOTALL,
)
CALL_OPTIONS = re.compile(r",\s*[a-z]\w*\s*=[^\])}]*\Z")  # dtype=object and the like
QUOTED = re.compile(r"[bBuU]?('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")", re.DOTALL)
SCALAR = re.compile(r"(?:np|numpy)\.\w+\(([^()]*)\)")  # NumPy 2 writes np.str_('a')
NOTHING = {"None", "null", "NULL", "nan", "NaN", "<NA>", "NaT"}
BOOLEANS = {"True": True, "False": False, "true": True, "false": False, "np.True_": True, "np.False_": False}
LEFTOVER = re.compile(r"""[\[({]\s*["'].*|.*["']\s*[\])}]|\[[^\]]*|[^\[]*\]|\{[^}]*|[^{]*\}""", re.DOTALL)


def read_label_list(text: str, separator: str = ",") -> list[Any] | None:
    """Reads a cell that holds a list written as text.

    Args:
        text: Such as `['a', 'b']`, `["a", "b"]`, `['a' 'b']`, `{a,b}`, `array([1, 2])` or `'a', 'b'`.
        separator: Stands between items, besides a comma.

    Returns:
        The items: text, numbers, booleans or `None`; or `None` if the text is no list.

    Raises:
        ValueError: If it looks like a list but cannot be read as one, such as a dictionary or a list of lists.
    """
    text = text.strip()
    call = CALL.fullmatch(text)
    if call is not None:
        text = CALL_OPTIONS.sub("", call[1]).strip()
        if not text:
            return []
    if QUOTED.match(text):
        return _quoted_items(text, separator)
    if not _is_bracketed(text):
        return None
    inner = SCALAR.sub(r"\1", text[1:-1]).strip()
    if "..." in QUOTED.sub("", inner):
        msg = "its middle was left out when it was written"
        raise ValueError(msg)
    if text[0] == "(" and "," not in inner and not QUOTED.match(inner):
        return [] if not inner else None  # a word in parentheses
    if inner[:1] in PARTNERS or (text[0] == "{" and ":" in QUOTED.sub("", inner)):
        msg = "it is nested or a dictionary"
        raise ValueError(msg)
    return _items(inner, separator)


def is_list_in_text(text: str) -> bool:
    """Whether a text is certainly a list and not the name of one label.

    Args:
        text: A cell.

    Returns:
        True for quoted items, several items in square brackets, and calls such as `array([1])`.
    """
    try:
        items = read_label_list(text)
    except ValueError:
        return True
    if items is None or QUOTED.fullmatch(text.strip()):
        return False
    is_quoted = QUOTED.match(text.strip().lstrip("[({ ")) is not None
    return is_quoted or CALL.fullmatch(text.strip()) is not None or (text.strip()[0] == "[" and len(items) > 1)


def is_part_of_list(label: str) -> bool:
    """Whether a label is the piece of a list that was cut at its separators, such as `['animal'`."""
    return LEFTOVER.fullmatch(label) is not None


def _is_bracketed(text: str) -> bool:
    """Whether the first character is a bracket and the last its partner."""
    partner = PARTNERS.get(text[:1])
    if partner is None or len(text) == 1:
        return False
    depth = 0
    for place, character in enumerate(text):
        depth += (character == text[0]) - (character == partner)
        if depth == 0:
            return place == len(text) - 1
    return False


def _items(inner: str, separator: str) -> list[Any]:
    words = inner.split()
    if "," not in inner and separator not in inner and all(map(_is_literal, words)):
        return [_value(word) for word in words]  # numbers as NumPy prints them
    items: list[Any] = []
    place = 0
    while place < len(inner):
        quoted = QUOTED.match(inner, place)
        if quoted is None:
            end = min((at for mark in {",", separator} if (at := inner.find(mark, place)) >= 0), default=len(inner))
            items.append(_value(inner[place:end].strip()))
            place = end
        else:
            items.append(_unquoted(quoted[1]))
            place = quoted.end()
        following = re.compile(rf"\s*(?:,|{re.escape(separator)}|\Z)\s*|\s+(?=[\"'bBuU])").match(inner, place)
        if following is None:
            msg = f"after {inner[:place][-20:]!r} a comma is missing"
            raise ValueError(msg)
        place = following.end()
    return items


def _quoted_items(text: str, separator: str) -> list[Any] | None:
    """Quoted items without brackets; `None` for a text that merely starts with a quotation."""
    try:
        items = _items(text, separator)
    except ValueError:
        return None
    return items if len(QUOTED.findall(text)) == len(items) else None


def _is_literal(word: str) -> bool:
    return not isinstance(_value(word), str)


def _value(word: str) -> Any:
    """A number, a boolean or `None` where the word is one, else the word."""
    if word in NOTHING:
        return None
    if word in BOOLEANS:
        return BOOLEANS[word]
    for kind in (int, float):
        try:
            return kind(word) if "_" not in word else word
        except ValueError:
            continue
    return word


def _unquoted(item: str) -> str:
    try:
        return str(ast.literal_eval(item))
    except (SyntaxError, ValueError):  # such as a line end inside
        return item[1:-1]
