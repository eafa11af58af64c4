"""The file of the scores of labels."""

import csv
from pathlib import Path
from typing import Any, cast

import pytest

from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics.label_scores import LabelScore
from lora_lightning.training.label_results import LabelResults, write_label_scores


def test_the_file_has_a_row_for_each_label_and_empty_cells_for_what_is_not_defined(tmp_path: Path) -> None:
    scores = [LabelScore('a, "b"\nc', 0.5, 1 / 3, 0.4, 12), LabelScore("ä", None, 0.0, 0.0, 3)]
    path = write_label_scores(tmp_path, "val_matched", scores)
    assert path == tmp_path / "val_matched_labels.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        assert list(csv.reader(stream)) == [
            ["label", "precision", "recall", "f1", "support"],
            ['a, "b"\nc', "0.5", "0.3333333333333333", "0.4", "12"],
            ["ä", "", "0.0", "0.0", "3"],
        ]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="make the run folder writable"):
        write_label_scores(tmp_path / "nowhere", "test", [])


def test_other_tasks_have_no_labels() -> None:
    results = LabelResults()
    results.on_test_end(cast("Any", None), cast("Any", object()))
    assert results.scores == {}
