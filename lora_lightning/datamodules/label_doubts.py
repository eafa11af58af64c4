"""Labels that are probably not what the user means: reported in one warning, and used as they are."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

MISSING_WORDS = {
    *("nan", "-nan", "na", "n/a", "n.a.", "#n/a", "#na", "<na>", "nat"),
    *(
        "none",
        "null",
        "nil",
        "empty",
        "missing",
        "undefined",
        "unlabeled",
        "unlabeled",
        "unannotated",
        "unknown",
        "hidden",
        "blank",
    ),
    *(
        "?",
        "??",
        "-",
        "--",
        "---",
        ".",
        "#null!",
        "#ref!",
        "#value!",
        "(blank)",
        "(none)",
        "(null)",
        "<null>",
        "<none>",
        "[null]",
        "[none]",
    ),
}
CERTAIN_SEPARATORS = "|;#\t\n"
POSSIBLE_SEPARATORS = ",/&+: "  # also part of ordinary names
INVISIBLE_CATEGORIES = {"Cc", "Cf", "Zs", "Zl", "Zp"}
INVISIBLE = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0]")  # in others
BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"))
QUOTED = re.compile(r"""\\?["'\u2018\u201c\u201e\u00ab].*["'\u2019\u201c\u201d\u00bb]""", re.DOTALL)
SHOWN = 3  # examples of each kind


def doubts_about_labels(labels: Iterable[str], cells: Sequence[Any] = ()) -> list[str]:
    """Looks for labels that do not mean what they seem to.

    Args:
        labels: The label of each row, or all labels of all rows.
        cells: The cells that they come from, for their types; not needed if all are text.

    Returns:
        A part of a sentence for each kind of doubt, with counts: labels that differ only in case, spaces, Unicode form
        or invisible characters; words for a missing value; separators inside labels; pieces of a list; mixed types.
    """
    counts = Counter(labels)
    found = [_twins(counts), _missing(counts), *_joined(counts), _pieces(counts), _mixed(counts, cells)]
    return [doubt for doubt in found if doubt]


def is_missing_word(text: str) -> bool:
    """Whether a text stands for a missing value, such as `N/A`."""
    return text.strip().casefold() in MISSING_WORDS


def _twins(counts: Mapping[str, int]) -> str:
    groups: dict[str, list[str]] = defaultdict(list)
    for label in counts:
        groups[_comparable(label)].append(label)
    same = [sorted(group) for group in groups.values() if len(group) > 1]
    if not same:
        return ""
    shown = ", ".join(" / ".join(_with_count(label, counts, group) for label in group) for group in same[:SHOWN])
    more = f" and {len(same) - SHOWN} more" if len(same) > SHOWN else ""
    return f"labels that differ only in case, spaces, Unicode form or invisible characters: {shown}{more}"


def _comparable(label: str) -> str:
    """A label without what a reader does not see: case, spaces, Unicode form, how a number is written."""
    text = _visible(_visible(label).casefold())
    try:
        return text if "_" in text else repr(float(text))
    except ValueError:
        return text


def _visible(text: str) -> str:
    text = INVISIBLE.sub("", unicodedata.normalize("NFKC", text))
    return "".join(part for part in text if unicodedata.category(part) not in INVISIBLE_CATEGORIES)


def _with_count(label: str, counts: Mapping[str, int], group: Sequence[str] = ()) -> str:
    looks_alike = len({_visible(other) for other in group}) < len(group)
    rows = counts[label]
    return f"{ascii(label) if looks_alike else repr(label)} ({rows} row{'s' * (rows != 1)})"


def _missing(counts: Mapping[str, int]) -> str:
    words = [label for label in counts if is_missing_word(label)]
    return f"words for a missing value: {_some(words, counts)}" if words else ""


def _joined(counts: Mapping[str, int]) -> Iterable[str]:
    """Labels that may be several with a separator between them."""
    for separator in CERTAIN_SEPARATORS + POSSIBLE_SEPARATORS:
        parts_of = {label: [part.strip() for part in label.split(separator)] for label in counts}
        joined = [
            label
            for label, parts in parts_of.items()
            if len(parts) > 1
            and all(parts)
            and (separator in CERTAIN_SEPARATORS or all(part in counts for part in parts))
        ]
        if joined:
            yield f"labels that contain {separator!r}, each a class of its own: {_some(joined, counts)}"


def _pieces(counts: Mapping[str, int]) -> str:
    """Labels that are probably pieces of a list or of a name with separators, such as `tensor([1` and `2])`."""
    cut = [label for label in counts if _has_open_bracket(label) or QUOTED.fullmatch(label)]
    return f"labels with a bracket that has no partner, or in quotation marks: {_some(cut, counts)}" if cut else ""


def _has_open_bracket(label: str) -> bool:
    is_smiley = not any(map(str.isalnum, label))
    return not is_smiley and any(label.count(opened) != label.count(closed) for opened, closed in BRACKETS)


def _mixed(counts: Mapping[str, int], cells: Sequence[Any]) -> str:
    flat = list(chain.from_iterable(cell if isinstance(cell, list) else [cell] for cell in cells))
    kinds = Counter(type(cell).__name__ for cell in flat if cell is not None)
    if kinds["float"] and "int" in kinds:
        kinds["int"] += kinds.pop("float")  # 1.0 is read as 1
    if len(+kinds) > 1:
        names = {"str": "text", "int": "a number", "float": "a number", "bool": "true or false"}
        found = ", ".join(f"{names.get(kind, kind)} {count} times" for kind, count in kinds.most_common())
        return f"values of different types: {found}"
    numbers = [label for label in counts if label.removeprefix("-").isdecimal()]
    words = [label for label in counts if label not in numbers and not is_missing_word(label)]
    if numbers and words:
        return f"numbers ({_some(numbers, counts)}) beside words ({_some(words, counts)})"
    return ""


def _some(labels: Sequence[str], counts: Mapping[str, int]) -> str:
    shown = ", ".join(_with_count(label, counts) for label in labels[:SHOWN])
    return shown + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")
