"""Labels are read as they were meant, and get the same class indices in every run."""

from typing import Any

import pytest

from lora_lightning.datamodules.label_columns import class_labels, label_sets, sorted_names
from lora_lightning.errors import DataError
from lora_lightning.runs.tables import Table


def test_labels_that_are_equal_as_numbers_keep_their_order() -> None:
    names = [f"{'0' * zeros}{number}" for number in (1, 2) for zeros in (3, 2, 1, 0)]
    assert names[0] == "0001"
    assert names[-1] == "2"
    assert sorted_names(names[::-1]) == names


def table_of(*cells: Any) -> Table:
    return Table("rows.csv", {"label": list(cells)}, "line", range(2, len(cells) + 2))


def test_lists_written_as_text_are_lists() -> None:
    cells = ["['animal', 'home']", '["home"]', "money,animal", ["home"], "[]", "", "array(['money'], dtype=object)"]
    rows = label_sets(table_of(*cells), "label", ",")
    assert rows == [["animal", "home"], ["home"], ["money", "animal"], ["home"], [], [], ["money"]]


@pytest.mark.parametrize("cell", ["['a', 'b'", "{'a': 1}", "[['a'], ['b']]", "a'],b", ["['a'", "b"], '"a],b'])
def test_what_only_looks_like_a_list_is_refused(cell: Any) -> None:
    with pytest.raises(DataError, match=r"rows\.csv, line 3: .* looks like a list written as text, but cannot be read"):
        label_sets(table_of("a,b", cell), "label", ",")


@pytest.mark.parametrize("kind", [str, list])
def test_vectors_of_zeros_and_ones_are_refused(kind: Any) -> None:
    cells = [kind([0, 1, 0]), kind([1, 1, 0]), kind([0, 0, 0])]
    with pytest.raises(DataError, match=r"every row of column 'label' holds 3 times 0 or 1, .* write the names"):
        label_sets(table_of(*cells), "label", ",")


@pytest.mark.parametrize("cell", ["['spam']", "[1, 2]", '["a", "b"]', "array([1])", "{'a': 1}"])
def test_a_list_is_no_single_label(cell: str) -> None:
    with pytest.raises(DataError, match=r"line 3: the label .* looks like a list .* set data\.problem_type: multi_la"):
        class_labels(table_of("ham", cell), "label")


def test_brackets_in_a_single_label_are_part_of_it() -> None:
    assert class_labels(table_of("[spam]", "(none)", "a, b"), "label") == ["[spam]", "(none)", "a, b"]
