"""The task's own steps: loss, candidates, threshold and readable answers, against plain loops."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import Tensor
from torch.nn import functional

from lora_lightning.datamodules import Clinc150DataModule, SquadV2DataModule
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.metrics.question_answering import Candidates
from lora_lightning.metrics.squad_v2 import score_answers, squad_v2_report
from lora_lightning.tasks import QuestionAnsweringTask
from lora_lightning.tasks.question_answering import prediction_row
from tests.conftest import TinyBackbone
from tests.family_trials.tiny_architectures import save_tiny_model
from tests.tiny_data import save_tiny_squad
from tests.tiny_models import FAMILIES


@pytest.fixture
def data(tiny_backbone: TinyBackbone, tmp_path: Path) -> SquadV2DataModule:
    module = SquadV2DataModule(
        str(save_tiny_squad(tmp_path / "squad")),
        backbone=str(tiny_backbone("bert")),
        max_length=32,
        doc_stride=8,
        cache_dir=str(tmp_path / "cache"),
        predict_file=str(tmp_path / "squad" / "dev-v2.0.json"),
        eval_batch_size=5,
    )
    module.prepare_data()
    module.setup("fit")
    return module


def built(backbone: Path, **settings: Any) -> QuestionAnsweringTask:
    task = QuestionAnsweringTask(str(backbone), **({"lora": LoraSettings(r=2)} | settings))
    torch.manual_seed(1)
    task.configure_model()
    return task.eval()


def quiet_trainer(folder: Path) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        use_distributed_sampler=False,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_the_mean_of_both_cross_entropies_and_knows_no_padding(
    tiny_backbone: TinyBackbone, family: str
) -> None:
    task = built(tiny_backbone(family))
    ids = torch.arange(5, 17).view(2, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    targets = {"start_positions": torch.tensor([1, 0]), "end_positions": torch.tensor([4, 3])}
    loss = task.evaluate({"input_ids": ids, "attention_mask": mask, **targets})[-1]
    expected = []
    for row, length in enumerate((6, 4)):
        with torch.no_grad():
            output = task.built_network(input_ids=ids[row : row + 1, :length])
        for logits, name in ((output.start_logits, "start_positions"), (output.end_logits, "end_positions")):
            scores = logits[0].double().numpy()
            expected.append(math.log(np.exp(scores).sum()) - scores[targets[name][row]])
    assert loss.item() == pytest.approx(np.mean(expected), abs=1e-5)


def test_padding_gets_no_gradient(tiny_backbone: TinyBackbone) -> None:
    task = built(tiny_backbone("bert"))
    start = torch.zeros(1, 3, requires_grad=True)
    functional.cross_entropy(
        start.masked_fill(torch.tensor([[False, False, True]]), -torch.inf), torch.tensor([0])
    ).backward()
    assert start.grad is not None
    assert start.grad.isfinite().all()
    assert start.grad[0, 2] == 0
    assert task.training is False


def naive_answers(task: QuestionAnsweringTask, data: SquadV2DataModule, longest: int) -> tuple[list[str], list[float]]:
    """The best span and the null odds of each validation question, over all windows and pairs of tokens."""
    best: dict[int, tuple[float, str]] = {}
    null: dict[int, float] = {}
    for row in range(len(data.splits["val"])):
        batch = data.splits["val"][[row]]
        with torch.no_grad():
            start, end = (logits[0].tolist() for logits in task(batch))
        number = int(batch["question"])
        tokens = [t for t in range(len(start)) if batch["char_end"][0, t] > batch["char_start"][0, t]]
        for s in tokens:
            for e in tokens:
                if 0 <= e - s < longest and start[s] + end[e] > best.get(number, (-math.inf, ""))[0]:
                    text = data.questions("val")[number].context[batch["char_start"][0, s] : batch["char_end"][0, e]]
                    best[number] = (start[s] + end[e], text)
        score = start[int(batch["null_position"])] + end[int(batch["null_position"])]
        null[number] = min(null.get(number, math.inf), score)
    numbers = sorted(best)
    return [best[n][1] for n in numbers], [null[n] - best[n][0] for n in numbers]


def test_validation_and_prediction_are_those_of_plain_loops(
    tiny_backbone: TinyBackbone, data: SquadV2DataModule, tmp_path: Path
) -> None:
    task = built(tiny_backbone("bert"), max_answer_length=3, n_best=4)
    answers, null_odds = naive_answers(task, data, longest=3)
    trainer = quiet_trainer(tmp_path)
    trainer.validate(task, data, verbose=False)
    task.choose_threshold("val")  # as in training; a validation alone keeps the threshold
    trainer.validate(task, data, verbose=False)
    scores = score_answers(data.questions("val"), answers, null_odds)
    threshold = float(task.null_threshold)
    expected = squad_v2_report(scores, threshold)
    given = ["" if odds > threshold else text for odds, text in zip(scores.null_score, answers, strict=True)]
    assert task.answers("val") == given
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert {name: found[f"val/{name}"] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert found["val/f1"] == pytest.approx(found["val/best_f1"])
    assert math.isfinite(found["val/loss"])

    trainer = quiet_trainer(tmp_path)
    batches = trainer.predict(task, data)
    assert batches is not None
    rows = task.prediction_rows(batches[::-1], data.prediction_inputs("predict"))  # type: ignore[arg-type]
    assert [row["id"] for row in rows] == [question.id for question in data.questions("val")]
    assert [row["nbest"] for row in rows if len({entry["text"] for entry in row["nbest"]}) != len(row["nbest"])] == []
    for row, text, odds in zip(rows, answers, null_odds, strict=True):
        assert row["null_odds"] == pytest.approx(odds, abs=1e-5)
        assert row["answer"] == ("" if row["null_odds"] > threshold else text)
        assert len(row["nbest"]) == 5
        assert next(entry["text"] for entry in row["nbest"] if entry["text"]) == text
        assert sum(entry["probability"] for entry in row["nbest"]) == pytest.approx(1, abs=1e-5)


CONTEXT = "one two  three"


def candidates(*rows: tuple[int, int, float], null_score: float) -> Candidates:
    start, end, score = (np.array(column) for column in zip(*rows, strict=True))
    return Candidates(np.zeros(len(rows), dtype=int), start, end, score, np.full(len(rows), null_score))


def test_one_row_of_predictions_by_hand() -> None:
    ranked = candidates((4, 7, 2.0), (3, 9, 1.5), (0, 3, 1.0), (9, 14, 0.5), null_score=1.2)
    row = prediction_row({"id": "q", "context": CONTEXT}, ranked, threshold=0.0, n_best=2)
    weights = np.exp([2.0, 1.2, 1.0])
    shares = [round(float(weight), 6) for weight in weights / weights.sum()]
    assert row == {
        "id": "q",
        "answer": "two",
        "null_odds": pytest.approx(-0.8),
        "nbest": [
            {"text": "two", "score": 2.0, "probability": shares[0]},  # "two" again, with space around it, is the same
            {"text": "", "score": 1.2, "probability": shares[1]},
            {"text": "one", "score": 1.0, "probability": shares[2]},
        ],
    }
    assert prediction_row({"id": "q", "context": CONTEXT}, ranked, threshold=-0.9, n_best=2)["answer"] == ""


def test_space_alone_is_no_answer() -> None:
    row = prediction_row({"id": "q", "context": CONTEXT}, candidates((7, 9, 2.0), (0, 3, 1.0), null_score=0.5), 9.0, 5)
    assert row["answer"] == ""
    assert [entry["text"] for entry in row["nbest"]] == ["one", ""]


def test_windows_with_fewer_spans_than_asked_propose_no_more(tiny_backbone: TinyBackbone) -> None:
    task = built(tiny_backbone("bert"), n_best=50, max_answer_length=2)
    batch: dict[str, Tensor] = {
        "input_ids": torch.tensor([[5, 6, 7]]),
        "attention_mask": torch.ones(1, 3, dtype=torch.int64),
        "char_start": torch.tensor([[0, 0, 4]]),
        "char_end": torch.tensor([[0, 3, 7]]),
        **{name: torch.tensor([0]) for name in ("index", "question", "null_position")},
    }
    with torch.no_grad():
        found = task.predict_step(batch, 0)
    (row,) = task.prediction_rows([found], [{"id": "q", "context": "one two"}])
    assert {entry["text"] for entry in row["nbest"]} == {"", "one", "two", "one two"}


@pytest.mark.parametrize(
    ("threshold", "written"), [(0.5, 0.5), (math.inf, 3.4028234663852886e38), (-math.inf, -3.4028234663852886e38)]
)
def test_export_says_when_to_answer(tiny_backbone: TinyBackbone, threshold: float, written: float) -> None:
    task = QuestionAnsweringTask(str(tiny_backbone("bert")), max_answer_length=7)
    task.null_threshold.fill_(threshold)
    assert task.export_files() == {"question_answering.json": {"null_threshold": written, "max_answer_length": 7}}


@pytest.mark.parametrize("name", ["max_answer_length", "n_best"])
def test_settings_below_one_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"model\.{name} is 0, but it must be at least 1"):
        QuestionAnsweringTask("x", **{name: 0})


def test_data_without_questions_is_refused(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    task = QuestionAnsweringTask(str(tiny_backbone("bert")))
    task._trainer = quiet_trainer(tmp_path)
    task.trainer._data_connector.attach_datamodule(task, Clinc150DataModule())
    with pytest.raises(ConfigurationError, match=r"needs questions, and Clinc150DataModule has none; use SquadV2Data"):
        task.setup("fit")


@pytest.mark.parametrize(
    ("family", "task_type"), [("bert", None), ("electra", None), ("roberta", "QUESTION_ANS"), ("gpt2", "QUESTION_ANS")]
)
def test_pefts_wrapper_is_left_where_it_would_drop_token_types(
    tiny_backbone: TinyBackbone, family: str, task_type: str | None
) -> None:
    assert built(tiny_backbone(family)).built_network.peft_config["default"].task_type == task_type  # type: ignore[union-attr,index]


def test_outputs_are_the_logits_without_padding_and_the_proposed_answers(
    tiny_backbone: TinyBackbone, data: SquadV2DataModule
) -> None:
    task = built(tiny_backbone("bert"))
    batch = next(batch for batch in data.val_dataloader() if (batch["attention_mask"] == 0).any())
    start, end = task(batch)
    found = task.predict_step(batch, 0)
    for threshold in (math.inf, -math.inf, 0.0):
        task.null_threshold.fill_(threshold)
        said = task.outputs(batch, task.evaluate(batch))
        assert torch.equal(said.logits, torch.cat([start, end]))
        finite = said.logits.isfinite().sum()
        assert finite == 2 * batch["attention_mask"].sum() < said.logits.numel()
        null_odds = (found["null_score"] - found["score"])[:, 0]
        assert torch.equal(said.decisions == -1, null_odds > threshold)
        spans = torch.stack([found["start"][:, 0], found["end"][:, 0]], dim=1)[said.decisions != -1]
        assert len(said.decisions[said.decisions != -1].unique()) == len(spans.unique(dim=0))


def test_tokens_that_big_bird_rules_out_have_minus_infinity(tmp_path: Path) -> None:
    save_tiny_model("big_bird", tmp_path / "model")
    tokens = torch.tensor([[1, 5, 6, 2, 2, 7, 8, 2]])
    task = built(tmp_path / "model")
    for logits in task({"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}):
        # Of the question all but the first token, which stands for no answer.
        assert logits.isinf().tolist() == [[False, True, True, True, False, False, False, False]]
        assert logits[~logits.isinf()].abs().max() < 100
