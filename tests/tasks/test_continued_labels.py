"""Labels of an adapter and of the data match by name, as those of a finished backbone do."""

import pytest

from lora_lightning.errors import CheckpointError
from lora_lightning.metrics import LabelSpace
from lora_lightning.tasks.continued_labels import label_order


@pytest.mark.parametrize(
    ("own", "data", "order"),
    [
        (["a", "b", "c"], ["a", "b", "c"], None),
        (["a", "b", "c"], ["c", "a", "b"], [2, 0, 1]),
        (["NEGATIVE", "Positive "], ["positive", "negative"], [1, 0]),
        (["NEGATIVE", "POSITIVE"], ["negative", "positive"], None),
        (["a", "A"], ["A", "a"], [1, 0]),  # exactly, if that is possible
        (["Straße", "b"], ["b", "STRASSE"], [1, 0]),
        (["LABEL_0", "LABEL_1"], ["label_1", "label_0"], None),  # numbers say nothing, so the order counts
    ],
)
@pytest.mark.filterwarnings("ignore:the labels of the adapter A have no names")
def test_where_each_label_is(own: list[str], data: list[str], order: list[int] | None) -> None:
    assert label_order(LabelSpace(own), LabelSpace(data), "A") == order


@pytest.mark.parametrize(
    ("own", "data", "message"),
    [
        (["a", "b"], ["a", "c"], "the adapter alone has b; the data alone has c"),
        (["a", "A"], ["A ", "a "], "the adapter alone has a, A; the data alone has A , a "),  # could be either
        (["a", "b", "B"], ["a", "B", "B "], "the adapter alone has b; the data alone has B "),
    ],
)
def test_labels_that_do_not_match_one_to_one_are_refused(own: list[str], data: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        label_order(LabelSpace(own), LabelSpace(data), "A")
