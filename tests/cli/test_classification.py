"""Whole runs with every kind of label: what is trained, scored, exported and predicted."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lora_lightning.cli.main import main
from lora_lightning.tasks import SequenceClassificationTask
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_table
from tests.tiny_glue import ROWS, save_tiny_glue

pytestmark = pytest.mark.filterwarnings("ignore:.*where GLUE has", "ignore:.*are also in the training data")

KINDS = {
    "word": ("single_label_classification", "val/f1", ["no", "yes"]),
    "set": ("multi_label_classification", "val/micro_f1", ["a", "b", "c"]),
    "number": ("regression", "val/pearson", ["label"]),
}
CLASS_WEIGHT = {"word": '{"yes": 2.0}', "set": "balanced", "number": "null"}
THRESHOLD = {"word": "best_f1", "set": "best_f1", "number": "null"}


def fit_words(backbone: Path, logs: Path, *more: str) -> list[str]:
    return [
        "fit",
        "--model=SequenceClassificationTask",
        f"--model.backbone={backbone}",
        "--model.optimization.learning_rate=0.01",
        *more,
        "--data.batch_size=8",
        f"--data.cache_dir={logs / 'cache'}",
        "--trainer.max_epochs=2",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1",
        "--trainer.logger=TensorBoardLogger",
        f"--trainer.logger.save_dir={logs}",
        "--trainer.logger.name=run",
    ]


def evaluate_words(command: str, run: Path, *more: str) -> list[str]:
    return [command, f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints/best.ckpt'}", *more]


def metrics_of(run: Path) -> dict[str, float]:
    content: dict[str, float] = json.loads((run / "summary.json").read_text())["metrics"]
    return content


@pytest.fixture(scope="module", params=KINDS)
def own_data_run(
    request: pytest.FixtureRequest, tiny_backbone: TinyBackbone, tmp_path_factory: Any
) -> tuple[str, Path]:
    """A finished run on pairs of texts with one kind of label; not to be changed."""
    kind: str = request.param
    logs = tmp_path_factory.mktemp(kind)
    problem_type, monitor, _ = KINDS[kind]
    train = save_tiny_table(logs / "data" / "train.csv", label=kind)
    test = save_tiny_table(logs / "data" / "test.csv", rows=11, label=kind)
    words = [
        "--data=TextClassificationDataModule",
        f"--data.train_file={train}",
        f"--data.test_file={test}",
        "--data.text_pair_column=other",
        f"--data.problem_type={problem_type}",
        f"--checkpoint.monitor={monitor}",
        "--checkpoint.mode=max",
        f"--model.class_weight={CLASS_WEIGHT[kind]}",
        f"--model.decision_threshold={THRESHOLD[kind]}",
    ]
    assert main(fit_words(tiny_backbone("bert"), logs, *words)) == 0
    return kind, logs / "run" / "version_0"


def test_a_run_reports_the_metrics_of_its_kind(own_data_run: tuple[str, Path]) -> None:
    kind, run = own_data_run
    expected = {
        "word": "accuracy macro_f1 weighted_f1 calibration_error matthews_correlation f1 precision recall",
        "set": "micro_f1 macro_f1 exact_match mean_average_precision",
        "number": "pearson spearman mean_squared_error mean_absolute_error",
    }[kind].split()
    of_scores = {"calibration_error", "mean_average_precision"}
    expected += [f"{name}_at_threshold" for name in expected if kind != "number" and name not in of_scores]
    assert set(metrics_of(run)) == {f"{split}/{name}" for split in ("val", "test") for name in ["loss", *expected]}


def test_a_run_is_not_resumed_with_other_class_weights(
    own_data_run: tuple[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    kind, run = own_data_run
    words = ["fit", f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints/last.ckpt'}"]
    weights = '{"a": 3.0}' if kind == "set" else '{"yes": 3.0}'
    assert main([*words, f"--model.class_weight={weights}", "--trainer.logger.name=other"]) == 2
    assert "contradicts the options: class_weight" in capfd.readouterr().err


def test_the_checkpoint_tests_as_in_training(own_data_run: tuple[str, Path]) -> None:
    _, run = own_data_run
    assert main(evaluate_words("test", run)) == 0
    metrics = json.loads((run / "test_metrics.json").read_text())
    expected = {name: value for name, value in metrics_of(run).items() if name.startswith("test/")}
    assert metrics == pytest.approx(expected, abs=1e-6)


def test_validation_chose_the_threshold_and_the_test_did_not(own_data_run: tuple[str, Path]) -> None:
    kind, run = own_data_run
    if kind == "number":
        return
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]["label_threshold"]
    metrics = metrics_of(run)
    name = "f1" if kind == "word" else "micro_f1"
    assert 0 < float(best) < 1
    assert float(best) != 0.5
    assert metrics[f"val/{name}_at_threshold"] >= metrics[f"val/{name}"]
    card = (run / "adapter/README.md").read_text()
    assert f"`decision_threshold` {float(best):.4g} in `labels.json` was chosen on validation data" in card


def test_a_checkpoint_without_a_threshold_has_none_to_test(
    own_data_run: tuple[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    kind, run = own_data_run
    if kind == "number":
        return
    assert main(evaluate_words("test", run, "--model.decision_threshold=null")) == 2
    assert "decision_threshold" in capfd.readouterr().err.splitlines()[-1]


def label_rows(run: Path, split: str) -> list[dict[str, str]]:
    with (run / f"{split}_labels.csv").open() as stream:
        return list(csv.DictReader(stream))


def test_the_scores_of_labels_are_in_a_file_and_in_a_table(
    own_data_run: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    kind, run = own_data_run
    assert main(evaluate_words("validate", run)) == 0
    printed = capsys.readouterr().out
    if kind == "number":
        assert "support" not in printed
        assert not list(run.glob("*_labels.csv"))
        return
    test, val = label_rows(run, "test"), label_rows(run, "val")  # the first is that of training
    assert [row["label"] for row in test] == KINDS[kind][2]
    assert f"labels: {run / 'val_labels.csv'}" in printed
    pictures = ["val_labels.png", *(["val_calibration.png"] if kind == "word" else [])]
    assert f"pictures: {', '.join(str(run / name) for name in pictures)}" in printed
    assert {path.name for path in run.glob("val_*.png")} == set(pictures)
    scores = [float(row["f1"] or 0) for row in val]
    name, expected = ("val/f1", scores[1]) if kind == "word" else ("val/macro_f1", sum(scores) / 3)
    assert metrics_of(run)[name] == pytest.approx(expected, abs=1e-6)
    rows = [re.split(r"[ │]+", line.strip()) for line in printed.splitlines()]
    for row in val:
        cells = [row["label"], *(f"{float(row[key]):.4f}" if row[key] else "-" for key in ("precision", "recall"))]
        assert cells in [found[:3] for found in rows]
    assert sum(int(row["support"]) for row in test) == (11 if kind == "word" else 14)


def test_plain_peft_loads_the_adapter_and_knows_the_labels(
    own_data_run: tuple[str, Path], tiny_backbone: TinyBackbone
) -> None:
    kind, run = own_data_run
    problem_type, _, names = KINDS[kind]
    task = SequenceClassificationTask.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True).eval()
    config = AutoConfig.from_pretrained(run / "adapter", subfolder="config")
    assert (config.problem_type, list(config.id2label.values())) == (problem_type, names)
    threshold = {} if kind == "number" else {"decision_threshold": float(task.label_threshold)}
    labels = json.loads((run / "adapter/labels.json").read_text())
    assert labels == {"names": names, "problem_type": problem_type, **threshold}
    base = AutoModelForSequenceClassification.from_pretrained(tiny_backbone("bert"), config=config)
    model = PeftModel.from_pretrained(base, run / "adapter").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "adapter")
    batch = tokenizer(["w10 w100", "w11"], ["w3", "w4 w5"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
        torch.testing.assert_close(logits, task(dict(batch)), rtol=0, atol=1e-5)
    assert logits.shape == (2, len(names))


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_predictions_stand_beside_their_texts(own_data_run: tuple[str, Path], tmp_path: Path, ending: str) -> None:
    kind, run = own_data_run
    queries = tmp_path / "queries.csv"
    queries.write_text("other,id,text\nw3,1,w10 w60 w5 w5\nw4,2,w11\n")
    answers = tmp_path / f"answers.{ending}"
    more = [f"--data.predict_file={queries}", f"--predictions.file={answers}", "--data.train_file=/nowhere.csv"]
    assert main(evaluate_words("predict", run, *more)) == 0
    with answers.open() as stream:
        rows: list[dict[str, Any]] = (
            list(csv.DictReader(stream)) if ending == "csv" else [json.loads(line) for line in stream]
        )
    assert [(row["text"], row["text_pair"]) for row in rows] == [("w10 w60 w5 w5", "w3"), ("w11", "w4")]
    names = KINDS[kind][2]
    threshold = json.loads((run / "adapter/labels.json").read_text()).get("decision_threshold", 0.5)
    for row in rows:
        if kind == "word":
            score = float(row["score"])
            assert (row["label"] == "yes") is ((score if row["label"] == "yes" else 1 - score) >= threshold)
        elif kind == "number":
            assert float(row["prediction"]) == pytest.approx(0.5, abs=2)
        else:
            found, scores = (json.loads(row[name]) if ending == "csv" else row[name] for name in ("labels", "scores"))
            assert list(scores) == names
            assert found == [name for name in names if scores[name] >= threshold]


def test_two_processes_count_every_row_once(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    data = save_tiny_glue(tmp_path / "data", "stsb", rows=13)
    words = ["--data=GlueDataModule", "--data.task_name=stsb", f"--data.data_dir={data}", "--data.allow_partial=true"]
    assert main(fit_words(tiny_backbone("bert"), tmp_path, *words)) == 0
    run = tmp_path / "run" / "version_0"
    more = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.eval_batch_size=3"]
    command = [sys.executable, "-m", "lora_lightning", *evaluate_words("validate", run, *more)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((run / "validate_metrics.json").read_text())
    assert metrics == pytest.approx(metrics_of(run), abs=1e-5)
    assert set(metrics) == {"val/loss", "val/pearson", "val/spearman"}


@pytest.fixture(scope="module")
def mnli_run(tiny_backbone: TinyBackbone, tmp_path_factory: Any) -> Path:
    """A finished run on MNLI; not to be changed."""
    logs: Path = tmp_path_factory.mktemp("mnli")
    save_tiny_glue(logs / "data", "mnli")
    dev = logs / "data" / "MNLI" / "dev_mismatched.tsv"
    dev.write_text("\n".join(dev.read_text().split("\n")[:6]))  # to tell the two apart
    words = [
        "--data=GlueDataModule",
        "--data.task_name=mnli",
        f"--data.data_dir={save_tiny_glue(logs / 'data', 'ax')}",
        "--data.allow_partial=true",
        "--checkpoint.monitor=val_mismatched/accuracy",
        "--checkpoint.mode=max",
    ]
    assert main(fit_words(tiny_backbone("roberta"), logs, *words)) == 0
    return logs / "run" / "version_0"


def test_matched_and_mismatched_are_validated_apart(mnli_run: Path) -> None:
    metrics = metrics_of(mnli_run)
    assert set(metrics) == {f"val_{part}/{name}" for part in ("matched", "mismatched") for name in ("loss", "accuracy")}
    assert metrics["val_mismatched/accuracy"] * 5 == pytest.approx(round(metrics["val_mismatched/accuracy"] * 5))
    assert metrics["val_matched/accuracy"] * ROWS == pytest.approx(round(metrics["val_matched/accuracy"] * ROWS))
    assert metrics["val_matched/loss"] != metrics["val_mismatched/loss"]
    best = torch.load(mnli_run / "checkpoints/best.ckpt", weights_only=True)["callbacks"]["AdapterCheckpoint"]
    assert float(best["best_model_score"]) == pytest.approx(metrics["val_mismatched/accuracy"])


def test_validation_alone_gives_the_same(mnli_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(evaluate_words("validate", mnli_run)) == 0
    assert json.loads((mnli_run / "validate_metrics.json").read_text()) == pytest.approx(metrics_of(mnli_run), abs=1e-6)
    assert "validation mismatched" in capsys.readouterr().out


def test_a_run_without_a_test_split_says_why(
    tiny_backbone: TinyBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = save_tiny_glue(tmp_path / "data", "rte")
    words = ["--data=GlueDataModule", "--data.task_name=rte", f"--data.data_dir={data}", "--data.allow_partial=true"]
    assert main(fit_words(tiny_backbone("bert"), tmp_path, *words, "--trainer.max_steps=1")) == 0
    assert "not tested: GLUE's test labels are not public; `predict` writes" in capsys.readouterr().out


def test_predict_writes_the_submission_into_the_run(mnli_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(evaluate_words("predict", mnli_run)) == 0
    assert main(evaluate_words("predict", mnli_run, "--data.task_name=ax")) == 0
    folder = mnli_run / "glue_submission"
    assert f"{ROWS} predictions written to {folder}" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["AX.tsv", "MNLI-m.tsv", "MNLI-mm.tsv"]
    answers = {path.name: [line.split("\t") for line in path.read_text().splitlines()] for path in folder.iterdir()}
    for lines in answers.values():
        assert [number for number, _ in lines] == ["index", *map(str, range(ROWS))]
        assert {word for _, word in lines[1:]} <= {"entailment", "neutral", "contradiction"}
    assert answers["MNLI-m.tsv"] == answers["MNLI-mm.tsv"] == answers["AX.tsv"]  # the same texts


MISUSE: dict[str, tuple[str, list[str], list[str]]] = {
    "test labels": ("test", [], ["GLUE's test labels are not public"]),
    "another task": (
        "predict",
        ["--data.task_name=sst2"],
        ["knows the labels entailment, neutral", "sst2 of GLUE has"],
    ),
    "a file for a folder": ("predict", ["--predictions.file=a.csv"], ["a.csv", "a GLUE submission is a folder"]),
    "an unknown task": ("validate", ["--data.task_name=mnl"], ["task_name", "'mnl'", "'mnli'"]),
    "a partial file": ("validate", ["--data.allow_partial=false"], ["has 12 rows where GLUE has 392702"]),
    "smoothed numbers": (
        "fit",
        ["--data.task_name=stsb", "--model.label_smoothing=0.1", "--trainer.logger.name=other"],
        ["model.label_smoothing is 0.1, but this data is regression; set it to 0"],
    ),
    "a threshold of three labels": (
        "fit",
        ["--model.decision_threshold=best_f1", "--trainer.logger.name=other"],
        ["model.decision_threshold is for two labels, or several labels a text, but this data is single label"],
    ),
    "weighted numbers": (
        "fit",
        ["--data.task_name=stsb", "--model.class_weight=balanced", "--trainer.logger.name=other"],
        ["model.class_weight is 'balanced', but this data is regression and has no labels; set it to null"],
    ),
    "weight of an unknown label": (
        "fit",
        ["--model.class_weight={entailmnt: 2}", "--trainer.logger.name=other"],
        ["model.class_weight names 'entailmnt', which is no label; did you mean 'entailment'"],
    ),
    "no weight": (
        "fit",
        ["--model.class_weight={neutral: 0}", "--trainer.logger.name=other"],
        ["model.class_weight of 'neutral' is 0.0, but it must be a positive number"],
    ),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_one_clear_sentence(mnli_run: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    command, more, needed = MISUSE[case]
    words = [command, f"--config={mnli_run / 'config.yaml'}", *more]
    if command != "fit":
        words.append(f"--ckpt_path={mnli_run / 'checkpoints/best.ckpt'}")
    assert main(words) == 2
    output = capfd.readouterr().err
    last = output.strip().splitlines()[-1]
    assert last.startswith("lora-lightning: error: ")
    assert "Traceback" not in output
    for text in needed:
        assert text in last


@pytest.mark.parametrize("mistake", ["no training file", "too long"])
def test_a_mistake_in_the_data_leaves_no_run_behind(
    tiny_backbone: TinyBackbone, tmp_path: Path, capfd: pytest.CaptureFixture[str], mistake: str
) -> None:
    data = save_tiny_glue(tmp_path / "data", "rte")
    words = ["--data=GlueDataModule", "--data.task_name=rte", f"--data.data_dir={data}", "--data.allow_partial=true"]
    if mistake == "no training file":
        (data / "RTE/train.tsv").unlink()
    else:
        train = data / "RTE/train.tsv"
        train.write_text(train.read_text() + "\n12\t" + "w1 " * 50 + "\tw2\tentailment")
    assert main(fit_words(tiny_backbone("bert"), tmp_path, *words)) == 2
    output = capfd.readouterr()
    wording = {
        "no training file": "RTE/train.tsv, which does not exist",
        "too long": "set data.max_length to at most 40",
    }
    assert wording[mistake] in output.err
    assert "run folder" not in output.out
    assert not (tmp_path / "run").exists()


def test_an_unknown_metric_is_one_clear_sentence(
    tiny_backbone: TinyBackbone, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train = save_tiny_table(tmp_path / "train.csv")
    words = ["--data=TextClassificationDataModule", f"--data.train_file={train}", "--data.metrics=[acuracy]"]
    assert main(fit_words(tiny_backbone("bert"), tmp_path, *words)) == 2
    assert "there is no metric 'acuracy' for single label classification with 2 labels; did you mean 'accuracy'" in (
        capfd.readouterr().err
    )
    assert not (tmp_path / "run").exists()
