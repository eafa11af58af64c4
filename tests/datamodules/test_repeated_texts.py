"""Texts that several splits share, or that have different labels, are found."""

import pytest

from lora_lightning.datamodules.repeated_texts import (
    rows_in_both,
    rows_with_a_known_text,
    texts_with_different_labels,
    warn_about_repeated_texts,
)


@pytest.mark.parametrize(
    ("train", "other", "found"),
    [
        ([("a",), ("b",)], [("c",), ("b",), (" a ",)], [1, 2]),
        ([("a", "b")], [("b", "a"), ("a", "b")], [1]),
        ([("a",)], [("A",)], []),
    ],
)
def test_rows_in_both_are_found(train: list[tuple[str, ...]], other: list[tuple[str, ...]], found: list[int]) -> None:
    assert rows_in_both(train, other) == found


def test_texts_with_different_labels_are_found_across_splits() -> None:
    texts = {"train": [("a",), ("b",), ("c",)], "val": [(" a ",), ("b",)], "test": [("c",), ("c",)]}
    labels = {"train": ["x", "x", "x"], "val": ["y", "x"], "test": ["x", "z"]}
    assert texts_with_different_labels(texts, labels) == {("a",): ["x", "y"], ("c",): ["x", "z"]}


def test_the_warnings_count_rows_and_texts() -> None:
    texts = {"train": [("a",), ("a",)], "test": [("a",), ("b",)]}
    with pytest.warns(UserWarning) as said:  # noqa: PT030
        warn_about_repeated_texts(texts, {"train": ["x", "y"], "test": ["x", "x"]})
    assert [str(warning.message) for warning in said] == [
        "1 of 2 rows of the test split are also in the training data, such as 'a'; scores on them will be too high.",
        "1 text occurs with different labels, such as 'a' with 'x' and 'y'; correct or remove the rows.",
    ]


def test_rows_with_a_known_text_share_any_place_of_a_pair() -> None:
    train = [("a", "b"), ("c", "")]
    assert rows_with_a_known_text(train, [("x", " a "), ("b", "y"), ("x", ""), ("x", "y"), ("c", "z")]) == [0, 1, 4]
