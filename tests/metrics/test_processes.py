"""Metrics of several processes are those of all rows, also if one process has none (nothing heavy is imported here)."""

import json
import warnings
from pathlib import Path

import processes
import pytest
import torch

from lora_lightning.metrics import REGRESSION, ClassificationMetrics, IntentMetrics, LabelSpace
from lora_lightning.metrics.question_answering import AnswerCandidates

ROWS = 5
WITH_ROWS = 2  # of the three processes
PREDICTIONS, TARGETS = torch.tensor([1e5, 1e5 + 1, 1e9, 1e5 + 2, 1e5]), torch.tensor([1e5, 1e5 + 1, 1e5 + 4, 1e5, 1e5])
LOGITS, LABELS = torch.eye(3).repeat(2, 1)[:ROWS] * 3, torch.tensor([0, 1, 2, 1, 2])


def measure(rows: range) -> dict[str, float]:
    """What the metrics say if this process has these rows, a batch each."""
    numbers = ClassificationMetrics(LabelSpace(["score"], problem_type=REGRESSION))
    intents = IntentMetrics(LabelSpace(["a", "b", "oos"], 2, True, {"x": [0]}))
    answers = AnswerCandidates()
    for row in rows:
        one = slice(row, row + 1)
        numbers.update(PREDICTIONS[one, None], TARGETS[one], torch.tensor(float(row)))
        intents.update(LOGITS[one], LABELS[one], torch.tensor(float(row)))
        answers.update(
            *(torch.tensor([number]) for number in (2**31 + row, row, row + 1)), torch.ones(1), torch.ones(1)
        )
    values = {name: float(value) for part in (numbers, intents) for name, value in part.compute().items()}
    return values | {"questions": float(answers.compute().question.sum()), "threshold": intents.choose_threshold()}


def measure_together(rank: int, count: int, port: int, folder: Path) -> None:
    processes.join_training(rank, count, port)
    warnings.simplefilter("ignore")  # a process without rows computes before it updates
    torch.distributed.init_process_group("gloo", rank=rank, world_size=count)
    values = measure(range(rank, ROWS, WITH_ROWS) if rank < WITH_ROWS else range(0))
    torch.distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(values))


def test_processes_together_measure_what_one_does(tmp_path: Path) -> None:
    expected = measure(range(ROWS))
    assert expected["questions"] == ROWS * 2**31 + 10
    processes.start_processes(measure_together, 3, tmp_path)
    for rank in range(3):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(expected, rel=1e-9)
