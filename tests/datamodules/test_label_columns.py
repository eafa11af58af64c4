"""Labels get the same class numbers in every run."""

from lora_lightning.datamodules.label_columns import sorted_names


def test_labels_that_are_equal_as_numbers_keep_their_order() -> None:
    names = [f"{'0' * zeros}{number}" for number in (1, 2) for zeros in (3, 2, 1, 0)]
    assert names[0] == "0001"
    assert names[-1] == "2"
    assert sorted_names(names[::-1]) == names
