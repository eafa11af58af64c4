"""Predictions come back in the order of the input, as CSV or JSON lines that any reader takes."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lora_lightning.datamodules import SyntheticIntentsDataModule
from lora_lightning.datamodules.batching import LengthGroupedBatchSampler
from lora_lightning.datamodules.prediction_files import write_table
from lora_lightning.datamodules.sequence_classification import LabeledTexts
from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics import LabelSpace
from lora_lightning.tasks import SequenceClassificationTask
from lora_lightning.training.prediction_writer import PredictionWriter

LABELS = ["alarm", "balance", "weather"]
TEXTS = [
    "plain",
    "commas, and, more",
    'she said "hi"',
    '"',
    "it's",
    "zürich 東京 🎷",
    "semi;colon\ttab",
    "  spaces around  ",
    "a\u2028b",
    "=1+1",
    "null",
]
TASK = SequenceClassificationTask("tiny", label_space=LabelSpace(LABELS, None, True, {}))
INTENTS = [index % 3 for index in range(len(TEXTS))]


def batches_by_length(process: int = 0, processes: int = 1) -> list[dict[str, Tensor]]:
    """What `predict_step` gives for TEXTS, longest first; the score tells the row."""
    lengths = np.array([len(text) for text in TEXTS])
    sampler = LengthGroupedBatchSampler(lengths, 3, False, num_replicas=processes, rank=process)
    return [
        {
            "index": torch.tensor(rows),
            "intent": torch.tensor([INTENTS[row] for row in rows]),
            "score": torch.tensor([row / 100 for row in rows]),
            "out_of_scope_score": torch.tensor([1 - row / 100 for row in rows]),
            "is_out_of_scope": torch.tensor([row % 2 == 1 for row in rows]),
        }
        for rows in sampler
    ]


EXPECTED = [
    {
        "text": text,
        "intent": LABELS[INTENTS[row]],
        "score": round(row / 100, 6),
        "out_of_scope_score": round(1 - row / 100, 6),
        "decision": "out_of_scope" if row % 2 else "in_scope",
    }
    for row, text in enumerate(TEXTS)
]


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n")]
    with path.open(encoding="utf-8", newline="") as stream:
        rows: list[dict[str, Any]] = list(csv.DictReader(stream, strict=True))
    return [row | {name: float(row[name]) for name in ("score", "out_of_scope_score")} for row in rows]


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_come_in_the_order_of_the_input(processes: int) -> None:
    batches = [batch for process in range(processes) for batch in batches_by_length(process, processes)]
    seen = [row for batch in batches for row in batch["index"].tolist()]
    assert seen != sorted(seen)
    assert TASK.prediction_rows(batches, [{"text": text} for text in TEXTS]) == EXPECTED


@pytest.mark.parametrize("name", ["answers.csv", "answers.jsonl"])
def test_what_is_written_reads_back_the_same(tmp_path: Path, name: str) -> None:
    path = tmp_path / "new" / "folder" / name
    write_table(path, EXPECTED)
    assert read(path) == EXPECTED
    assert list(read(path)[0]) == ["text", "intent", "score", "out_of_scope_score", "decision"]
    assert len(path.read_bytes().splitlines()) == len(TEXTS) + (path.suffix == ".csv")
    assert "東京 🎷".encode() in path.read_bytes()  # readable, not escaped


@pytest.mark.parametrize("name", ["answers.csv", "answers.jsonl"])
def test_an_older_file_is_replaced(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_table(path, EXPECTED)
    write_table(path, EXPECTED[:2])
    assert read(path) == EXPECTED[:2]


@pytest.mark.parametrize("file", ["answers.txt", "answers", "answers.json", ".csv/answers"])
def test_an_unknown_ending_is_refused_before_anything_loads(file: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        SyntheticIntentsDataModule().check_predictions_file(Path(file))
    assert str(raised.value) == f"--predictions.file is {file!r}, but its extension must be .csv or .jsonl."


@pytest.mark.parametrize("taken", ["folder", "file as folder"])
def test_a_file_that_cannot_be_written_is_named_with_the_reason(tmp_path: Path, taken: str) -> None:
    path = tmp_path / "answers.csv"
    if taken == "folder":
        path.mkdir()
    else:
        (tmp_path / "file").write_text("")
        path = tmp_path / "file" / "answers.csv"
    with pytest.raises(ConfigurationError) as raised:
        write_table(path, EXPECTED)
    message = str(raised.value)
    assert message.startswith(f"the predictions cannot be written to {path} (")
    assert message.endswith("); choose another --predictions.file.")
    assert "None" not in message


@pytest.mark.parametrize(("rank", "written"), [(0, True), (1, False)])
def test_the_first_process_alone_writes(tmp_path: Path, rank: int, written: bool) -> None:
    path = tmp_path / "answers.jsonl"
    datamodule = SyntheticIntentsDataModule()
    datamodule.prediction_splits = {"predict": LabeledTexts(TEXTS)}
    trainer: Any = SimpleNamespace(world_size=1, is_global_zero=rank == 0, datamodule=datamodule)
    writer = PredictionWriter(str(path))
    writer.write_on_epoch_end(trainer, TASK, batches_by_length(), [])
    assert path.exists() == written
    assert writer.rows_written == len(TEXTS) * written
    if written:
        assert read(path) == EXPECTED


def test_several_splits_are_written_one_after_another(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    datamodule = SyntheticIntentsDataModule()
    datamodule.prediction_splits = {"predict_a": LabeledTexts(TEXTS), "predict_b": LabeledTexts(TEXTS[:3])}
    trainer: Any = SimpleNamespace(world_size=1, is_global_zero=True, datamodule=datamodule)
    short = [{name: column[batch["index"] < 3] for name, column in batch.items()} for batch in batches_by_length()]
    PredictionWriter(str(path)).write_on_epoch_end(trainer, TASK, [batches_by_length(), short], [])
    assert read(path) == EXPECTED + EXPECTED[:3]
