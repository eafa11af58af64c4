"""The program from end to end on a tiny backbone: train, evaluate, predict, resume, and every way to misuse it."""

import csv
import io
import json
import math
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchmetrics import Metric
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lora_lightning.cli.commands import run_command
from lora_lightning.cli.main import main
from lora_lightning.tasks import SequenceClassificationTask
from tests.conftest import TinyBackbone
from tests.tiny_data import INTENTS, save_tiny_clinc150

Words = list[str]


def fit_words(backbone: Path, data: Path, logs: Path, *more: str) -> Words:
    """A small training run of two epochs."""
    return [
        "fit",
        "--seed_everything=1",
        "--model=SequenceClassificationTask",
        f"--model.backbone={backbone}",
        "--model.lora.r=4",
        "--model.optimization.learning_rate=0.02",
        "--data=Clinc150DataModule",
        f"--data.data_dir={data}",
        "--data.batch_size=8",
        f"--data.cache_dir={logs / 'cache'}",
        "--trainer.max_epochs=2",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1",
        "--trainer.logger=TensorBoardLogger",
        f"--trainer.logger.save_dir={logs}",
        "--trainer.logger.name=run",
        "--checkpoint.monitor=val/in_scope_accuracy",
        "--checkpoint.mode=max",
        *more,
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny release."""
    return save_tiny_clinc150(tmp_path_factory.mktemp("clinc150"))


@pytest.fixture(scope="module")
def run(tiny_backbone: TinyBackbone, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished training run; not to be changed."""
    logs = tmp_path_factory.mktemp("logs")
    assert main(fit_words(tiny_backbone("bert"), data, logs)) == 0
    return logs / "run" / "version_0"


def evaluate_words(command: str, run: Path, *more: str) -> Words:
    return [command, f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints/best.ckpt'}", *more]


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def trained_state(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / f"checkpoints/{name}.ckpt", weights_only=True)["state_dict"]
    return state


def test_a_run_leaves_everything_a_user_needs(run: Path) -> None:
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "hparams.yaml",
        "summary.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/README.md",
        "adapter/config/config.json",
        "adapter/labels.json",
        "adapter/tokenizer.json",
    } <= files
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_tensorboard_shows_curves_and_the_confusion(run: Path) -> None:
    tags: dict[str, set[str]] = {"scalars": set(), "images": set()}
    for path in run.glob("events.*"):
        events = EventAccumulator(str(path))
        events.Reload()
        for kind, names in tags.items():
            names.update(events.Tags()[kind])
    assert {
        "train/loss",
        "train/learning_rate/pg1",
        "val/loss",
        "val/in_scope_accuracy",
        "val/domain_accuracy/banking",
        "val/out_of_scope_auroc",
        "with_best/test/in_scope_accuracy",
        "with_best/test/calibration_error",
    } <= tags["scalars"]
    assert {"val/confusion", *(f"with_best/test/{name}" for name in ("confusion", "labels", "calibration"))} <= tags[
        "images"
    ]


def test_a_checkpoint_holds_what_trains_and_nothing_else(run: Path) -> None:
    state = trained_state(run)
    assert "out_of_scope_threshold" in state
    weights = {name: tensor for name, tensor in state.items() if name != "out_of_scope_threshold"}
    assert all("lora_" in name or "modules_to_save" in name for name in weights)
    saved = sum(tensor.untyped_storage().nbytes() for tensor in weights.values())
    assert saved <= 1.05 * 4 * summary(run)["trained_parameters"]


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test")])
def test_evaluation_gives_the_training_runs_own_metrics(run: Path, command: str, split: str) -> None:
    before = (run / "config.yaml").read_bytes()
    assert main(evaluate_words(command, run)) == 0
    metrics = json.loads((run / f"{command}_metrics.json").read_text())
    expected = {name: value for name, value in summary(run)["metrics"].items() if name.startswith(f"{split}/")}
    assert metrics == pytest.approx(expected, abs=1e-6)
    assert len(metrics) > 15
    assert (run / "config.yaml").read_bytes() == before


def test_the_saved_config_reproduces_the_run_bit_for_bit(run: Path, tmp_path: Path) -> None:
    words = ["fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={tmp_path}"]
    assert main(words) == 0
    again = trained_state(tmp_path / "run" / "version_0")
    for name, tensor in trained_state(run).items():
        assert torch.equal(tensor, again[name]), name


def test_another_seed_gives_other_weights(run: Path, tmp_path: Path) -> None:
    words = ["fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={tmp_path}", "--seed_everything=2"]
    assert main(words) == 0
    again = trained_state(tmp_path / "run" / "version_0")
    assert any(not torch.equal(tensor, again[name]) for name, tensor in trained_state(run).items())


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_prediction_needs_no_training_data_and_keeps_the_order(run: Path, tmp_path: Path, ending: str) -> None:
    queries = ["w10 w100 a b c d e", "w11, w101", "w12 w102"]
    (tmp_path / "queries.txt").write_text("\n".join(queries) + "\n")
    answers = tmp_path / f"answers.{ending}"
    more = ["--data.data_dir=/nowhere", f"--data.predict_file={tmp_path / 'queries.txt'}"]
    assert main(evaluate_words("predict", run, *more, f"--predictions.file={answers}")) == 0
    content = answers.read_text()
    rows = (
        list(csv.DictReader(io.StringIO(content)))
        if ending == "csv"
        else [json.loads(line) for line in content.splitlines()]
    )
    assert [row["text"] for row in rows] == queries
    assert list(rows[0]) == ["text", "intent", "score", "out_of_scope_score", "decision"]
    assert {row["intent"] for row in rows} <= set(INTENTS)
    assert {row["decision"] for row in rows} <= {"in_scope", "out_of_scope"}
    assert all(0 <= float(row["score"]) <= 1 for row in rows)


def test_prediction_reads_standard_input(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"w10 w100\nw11\n")))
    assert main(evaluate_words("predict", run, "--data.predict_file=-")) == 0
    assert len((run / "predictions.csv").read_text().splitlines()) == 3


def test_plain_peft_loads_the_adapter_and_gives_the_same_logits(run: Path, tiny_backbone: TinyBackbone) -> None:
    task = SequenceClassificationTask.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True).eval()
    config = AutoConfig.from_pretrained(run / "adapter", subfolder="config")
    base = AutoModelForSequenceClassification.from_pretrained(tiny_backbone("bert"), config=config)
    model = PeftModel.from_pretrained(base, run / "adapter").eval()
    batch = AutoTokenizer.from_pretrained(run / "adapter")(["w10 w100 w7", "w11"], padding=True, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, task(inputs), rtol=0, atol=1e-5)
    assert config.id2label[4] == "oos"


def test_training_goes_on_from_the_last_checkpoint(run: Path, tmp_path: Path) -> None:
    words = ["fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={tmp_path}"]
    words += ["--trainer.max_epochs=3", f"--ckpt_path={run / 'checkpoints/last.ckpt'}"]
    assert main(words) == 0
    before = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    after = torch.load(tmp_path / "run/version_0/checkpoints/last.ckpt", weights_only=True)
    assert after["global_step"] == before["global_step"] * 3 // 2
    assert after["epoch"] == 2


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--model.lora=null"], id="full fine-tuning"),
        pytest.param(["--data.oos_as_class=false"], id="threshold only"),
        pytest.param(["--trainer.logger=CSVLogger"], id="another logger"),
        pytest.param(["--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=1"], id="accumulation"),
        pytest.param(["--trainer.limit_val_batches=0", "--test_after_fit=false"], id="no validation"),
        pytest.param(["--trainer.fast_dev_run=true"], id="fast_dev_run"),
        pytest.param(["--trainer.max_steps=3"], id="less than an epoch"),
        pytest.param(["--model.base_dropout=0", "--model.label_smoothing=0.1"], id="no dropout"),
        pytest.param(["--trainer.precision=bf16-mixed", "--trainer.gradient_clip_val=1"], id="mixed precision"),
    ],
)
def test_other_ways_to_train(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: Words
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert main(fit_words(tiny_backbone("distilbert"), data, tmp_path, *more)) == 0
    finished = list(tmp_path.rglob("last.ckpt"))
    assert len(finished) == (0 if "--trainer.fast_dev_run=true" in more else 1)
    if finished:
        assert len(list(tmp_path.rglob("adapter/labels.json"))) == 1
    assert not list(here.iterdir())  # nothing lands in the working directory


def test_a_run_of_less_than_an_epoch_is_validated_at_its_last_step(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path
) -> None:
    assert main(fit_words(tiny_backbone("bert"), data, tmp_path, "--trainer.max_steps=3")) == 0
    folder = tmp_path / "run/version_0"
    assert {"val/in_scope_accuracy", "test/in_scope_accuracy"} <= summary(folder)["metrics"].keys()
    assert torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["global_step"] == 3


def test_without_a_logger_the_run_has_a_folder_of_its_own(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for word in fit_words(tiny_backbone("bert"), data, tmp_path) if "trainer.logger" not in word]
    for version in (0, 1):
        assert main([*words, "--trainer.logger=false", "--trainer.max_epochs=1"]) == 0
        assert (tmp_path / f"lightning_logs/version_{version}/config.yaml").exists()
        assert (tmp_path / f"lightning_logs/version_{version}/checkpoints/best.ckpt").exists()


def test_two_processes_count_every_row_once(run: Path) -> None:
    words = evaluate_words("test", run, "--trainer.devices=2", "--trainer.strategy=ddp")
    command = [sys.executable, "-m", "lora_lightning", *words]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    metrics = json.loads((run / "test_metrics.json").read_text())
    expected = {name: value for name, value in summary(run)["metrics"].items() if name.startswith("test/")}
    assert metrics == pytest.approx(expected, abs=1e-5)


Misuse = Callable[[Path, Path], Words]


def _checkpoint(run: Path, folder: Path, change: Callable[[dict[str, Any]], None]) -> str:
    checkpoint = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, folder / "changed.ckpt")
    return f"--ckpt_path={folder / 'changed.ckpt'}"


def _copied_checkpoints(run: Path, folder: Path) -> Path:
    """Those of a copy of the run, whose scores count because its data is known."""
    return Path(shutil.copytree(run, folder / "version_0")) / "checkpoints"


def _truncated(run: Path, folder: Path) -> str:
    content = (run / "checkpoints/best.ckpt").read_bytes()
    (folder / "torn.ckpt").write_bytes(content[: len(content) // 2])
    return f"--ckpt_path={folder / 'torn.ckpt'}"


def _drop_one(checkpoint: dict[str, Any]) -> None:
    name = next(name for name in checkpoint["state_dict"] if "lora_B" in name)
    del checkpoint["state_dict"][name]


MISUSE: dict[str, tuple[Misuse, list[str]]] = {
    "unknown option": (lambda run, _: evaluate_words("fit", run, "--model.lora.rank=3"), ["model.lora", "'rank'"]),
    "typo in trainer": (lambda run, _: evaluate_words("fit", run, "--trainer.max_epoch=3"), ["max_epochs"]),
    "wrong type": (lambda run, _: evaluate_words("fit", run, "--model.lora.r=x"), ["model.lora.r", "'x'", "int"]),
    "rank 0": (lambda run, _: ["fit", f"--config={run / 'config.yaml'}", "--model.lora.r=0"], ["r is 0", "at least 1"]),
    **{
        f"value {number}": (
            lambda run, _, word=word: ["fit", f"--config={run / 'config.yaml'}", f"--{word}"],
            [sentence],
        )
        for number, (word, sentence) in enumerate(
            {
                "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val is -1",
                "trainer.gradient_clip_val=.nan": "trainer.gradient_clip_val is nan, but it must be a finite norm",
                "trainer.accumulate_grad_batches=10000000000": "it must be at most 2147483648",
                "early_stopping.patience=-1": "early_stopping.patience is -1, but it must be at least 0 validations",
                "early_stopping.patience=null": "early_stopping.patience is 'None', but a value of type int",
                "model.lora.r=1000000000": "model.lora.r is 1000000000, but no layer to adapt has a side longer than",
                "model.lora.lora_alpha=1e300": "model.lora.lora_alpha is 1e+300, but it must be above 0",
                "model.optimization.learning_rate=.inf": "learning_rate is inf, but it must be above 0",
                "model.optimization.weight_decay=.nan": "weight_decay is nan, but it must be at least 0",
                "seed_everything=-1": "seed_everything is -1, but it must be in [0, 4294967296)",
                f"data.data_dir={'a' * 3000}": "a file name is too long: 'aaaaaa",
                f"trainer.logger.save_dir={'a' * 3000}": "is not writable (File name too long)",
                f"model.backbone=./{'a' * 3000}": "a file name is too long: 'aaaaaa",
                "data.data_dir=a\0b": "contains the character",
                "trainer.logger.save_dir=a\0b": "contains the character",
                "model.backbone=./a\0b": "the backbone './a",
                "trainer=5": "trainer is '5', but named options are needed",
            }.items()
        )
    },
    "unknown class": (
        lambda run, _: ["fit", f"--config={run / 'config.yaml'}", "--data=Clinc15DataModule"],
        ["Clinc150DataModule"],
    ),
    "missing config": (lambda *_: ["fit", "--config=nowhere.yaml"], ["nowhere.yaml"]),
    "missing data": (
        lambda run, folder: ["fit", f"--config={run / 'config.yaml'}", f"--data.data_dir={folder}"],
        ["data_full.json"],
    ),
    "unknown module": (
        lambda run, folder: [
            *("fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={folder}"),
            '--model.lora.target_modules=["qurey"]',
        ],
        ["'qurey'", "did you mean 'query'"],
    ),
    "hub without network": (
        lambda run, folder: [
            *("fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={folder}"),
            "--model.backbone=nobody/nothing",
        ],
        ["'nobody/nothing'", "without network"],
    ),
    "other rank": (lambda run, _: evaluate_words("test", run, "--model.lora.r=2"), ["lora.r is 2 here and 4"]),
    "other rank on resume": (lambda run, _: evaluate_words("fit", run, "--model.lora.r=2"), ["lora.r is 2 here and 4"]),
    "other learning rate on resume": (
        lambda run, _: evaluate_words("fit", run, "--model.optimization.learning_rate=0.5"),
        ["optimization.learning_rate is 0.5 here and 0.02"],
    ),
    "other backbone": (
        lambda run, folder: evaluate_words("test", run, f"--model.backbone={_other_backbone(run, folder)}"),
        ["was trained on another base model", "weights", "--allow_other_base"],
    ),
    "other labels": (
        lambda run, folder: evaluate_words("test", run, f"--data.data_dir={_fewer_intents(folder)}"),
        ["label_space.names"],
    ),
    "no checkpoint given": (lambda run, _: ["test", f"--config={run / 'config.yaml'}"], ["--ckpt_path"]),
    "missing checkpoint": (
        lambda run, _: ["test", f"--config={run / 'config.yaml'}", "--ckpt_path=no.ckpt"],
        ["no.ckpt", "does not exist"],
    ),
    "torn checkpoint": (
        lambda run, folder: ["test", f"--config={run / 'config.yaml'}", _truncated(run, folder)],
        ["damaged"],
    ),
    "checkpoint without a trained tensor": (
        lambda run, folder: ["test", f"--config={run / 'config.yaml'}", _checkpoint(run, folder, _drop_one)],
        ["lacks 1 of"],
    ),
    "no queries": (lambda run, _: evaluate_words("predict", run), ["--data.predict_file"]),
    "wrong ending": (
        lambda run, _: evaluate_words("predict", run, "--predictions.file=a.xls"),
        [".csv or .jsonl"],
    ),
    "run folder in use": (
        lambda run, _: ["fit", f"--config={run / 'config.yaml'}", "--trainer.logger.version=0"],
        ["already contains a run"],
    ),
    "run folder not writable": (
        lambda run, _: ["fit", f"--config={run / 'config.yaml'}", "--trainer.logger.save_dir=/proc/nowhere"],
        ["/proc/nowhere", "is not writable"],
    ),
    "no such accelerator": (
        lambda run, _: ["fit", f"--config={run / 'config.yaml'}", "--trainer.accelerator=mps"],
        ["MPS"],
    ),
    "checkpoint keyword": (lambda run, _: ["test", f"--config={run / 'config.yaml'}", "--ckpt_path=best"], ["best"]),
    "higher loss as better": (
        lambda run, folder: [
            *("fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={folder}"),
            "--checkpoint.monitor=val/loss",
        ],
        ["--checkpoint.mode min"],
    ),
    "unknown metric": (
        lambda run, folder: [
            *("fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={folder}"),
            "--checkpoint.monitor=val/acuracy",
        ],
        ["val/acuracy", "val/accuracy"],
    ),
    "another tokenizer": (
        lambda run, _: evaluate_words("fit", run, "--data.backbone=roberta-base"),
        ["data.backbone", "--model.backbone"],
    ),
    "unknown strategy": (lambda run, _: evaluate_words("fit", run, "--trainer.strategy=ddpp"), ["ddpp"]),
    "negative seed": (lambda run, _: evaluate_words("fit", run, "--seed_everything=-1"), ["-1"]),
    "no batch to a step": (
        lambda run, _: ["fit", f"--config={run / 'config.yaml'}", "--trainer.accumulate_grad_batches=0"],
        ["trainer.accumulate_grad_batches is 0", "at least 1"],
    ),
    "negative workers": (lambda run, _: evaluate_words("fit", run, "--data.num_workers=-1"), ["num_workers is -1"]),
    "validation after the epoch's end": (
        lambda run, folder: [
            *("fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={folder}"),
            "--trainer.val_check_interval=1000",
        ],
        ["val_check_interval"],
    ),
    "YAML in another encoding": (lambda _, folder: ["fit", f"--config={_latin_1(folder)}"], ["utf-8"]),
    "predictions nowhere": (
        lambda run, folder: evaluate_words(
            "predict", run, "--predictions.file=/proc/nowhere/a.csv", f"--data.predict_file={_queries(folder)}"
        ),
        ["/proc/nowhere", "--predictions.file"],
    ),
    "two readers of standard input": (
        lambda run, _: evaluate_words("predict", run, "--data.predict_file=-", "--trainer.devices=2"),
        ["standard input", "--trainer.devices 1"],
    ),
    "best checkpoint that is none": (
        lambda run, folder: [
            *("fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={folder}"),
            "--trainer.max_epochs=3",
            _checkpoint(run, _copied_checkpoints(run, folder), lambda found: _point_to(found, _payload(folder))),
        ],
        ["payload", "damaged"],
    ),
    "loss is not a number": (
        lambda run, folder: [
            *("fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={folder}"),
            "--model.optimization.learning_rate=1e38",
        ],
        ["loss became", "at step", "learning_rate"],
    ),
}


def _latin_1(folder: Path) -> Path:
    path = folder / "latin.yaml"
    path.write_bytes("# caf\u00e9\nseed_everything: 1\n".encode("latin-1"))
    return path


def _queries(folder: Path) -> Path:
    path = folder / "queries.txt"
    path.write_text("w1 w2\n")
    return path


def _payload(folder: Path) -> Path:
    """A file that makes another one if unpickled."""
    path = folder / "payload.ckpt"
    path.write_bytes(pickle.dumps(_Payload(folder / "executed")))
    return path


class _Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def _point_to(checkpoint: dict[str, Any], best: Path) -> None:
    checkpoint["callbacks"]["AdapterCheckpoint"] |= {
        "best_model_path": str(best),
        "best_model_score": torch.tensor(2.0),
    }


def _other_backbone(run: Path, folder: Path) -> Path:
    backbone = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["hyper_parameters"]["backbone"]
    other = Path(shutil.copytree(backbone, folder / "another-model"))
    weights = load_file(other / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    return other


def _fewer_intents(folder: Path) -> Path:
    data = save_tiny_clinc150(folder / "fewer")
    path = data / "data_full.json"
    content = {
        split: [row for row in rows if row[1] != "timer"] for split, rows in json.loads(path.read_text()).items()
    }
    path.write_text(json.dumps(content))
    return data


def _of_another_task(checkpoint: dict[str, Any]) -> None:
    del checkpoint["hyper_parameters"]["label_smoothing"], checkpoint["hyper_parameters"]["label_space"]
    checkpoint["hyper_parameters"]["n_best"] = 20


@pytest.mark.parametrize("command", ["fit", "validate", "test"])
def test_a_checkpoint_that_does_not_fit_is_found_before_any_weights_load(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    monkeypatch.delattr(SequenceClassificationTask, "build_network")
    fewer = [f"--data.data_dir={_fewer_intents(tmp_path)}", f"--data.cache_dir={tmp_path}"]
    assert main(evaluate_words(command, run, *fewer)) == 2
    assert "differ from those of the data: label_space.names is" in capfd.readouterr().err
    assert main([command, f"--config={run / 'config.yaml'}", _checkpoint(run, tmp_path, _of_another_task)]) == 2
    message = "does not belong to SequenceClassificationTask: it has n_best, but no label_smoothing, label_space. Use"
    assert message in capfd.readouterr().err


def test_an_unknown_metric_is_refused_before_weights_load(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr("lora_lightning.tasks.sequence_classification.load_sequence_classifier", None)
    words = fit_words(tiny_backbone("bert"), data, tmp_path, "--checkpoint.monitor=val/domain_accuracy/bankk")
    assert main(words) == 2
    assert "which validation does not report" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_one_clear_sentence(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    words, needed = MISUSE[case]
    before = set(run.parent.iterdir())
    assert main(words(run, tmp_path)) == 2
    output = capfd.readouterr().err
    last = output.strip().splitlines()[-1]
    assert last.startswith("lora-lightning: error: ")
    assert "Traceback" not in output
    for text in needed:
        assert text in last
    assert set(run.parent.iterdir()) == before  # a mistake leaves no half run behind
    assert not (tmp_path / "executed").exists()


def test_a_bad_loss_names_the_last_good_checkpoint(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SequenceClassificationTask.training_step

    def spoiled(self: SequenceClassificationTask, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = original(self, batch, batch_idx)
        return loss * math.nan if self.trainer.current_epoch == 1 else loss

    monkeypatch.setattr(SequenceClassificationTask, "training_step", spoiled)
    assert main(["fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={tmp_path}"]) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    good = tmp_path / "run/version_0/checkpoints/last.ckpt"
    assert "loss became nan at step 9 (epoch 1)" in last
    assert str(good) in last
    state = torch.load(good, weights_only=True)["state_dict"]
    assert all(bool(tensor.isfinite().all()) for name, tensor in state.items() if "threshold" not in name)


def test_ctrl_c_says_how_to_go_on(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = SequenceClassificationTask.training_step

    def interrupted(self: SequenceClassificationTask, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.trainer.current_epoch == 1:
            raise KeyboardInterrupt
        return original(self, batch, batch_idx)

    monkeypatch.setattr(SequenceClassificationTask, "training_step", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    try:
        assert main(["fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={tmp_path}"]) == 130
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones
    last = capfd.readouterr().err.strip().splitlines()[-1]
    folder = tmp_path / "run/version_0"
    command = f"lora-lightning fit --config {folder / 'config.yaml'} --resume auto"
    assert last == f"lora-lightning: interrupted; resume with: {command}"
    assert (folder / "checkpoints/last.ckpt").exists()


def test_an_interrupted_run_ends_like_one_that_was_not(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--model.base_dropout=0", "--model.lora.lora_dropout=0"]
    original = SequenceClassificationTask.on_train_epoch_start

    def interrupted(self: SequenceClassificationTask) -> None:
        if self.trainer.current_epoch == 1:
            raise KeyboardInterrupt
        original(self)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(SequenceClassificationTask, "on_train_epoch_start", interrupted)
        assert main(fit_words(tiny_backbone("bert"), data, tmp_path / "a", *more)) == 130
    signal.signal(signal.SIGINT, handler)
    last = tmp_path / "a/run/version_0/checkpoints/last.ckpt"
    assert main(fit_words(tiny_backbone("bert"), data, tmp_path / "b", *more, f"--ckpt_path={last}")) == 0
    assert main(fit_words(tiny_backbone("bert"), data, tmp_path / "c", *more)) == 0
    resumed, straight = (trained_state(tmp_path / name / "run/version_0") for name in ("b", "c"))
    assert resumed.keys() == straight.keys()
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert not all(torch.equal(trained_state(last.parent.parent)[name], straight[name]) for name in straight)


def test_numbers_that_decide_stay_float32_in_half_precision(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path
) -> None:
    task = run_command(fit_words(tiny_backbone("bert"), data, tmp_path, "--trainer.precision=bf16-true")).task
    assert next(task.network.parameters()).dtype == torch.bfloat16
    assert task.out_of_scope_threshold.dtype == torch.float32
    states = [
        state for metric in task.modules() if isinstance(metric, Metric) for state in metric.metric_state.values()
    ]
    tensors = [t for state in states for t in (state if isinstance(state, list) else [state])]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}


def test_a_tie_keeps_the_first_best_epochs_metrics(tiny_backbone: TinyBackbone, data: Path, tmp_path: Path) -> None:
    words = fit_words(tiny_backbone("bert"), data, tmp_path, "--model.optimization.learning_rate=1e-12")
    assert main([*words, "--model.lora.lora_dropout=0.5"]) == 0
    saved = [torch.load(tmp_path / f"run/version_0/checkpoints/{name}.ckpt") for name in ("best", "last")]
    best, last = (checkpoint["callbacks"]["AdapterCheckpoint"] for checkpoint in saved)
    assert saved[0]["epoch"] == 0
    assert saved[1]["epoch"] == 1
    assert best["best_metrics"] == last["best_metrics"]


def test_a_resumed_run_keeps_the_score_to_beat(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    state = best["callbacks"]["AdapterCheckpoint"]
    state["best_model_score"] = torch.tensor(2.0)  # no epoch can reach it
    state["best_metrics"] = {"val/in_scope_accuracy": 2.0}
    path = tmp_path / "resume.ckpt"
    torch.save(best, path)
    words = ["fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={tmp_path}"]
    assert main([*words, "--trainer.max_epochs=4", f"--ckpt_path={path}"]) == 0
    assert summary(tmp_path / "run/version_0")["metrics"]["val/in_scope_accuracy"] == 2.0
    own = tmp_path / "run/version_0/checkpoints/best.ckpt"
    assert own.read_bytes() == (run / "checkpoints/best.ckpt").read_bytes()  # no epoch of its own was better
