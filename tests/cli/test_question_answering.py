"""SQuAD from end to end on a tiny backbone: train, evaluate, predict, resume, two processes, misuse."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_lightning.cli.main import main
from lora_lightning.metrics.squad_v2 import Question, score_answers, squad_v2_report
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150, save_tiny_squad

Words = list[str]


def fit_words(backbone: Path, data: Path, logs: Path, *more: str) -> Words:
    """A small training run in which the model learns what an answer looks like."""
    return [
        "fit",
        "--seed_everything=1",
        "--model=QuestionAnsweringTask",
        f"--model.backbone={backbone}",
        "--model.lora.r=4",
        "--model.optimization.learning_rate=0.02",
        "--data=SquadV2DataModule",
        f"--data.data_dir={data}",
        "--data.max_length=32",
        "--data.doc_stride=8",
        "--data.batch_size=8",
        f"--data.cache_dir={logs / 'cache'}",
        "--trainer.max_epochs=10",
        "--early_stopping.patience=20",  # a run that stopped early would not go on
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1",
        "--trainer.logger=TensorBoardLogger",
        f"--trainer.logger.save_dir={logs}",
        "--trainer.logger.name=run",
        "--checkpoint.monitor=val/f1",
        "--checkpoint.mode=max",
        *more,
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_squad(tmp_path_factory.mktemp("squad"))


@pytest.fixture(scope="module")
def run(tiny_backbone: TinyBackbone, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished training run; not to be changed."""
    logs = tmp_path_factory.mktemp("logs")
    assert main(fit_words(tiny_backbone("bert"), data, logs)) == 0
    return logs / "run" / "version_0"


def evaluate_words(command: str, run: Path, *more: str) -> Words:
    return [command, f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints/best.ckpt'}", *more]


def metrics_of(path: Path) -> dict[str, float]:
    content: dict[str, Any] = json.loads(path.read_text())
    return dict(content.get("metrics", content))


def questions_of(path: Path) -> list[Question]:
    return [
        Question(
            entry["id"],
            entry["question"],
            paragraph["context"],
            tuple((answer["text"], answer["answer_start"]) for answer in entry["answers"]),
        )
        for article in json.loads(path.read_text())["data"]
        for paragraph in article["paragraphs"]
        for entry in paragraph["qas"]
    ]


def test_a_run_learns_and_leaves_what_a_user_needs(run: Path) -> None:
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {"config.yaml", "summary.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= files
    assert {
        f"adapter/{name}" for name in ("adapter_model.safetensors", "config/config.json", "tokenizer.json")
    } <= files
    metrics = metrics_of(run / "summary.json")
    assert metrics["val/f1"] > 0.6 > 1 / 3  # a third have no answer
    names = {"exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1", "loss"}
    names |= {"best_exact", "best_exact_thresh", "best_f1", "best_f1_thresh"}
    assert set(metrics) == {f"{split}/{name}" for split in ("val", "test") for name in names}
    assert metrics["test/f1"] == pytest.approx(metrics["val/f1"])  # dev is both
    assert metrics["val/f1"] == pytest.approx(metrics["val/best_f1"])


def test_a_checkpoint_holds_what_trains_and_the_threshold(run: Path) -> None:
    state = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    rest = [name for name in state if "lora_" not in name and "qa_outputs.modules_to_save" not in name]
    assert rest == ["null_threshold"]
    threshold = state["null_threshold"].item()
    assert threshold >= metrics_of(run / "summary.json")["val/best_f1_thresh"]
    exported = json.loads((run / "adapter/question_answering.json").read_text())
    assert exported["null_threshold"] == pytest.approx(threshold, abs=1e-6)


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test")])
def test_evaluation_gives_the_training_runs_own_metrics(run: Path, command: str, split: str) -> None:
    assert main(evaluate_words(command, run)) == 0
    expected = {name: v for name, v in metrics_of(run / "summary.json").items() if name.startswith(f"{split}/")}
    assert metrics_of(run / f"{command}_metrics.json") == pytest.approx(expected, abs=1e-6)


def test_test_keeps_the_threshold_of_validation(run: Path, tmp_path: Path) -> None:
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    checkpoint["state_dict"]["null_threshold"].fill_(-torch.inf)
    torch.save(checkpoint, tmp_path / "silent.ckpt")
    assert main(["test", f"--config={run / 'config.yaml'}", f"--ckpt_path={tmp_path / 'silent.ckpt'}"]) == 0
    metrics = metrics_of(tmp_path / "test_metrics.json")
    assert (metrics["test/HasAns_f1"], metrics["test/NoAns_f1"]) == (0, 1)
    assert metrics["test/best_f1"] == pytest.approx(metrics_of(run / "summary.json")["test/best_f1"])


def test_predictions_score_as_the_run_says(run: Path, data: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.json"
    more = ["--data.data_dir=/nowhere", f"--data.predict_file={data / 'dev-v2.0.json'}"]
    assert main(evaluate_words("predict", run, *more, f"--predictions.file={answers}")) == 0
    questions = questions_of(data / "dev-v2.0.json")
    given = json.loads(answers.read_text())
    null_odds = json.loads((tmp_path / "answers_null_odds.json").read_text())
    best = json.loads((tmp_path / "answers_nbest.json").read_text())
    assert list(given) == list(null_odds) == list(best) == [question.id for question in questions]
    scores = score_answers(questions, list(given.values()), list(null_odds.values()))
    report = squad_v2_report(scores, torch.inf)  # the answers have the threshold in them already
    expected = metrics_of(run / "summary.json")
    names = ("exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "NoAns_f1")
    assert {name: report[name] for name in names} == pytest.approx({name: expected[f"test/{name}"] for name in names})
    raw = [next(entry["text"] for entry in best[question.id] if entry["text"]) for question in questions]
    again = squad_v2_report(score_answers(questions, raw, list(null_odds.values())), torch.inf)
    for name in ("best_exact", "best_f1", "best_f1_thresh"):
        assert again[name] == pytest.approx(expected[f"test/{name}"], abs=1e-5)


def test_prediction_lands_in_the_run_and_needs_no_answers(
    run: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((data / "dev-v2.0.json").read_text())
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            paragraph["qas"] = [{"id": entry["id"], "question": entry["question"]} for entry in paragraph["qas"]]
    (tmp_path / "ask.json").write_text(json.dumps(content))
    assert main(evaluate_words("predict", run, f"--data.predict_file={tmp_path / 'ask.json'}")) == 0
    assert len(json.loads((run / "predictions.json").read_text())) == 18
    assert f"18 predictions written to {run / 'predictions.json'}" in capfd.readouterr().out


def test_training_goes_on_from_the_last_checkpoint(run: Path, tmp_path: Path) -> None:
    words = ["fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={tmp_path}"]
    assert main([*words, "--trainer.max_epochs=11", f"--ckpt_path={run / 'checkpoints/last.ckpt'}"]) == 0
    after = torch.load(tmp_path / "run/version_0/checkpoints/last.ckpt", weights_only=True)
    before = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert after["global_step"] == before["global_step"] * 11 // 10


@pytest.mark.parametrize("command", ["test", "predict"])
def test_two_processes_count_every_question_once(run: Path, data: Path, tmp_path: Path, command: str) -> None:
    more = ["--trainer.devices=2", "--trainer.strategy=ddp", "--data.eval_batch_size=3"]
    if command == "predict":
        more += [f"--data.predict_file={data / 'dev-v2.0.json'}", f"--predictions.file={tmp_path / 'two.json'}"]
    words = evaluate_words(command, run, *more)
    result = subprocess.run(
        [sys.executable, "-m", "lora_lightning", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    if command == "test":
        expected = {n: value for n, value in metrics_of(run / "summary.json").items() if n.startswith("test/")}
        assert metrics_of(run / "test_metrics.json") == pytest.approx(expected, abs=1e-5)
        return
    one = tmp_path / "one.json"
    assert main(evaluate_words("predict", run, *more[2:-1], f"--predictions.file={one}")) == 0
    assert json.loads((tmp_path / "two.json").read_text()) == json.loads(one.read_text())
    odds = [json.loads((tmp_path / f"{name}_null_odds.json").read_text()) for name in ("one", "two")]
    assert odds[0] == pytest.approx(odds[1], abs=1e-5)


@pytest.mark.parametrize(
    ("family", "more"),
    [
        ("distilbert", ["--model.lora=null"]),
        ("roberta", ["--data.validation_share=0.3"]),
        ("gpt2", ["--model.max_answer_length=2"]),
        ("llama", ["--trainer.limit_val_batches=0", "--test_after_fit=false"]),
        ("modernbert", ["--trainer.logger=CSVLogger"]),
        ("bert", ["--trainer.limit_val_batches=1"]),  # some questions have no window yet
    ],
)
def test_other_ways_to_train(tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, family: str, more: Words) -> None:
    words = fit_words(tiny_backbone(family), data, tmp_path, "--trainer.max_epochs=1", *more)
    assert main(words) == 0
    assert len(list(tmp_path.rglob("last.ckpt"))) == 1
    assert len(list(tmp_path.rglob("adapter/question_answering.json"))) == 1


def _wrong_offset(folder: Path) -> Path:
    squad = save_tiny_squad(folder / "squad")
    content = json.loads((squad / "dev-v2.0.json").read_text())
    content["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] += 1
    (squad / "dev-v2.0.json").write_text(json.dumps(content))
    return squad


MISUSE: dict[str, tuple[Callable[[Path, Path], Words], list[str]]] = {
    "an answer that is elsewhere": (
        lambda _, folder: [f"--data.data_dir={_wrong_offset(folder)}"],
        ["dev-v2.0.json, question 'q36': the answer 'w150'", "which reads '150 "],
    ),
    "windows too long": (lambda *_: ["--data.max_length=41"], ["data.max_length is 41", "takes 40 tokens at most"]),
    "windows too short": (
        lambda *_: ["--data.max_length=9", "--data.doc_stride=8"],
        ["train-v2.0.json, question 'q0' has 1 tokens", "data.max_length 9"],
    ),
    "a target that is the head": (
        lambda *_: ['--model.lora.target_modules=["qa_outputs"]'],
        ["no linear layer 'qa_outputs'"],
    ),
    "intents instead of questions": (
        lambda _, folder: [
            "--data=Clinc150DataModule",
            f"--data.data_dir={save_tiny_clinc150(folder / 'clinc')}",
            f"--data.cache_dir={folder}",
        ],
        ["QuestionAnsweringTask needs questions, and Clinc150DataModule has none"],
    ),
    "a metric of another task": (lambda *_: ["--checkpoint.monitor=val/accuracy"], ["'val/accuracy'"]),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_one_clear_sentence(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    words, needed = MISUSE[case]
    given = fit_words(tiny_backbone("bert"), data, tmp_path)
    if case == "intents instead of questions":
        given = [word for word in given if not word.startswith("--data")]
    assert main([*given, *words(data, tmp_path)]) == 2
    captured = capfd.readouterr()
    output = captured.err
    last = output.strip().splitlines()[-1]
    assert last.startswith("lora-lightning: error: ")
    assert "Traceback" not in output
    for text in needed:
        assert text in last
    if case.startswith("windows"):
        assert "run folder" not in captured.out
        assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_another_task_is_refused(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    del checkpoint["state_dict"]["null_threshold"]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    assert main(["test", f"--config={run / 'config.yaml'}", f"--ckpt_path={tmp_path / 'other.ckpt'}"]) == 2
    assert "null_threshold" in capfd.readouterr().err
    shutil.rmtree(tmp_path)
