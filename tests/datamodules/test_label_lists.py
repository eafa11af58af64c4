"""A list that some program wrote into a cell as text is read as that list."""

from typing import Any

import numpy as np
import pytest

from lora_lightning.datamodules.label_lists import is_list_in_text, is_part_of_list, read_label_list

LISTS = [
    ["a", "b"],
    ["credit card", "it's"],
    ['say "a"', "b, c"],
    ["ünï", "a]", "x"],
    ["a"],
    [],
    [2, 5],
    [True, False],
]


@pytest.mark.parametrize("labels", [labels for labels in LISTS if "a]" not in labels], ids=str)
@pytest.mark.parametrize("kind", [list, tuple, set, frozenset], ids=lambda kind: kind.__name__)
def test_what_python_writes(labels: list[Any], kind: Any) -> None:
    found = read_label_list(repr(kind(labels)))
    assert found is not None
    assert found == labels or (kind in {set, frozenset} and set(found) == set(labels))


@pytest.mark.parametrize("labels", [labels for labels in LISTS if labels and "a]" not in labels], ids=str)
def test_what_numpy_writes(labels: list[Any]) -> None:
    values = np.array(labels)
    assert read_label_list(str(values)) == labels
    assert read_label_list(repr(values)) == labels
    assert read_label_list(repr(list(values))) == labels  # np.str_('a')
    assert read_label_list(repr(np.array(labels, dtype=object))) == labels


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ('["a", "b"]', ["a", "b"]),
        ('  ["a","b"]\n', ["a", "b"]),
        ("['a'\n 'b']", ["a", "b"]),
        ("[u'a', b'b']", ["a", "b"]),
        ("[1. 0.]", [1.0, 0.0]),
        ("['a', None]", ["a", None]),
        ('["a", null]', ["a", None]),
        ("[a, credit card]", ["a", "credit card"]),  # Spark
        ("[a]", ["a"]),
        ('{"credit card",loan}', ["credit card", "loan"]),  # PostgreSQL
        ("Index(['a', 'b'], dtype='object')", ["a", "b"]),
        ("'a', 'b'", ["a", "b"]),
        ("{}", []),
        ("array([], dtype=float64)", []),
        ("['a: b']", ["a: b"]),
    ],
)
def test_what_other_programs_write(text: str, labels: list[Any]) -> None:
    assert read_label_list(text) == labels


def test_the_separator_may_stand_in_a_list() -> None:
    assert read_label_list("['a'; 'b']", ";") == ["a", "b"]
    assert read_label_list("[a; b]", ";") == ["a", "b"]


@pytest.mark.parametrize("text", ["a,b", "a b", "(animal)", "(a) first, (b)", "it's, fine", "'tis, so", "", "[", "a]"])
def test_what_is_no_list(text: str) -> None:
    assert read_label_list(text) is None


@pytest.mark.parametrize(
    "text", ["{'a': 1}", '{"a": true}', "{a: 1}", "[['a'], ['b']]", "[['a', 'b']]", "['a' x]", "['a' ... 'b']"]
)
def test_what_only_looks_like_a_list(text: str) -> None:
    with pytest.raises(ValueError, match=r"nested|comma|left out"):
        read_label_list(text)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("['animal'", True),
        ("'home']", True),
        ('"b"]', True),
        ("[a", True),
        ("b]", True),
        ("{'a'", True),
        ("[MASK]", False),
        ("(a", False),
        ("a", False),
        ("don't", False),
    ],
)
def test_pieces_of_a_list(label: str, expected: bool) -> None:
    assert is_part_of_list(label) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("['a']", True),
        ('["a", "b"]', True),
        ("[1 2]", True),
        ("[a, b]", True),
        ("array([1])", True),
        ("{'a': 1}", True),
        ("('a',)", True),
        ("[a]", False),
        ("(a, b)", False),
        ('"a"', False),
        ("a, b", False),
        ("{x}", False),
    ],
)
def test_a_single_label_that_is_certainly_a_list(text: str, expected: bool) -> None:
    assert is_list_in_text(text) == expected
