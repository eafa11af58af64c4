"""Labels that probably mean something else are named with their counts."""

from collections.abc import Sequence
from typing import Any

import pytest

from lora_lightning.datamodules.label_doubts import doubts_about_labels, is_missing_word


@pytest.mark.parametrize(
    ("labels", "named"),
    [
        (["spam", "Spam", "spam"], "'Spam' (1 row) / 'spam' (2 rows)"),
        (["credit card", "credit  card"], "'credit  card' (1 row) / 'credit card' (1 row)"),
        (["credit card", "creditcard"], "'credit card' (1 row) / 'creditcard' (1 row)"),
        (["a\u00a0b", "a b"], "'a b' (1 row) / 'a\\xa0b' (1 row)"),
        (["caf\u00e9", "cafe\u0301"], "'cafe\\u0301' (1 row) / 'caf\\xe9' (1 row)"),
        (["\uff41", "a"], "'a' (1 row) / '\\uff41' (1 row)"),
        (["a\u200bb", "ab"], "'ab' (1 row) / 'a\\u200bb' (1 row)"),
        (["a\ufe0f", "a"], "'a' (1 row) / 'a\\ufe0f' (1 row)"),
        (["a\u00adb", "ab"], "'ab' (1 row) / 'a\\xadb' (1 row)"),
        (["Stra\u00dfe", "STRASSE"], "'STRASSE' (1 row) / 'Straße' (1 row)"),
        (["1", "1.0", "01"], "'01' (1 row) / '1' (1 row) / '1.0' (1 row)"),
        (["True", "true"], "'True' (1 row) / 'true' (1 row)"),
    ],
    ids=ascii,
)
def test_labels_that_look_the_same(labels: list[str], named: str) -> None:
    start = "labels that differ only in case, spaces, Unicode form or invisible characters: "
    assert doubts_about_labels(labels)[0] == start + named


def test_at_most_three_groups_are_shown() -> None:
    labels = [word for letter in "abcde" for word in (letter, letter.upper())]
    (doubt,) = doubts_about_labels(labels)
    assert doubt.endswith("'C' (1 row) / 'c' (1 row) and 2 more")


@pytest.mark.parametrize(
    "word", ["nan", "NaN", "None", "N/A", "NA", "null", "NULL", "empty", "<NA>", "#N/A", "unlabeled", "?", "-", "nil"]
)
def test_words_for_a_missing_value(word: str) -> None:
    assert is_missing_word(f" {word} ")
    assert doubts_about_labels(["ham", "spam", word, word]) == [
        f"words for a missing value: {word!r} (2 rows)",
    ]


@pytest.mark.parametrize("separator", ["|", ";", "#", "\t", "\n"])
def test_another_separator_in_labels(separator: str) -> None:
    labels = [f"a{separator}b", f"a {separator} c", "a"]
    assert doubts_about_labels(labels) == [
        f"labels that contain {separator!r}, each a class of its own: {labels[0]!r} (1 row), {labels[1]!r} (1 row)"
    ]


@pytest.mark.parametrize(
    "labels",
    [
        ["tensor([1", "2])"],
        ["WrappedArray(a", "b)"],
        ["beef (raw", "cooked)"],
        ["\u2018a\u2019", "\u201cb\u201d"],
        ['\\"a\\"', '\\"b\\"'],
        ["'a'", '"b"'],
    ],
    ids=ascii,
)
def test_pieces_of_lists_and_quoted_labels(labels: list[str]) -> None:
    (doubt,) = doubts_about_labels([*labels, "c"])
    assert doubt.startswith("labels with a bracket that has no partner, or in quotation marks: ")
    assert doubt.count(" (1 row)") == 2


@pytest.mark.parametrize("labels", [[":)", ":-(", "'80s"], ["ham (raw)", "n [sic]"], ["it's", "O'Hara's"]])
def test_ordinary_marks_are_no_pieces(labels: list[str]) -> None:
    assert doubts_about_labels(labels) == []


@pytest.mark.parametrize("separator", [",", "/", "&", "+", " "])
def test_a_separator_that_names_may_have_counts_between_labels_only(separator: str) -> None:
    assert doubts_about_labels([f"up{separator}down", "left"]) == []
    (doubt,) = doubts_about_labels([f"up{separator}down", "up", "down"])
    assert doubt.startswith(f"labels that contain {separator!r}")


@pytest.mark.parametrize(
    ("cells", "named"),
    [
        (["a", "b", 1], "values of different types: text 2 times, a number 1 times"),
        ([True, 1, 0], "values of different types: a number 2 times, true or false 1 times"),
        ([["a", 1], ["b"]], "values of different types: text 2 times, a number 1 times"),
        (["1", "a", "nan"], "numbers ('1' (1 row)) beside words ('a' (1 row))"),
    ],
    ids=str,
)
def test_mixed_types(cells: Sequence[Any], named: str) -> None:
    labels = [str(part) for cell in cells for part in (cell if isinstance(cell, list) else [cell])]
    assert named in doubts_about_labels(labels, cells)


@pytest.mark.parametrize(
    ("labels", "cells"),
    [
        (["0", "1", "10"], [0, 1, 10]),
        (["0", "1"], [0, 1.0]),
        (["-1", "0", "1"], []),
        (["C#", "C++", "c", "and/or", "24/7 help", "don't"], []),
        (["yes", "no", "maybe"], ["yes", "no", "maybe"]),
        (["w2", "rollover_401k"], []),
        (["ü", "u"], []),
    ],
    ids=str,
)
def test_ordinary_labels_raise_no_doubt(labels: list[str], cells: list[Any]) -> None:
    assert doubts_about_labels(labels, cells) == []
