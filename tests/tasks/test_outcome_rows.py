"""One row per test document and per question, against the model alone and the official scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from numpy.typing import NDArray

from lora_lightning.analysis.metric_outcomes import metric_outcomes
from lora_lightning.datamodules import InstructionDataModule, PlainTextDataModule, SquadV2DataModule
from lora_lightning.datamodules.batching import EncodedSplit
from lora_lightning.errors import DataError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.metrics import MULTI_LABEL, LabelSpace
from lora_lightning.metrics.squad_v2 import squad_v2_report
from lora_lightning.studies.trial_measurements import OUTCOMES, TestOutcomes, read_outcome_rows
from lora_lightning.tasks import (
    AdaptationTask,
    CausalLanguageModelingTask,
    QuestionAnsweringTask,
    SequenceClassificationTask,
)
from lora_lightning.tasks.held_out_batches import evaluation_mode
from lora_lightning.tasks.next_token import IGNORED
from lora_lightning.tasks.outcome_rows import batch_rows, split_rows
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_squad

PARAGRAPHS = ["w1 w2 w3\nw4", "w5", "w6 w7 w8 w9 w10 w11 w12", "w13 w14 w15"]


def rows_and_metrics(
    task: AdaptationTask, data: Any, folder: Path, **options: Any
) -> tuple[dict[str, NDArray[Any]], dict[str, float]]:
    """What a test of a task writes, and the metrics that it logs."""
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[TestOutcomes()],
        **options,
    )
    (metrics,) = trainer.test(task, datamodule=data, verbose=False)
    rows = read_outcome_rows(folder / OUTCOMES, "test")
    return rows, {name.removeprefix("test/"): float(value) for name, value in metrics.items()}


def brute_force(losses: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Jackknife pseudo-values of the log perplexity, each document left out in turn."""
    n = len(losses)
    without = [np.average(np.delete(losses, i), weights=np.delete(weights, i)) for i in range(n)]
    everything = np.average(losses, weights=weights)
    return np.array([n * everything - (n - 1) * each for each in without]) + (
        (n - 1) * (np.mean(without) - everything)  # Tukey's mean is the jackknife's estimate; here it is the metric
    )


def check_outcomes(rows: dict[str, NDArray[Any]], metrics: dict[str, float]) -> None:
    """Checks that the means over documents are the metrics, and their spread that of the jackknife."""
    assert metrics["perplexity"] == pytest.approx(np.exp(metrics["loss"]), rel=1e-6)
    found = metric_outcomes("perplexity", rows, np.log(metrics["perplexity"]))
    assert found is not None
    np.testing.assert_allclose(found, brute_force(-rows["score"], rows["weight"]), rtol=1e-9)
    assert found.mean() == pytest.approx(metrics["loss"], rel=1e-5)
    np.testing.assert_array_equal(found, metric_outcomes("loss", rows, metrics["loss"]))
    accuracy = metric_outcomes("next_token_accuracy", rows, metrics["next_token_accuracy"])
    assert accuracy is not None
    assert accuracy.mean() == pytest.approx(metrics["next_token_accuracy"], abs=1e-6)
    assert metric_outcomes("perplexity", rows, metrics["perplexity"]) is None  # its logarithm is what is averaged


def language_model(backbone: Path) -> CausalLanguageModelingTask:
    task = CausalLanguageModelingTask(str(backbone), lora=LoraSettings(r=2), base_dropout=0.0)
    torch.manual_seed(0)
    task.configure_model()
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.mul_(3)  # neighbours matter
    return task


@pytest.mark.parametrize("context_length", [4, 7, 30])
def test_tokens_of_a_text_belong_to_its_paragraphs(
    tiny_backbone: TinyBackbone, tmp_path: Path, context_length: int
) -> None:
    backbone = tiny_backbone("gpt2")
    (tmp_path / "a.txt").write_text("\n\n".join(PARAGRAPHS))
    file = str(tmp_path / "a.txt")
    data = PlainTextDataModule(
        train_file=file, validation_file=file, test_file=file, context_length=context_length, backbone=str(backbone),
        cache_dir=str(tmp_path), eval_batch_size=2,
    )  # fmt: skip
    rows, metrics = rows_and_metrics(language_model(backbone), data, tmp_path)
    tokens = [len(data.tokenizer(paragraph)["input_ids"]) for paragraph in PARAGRAPHS]
    tokens[0] -= 1  # nothing precedes the first token
    assert rows["index"].tolist() == [0, 1, 2, 3]
    assert rows["weight"].tolist() == tokens
    assert (rows["hits"] <= rows["weight"]).all()
    check_outcomes(rows, metrics)


@pytest.mark.parametrize("packing", [True, False])
def test_packed_instructions_have_the_loss_that_each_has_alone(
    tiny_backbone: TinyBackbone, tmp_path: Path, packing: bool
) -> None:
    backbone = tiny_backbone("gpt2")
    records = [
        {"instruction": " ".join(["w1"] * words), "output": " ".join(f"w{words + n}" for n in range(1 + words % 3))}
        for words in (3, 1, 30, 2, 5, 1)
    ]
    (tmp_path / "a.json").write_text(json.dumps(records))
    options: dict[str, Any] = {"context_length": 30, "long_examples": "drop", "backbone": str(backbone)}
    files = dict.fromkeys(("train_file", "validation_file", "test_file"), str(tmp_path / "a.json"))
    data = InstructionDataModule(**files, **options, packing=packing, cache_dir=str(tmp_path), eval_batch_size=2)
    task = language_model(backbone)
    rows, metrics = rows_and_metrics(task, data, tmp_path)
    assert rows["index"].tolist() == list(range(6))
    dropped = 0
    for number, example in enumerate(data.raw_splits["test"]):
        try:
            losses = losses_alone(task, InstructionDataModule(**options, packing=False).encode_examples([example]))
        except DataError:  # longer than a block
            losses, dropped = [], dropped + 1
        assert rows["weight"][number] == len(losses)
        assert -rows["score"][number] == pytest.approx(np.mean(losses or [0.0]), abs=1e-5)
    assert dropped == 1
    check_outcomes(rows, metrics)


def losses_alone(task: CausalLanguageModelingTask, encoded: EncodedSplit) -> list[float]:
    """The cross entropies of a document that the model reads alone, in NumPy's float64."""
    ids, labels = (torch.from_numpy(encoded.tokens[name].astype(np.int64)) for name in ("input_ids", "labels"))
    with torch.no_grad():
        logits = task.transformers_model(input_ids=ids[None], use_cache=False).logits[0].double().numpy()
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return [-float(log_probabilities[place, label]) for place, label in enumerate(labels.tolist()) if label != IGNORED]


def test_questions_have_the_scores_of_the_official_script(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    backbone = tiny_backbone("bert")
    data = SquadV2DataModule(
        str(save_tiny_squad(tmp_path / "squad")), backbone=str(backbone), max_length=32, doc_stride=8,
        cache_dir=str(tmp_path), eval_batch_size=5,
    )  # fmt: skip
    task = QuestionAnsweringTask(str(backbone), lora=LoraSettings(r=2))
    torch.manual_seed(1)
    task.configure_model()
    rows, _ = rows_and_metrics(task, data, tmp_path)
    odds = task.question_scores("test").null_score
    task.null_threshold.fill_(float(np.median(odds)))  # some are answered, some are not
    rows, metrics = rows_and_metrics(task, data, tmp_path)
    scores = task.question_scores("test")
    assert metrics["f1"] == pytest.approx(squad_v2_report(scores, float(task.null_threshold))["f1"])
    assert rows["index"].tolist() == list(range(len(data.questions("test"))))
    assert rows["has_answer"].tolist() == [bool(question.answers) for question in data.questions("test")]
    losses: dict[int, list[float]] = {}
    with torch.no_grad(), evaluation_mode(task):
        for batch in data.test_dataloader():
            start, end, _ = task.evaluate(batch)
            for side, logits in (("start", start), ("end", end)):
                own = -logits.log_softmax(dim=-1).gather(1, batch[f"{side}_positions"][:, None])
                for question, loss in zip(batch["question"].tolist(), own[:, 0].tolist(), strict=True):
                    losses.setdefault(question, []).append(loss)
    assert rows["weight"].tolist() == [len(losses[number]) / 2 for number in rows["index"]]
    assert rows["weight"].max() > 1
    assert rows["score"] == pytest.approx([-np.mean(losses[number]) for number in rows["index"]], rel=1e-5)
    for name in ("loss", "exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1"):
        found = metric_outcomes(name, rows, metrics[name])
        assert found is not None, name
        assert found.mean() == pytest.approx(metrics[name])
        assert set(found) <= {0.0, 1.0} or name.endswith("f1") or name == "loss"
    assert len(metric_outcomes("NoAns_f1", rows, metrics["NoAns_f1"])) == (~rows["has_answer"]).sum()  # type: ignore[arg-type]
    assert metric_outcomes("best_f1", rows, metrics["best_f1"]) is None  # chosen on the test


def test_documents_that_a_data_module_does_not_number_have_no_rows(tiny_backbone: TinyBackbone) -> None:
    task = language_model(tiny_backbone("gpt2"))
    tokens = torch.full((1, 4), 5)
    batch = {"input_ids": tokens, "labels": tokens, "attention_mask": torch.ones_like(tokens)}
    assert batch_rows(task, batch) == {}
    assert split_rows(task, None, "test", [{}]) == {}


def test_exact_matches_are_those_of_the_metric_that_no_threshold_moves() -> None:
    space = LabelSpace(["a", "b"], problem_type=MULTI_LABEL)
    task = SequenceClassificationTask("none", lora=None, decision_threshold="best_f1", label_space=space)
    task.label_threshold.fill_(0.9)
    logits = torch.tensor([[1.0, -1.0], [3.0, -1.0], [1.0, 1.0]])
    batch = {"index": torch.arange(3), "labels": torch.tensor([[1.0, 0], [1.0, 0], [0, 0]])}
    found = batch_rows(task, batch, (logits, torch.tensor(0.5)))
    assert found["exact"].tolist() == [True, True, False]
    assert task.outputs(batch, (logits, torch.tensor(0.5))).decisions.tolist() == [[0, 0], [1, 0], [0, 0]]
