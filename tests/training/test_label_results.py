"""The scores of labels and the calibration: kept, drawn and written."""

import csv
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics import MULTI_LABEL, ClassificationMetrics, LabelSpace
from lora_lightning.metrics.label_scores import LabelScore
from lora_lightning.tasks import SequenceClassificationTask
from lora_lightning.training.label_results import (
    LabelResults,
    results_of_last_splits,
    write_label_scores,
    write_pictures,
)


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
    assert results.results == {}


def scored_task(space: LabelSpace, target: list[Any]) -> SequenceClassificationTask:
    """A task that has just scored four rows, whose logits are 1.5 for one label, and -1.5 for the other."""
    task = SequenceClassificationTask("none", lora=None, label_space=space)
    task.scored_splits, task.metrics["val"] = ["val"], ClassificationMetrics(space)
    logits = torch.eye(len(space.names))[torch.tensor([0, 1, 1, 0])] * 3 - 1.5
    task.split_metrics("val").update(logits, torch.tensor(target), torch.tensor(0.5))
    return task


def pictures_in(folder: Path) -> dict[str, list[int]]:
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [picture.step for picture in events.Images(tag)] for tag in events.Tags()["images"]}


def test_results_are_kept_drawn_and_written(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path / "logs")
    trainer: Any = SimpleNamespace(
        sanity_checking=False, global_step=7, is_global_zero=True, callbacks=[LabelResults()], loggers=[logger]
    )
    task = scored_task(LabelSpace(["a", "b"]), [0, 1, 0, 0])
    trainer.callbacks[0].on_validation_end(trainer, task)
    trainer.global_step = 8
    trainer.callbacks[0].on_test_end(trainer, task)
    logger.save()
    assert pictures_in(Path(logger.log_dir)) == {"val/labels": [8], "val/calibration": [8]}
    found = results_of_last_splits(trainer)["val"]
    assert found.scores == [LabelScore("a", 1.0, 2 / 3, 0.8, 3), LabelScore("b", 0.5, 1.0, 2 / 3, 1)]
    assert found.calibration is not None
    assert (found.calibration.counts[14], found.calibration.accuracy[14]) == (4, 0.75)
    assert found.calibration.error == pytest.approx(1 / (1 + math.exp(-3)) - 0.75)
    paths = write_pictures(tmp_path, "val", found)
    assert [path.name for path in paths] == ["val_labels.png", "val_calibration.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_several_labels_a_text_have_no_confidence(tmp_path: Path) -> None:
    space = LabelSpace(["a", "b"], problem_type=MULTI_LABEL)
    trainer: Any = SimpleNamespace(callbacks=[LabelResults()], loggers=[], is_global_zero=True)
    trainer.callbacks[0].on_test_end(trainer, scored_task(space, [[1.0, 0], [0, 1.0], [1.0, 1.0], [1.0, 0]]))
    found = results_of_last_splits(trainer)["val"]
    assert found.scores == [LabelScore("a", 1.0, 2 / 3, 0.8, 3), LabelScore("b", 1.0, 1.0, 1.0, 2)]
    assert [path.name for path in write_pictures(tmp_path, "val", found)] == ["val_labels.png"]
