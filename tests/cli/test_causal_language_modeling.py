"""Causal language modeling from end to end: train, evaluate, continue prompts, resume, and ways to misuse it."""

import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from lora_lightning.cli.main import main
from lora_lightning.tasks import CausalLanguageModelingTask
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_instructions, save_tiny_wikitext
from tests.tiny_families import causal_config
from tests.tiny_models import VOCABULARY_SIZE

Words = list[str]


def fit_words(backbone: Path, logs: Path, *more: str) -> Words:
    """A small training run of two epochs."""
    return [
        "fit",
        "--seed_everything=1",
        "--model=CausalLanguageModelingTask",
        f"--model.backbone={backbone}",
        "--model.lora.r=4",
        "--model.optimization.learning_rate=0.02",
        "--model.generation.max_new_tokens=5",
        "--trainer.max_epochs=2",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1",
        "--trainer.logger=TensorBoardLogger",
        f"--trainer.logger.save_dir={logs}",
        "--trainer.logger.name=run",
        *more,
    ]


def text_words(data: Path, logs: Path) -> Words:
    return [
        "--data=PlainTextDataModule",
        f"--data.data_dir={data}",
        "--data.context_length=32",
        "--data.batch_size=4",
        f"--data.cache_dir={logs / 'cache'}",
    ]


def instruction_words(file: Path, logs: Path) -> Words:
    return [
        "--data=InstructionDataModule",
        f"--data.train_file={file}",
        "--data.context_length=40",
        "--data.batch_size=2",
        "--data.validation_share=0.2",
        f"--data.cache_dir={logs / 'cache'}",
    ]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny text in WikiText's layout."""
    return save_tiny_wikitext(tmp_path_factory.mktemp("wikitext"))


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny instructions."""
    return save_tiny_instructions(tmp_path_factory.mktemp("instructions"))


@pytest.fixture(scope="module")
def run(tiny_backbone: TinyBackbone, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished training run; not to be changed."""
    logs = tmp_path_factory.mktemp("logs")
    (logs / "samples.yaml").write_text(
        "trainer: {callbacks: [{class_path: GeneratedSamples, init_args: {prompts: [w1 w2, w3]}}]}"
    )
    words = fit_words(tiny_backbone("gpt2"), logs, *text_words(data, logs))
    assert main(["fit", f"--config={logs / 'samples.yaml'}", *words[1:]]) == 0
    return logs / "run" / "version_0"


def evaluate_words(command: str, run: Path, *more: str) -> Words:
    return [command, f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints/best.ckpt'}", *more]


def summary(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return content


def weights(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def test_a_run_leaves_everything_a_user_needs(run: Path) -> None:
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {
        "config.yaml",
        "summary.json",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "adapter/tokenizer.json",
    } <= files
    metrics = summary(run)["metrics"]
    names = CausalLanguageModelingTask("any").metric_names()
    assert sorted(metrics) == sorted(f"{split}/{name}" for split in ("val", "test") for name in names)
    for split in ("val", "test"):
        assert metrics[f"{split}/perplexity"] == pytest.approx(math.exp(metrics[f"{split}/loss"]), rel=1e-6)
        assert 0.05 < metrics[f"{split}/next_token_accuracy"] <= 1  # 0.005 before training


def test_tensorboard_shows_curves_speed_and_samples(run: Path) -> None:
    tags: dict[str, set[str]] = {"scalars": set(), "tensors": set()}
    for path in run.glob("events.*"):
        events = EventAccumulator(str(path))
        events.Reload()
        for kind, names in tags.items():
            names.update(events.Tags()[kind])
    assert {
        "train/loss",
        "training_efficiency/tokens_per_second",
        "val/loss",
        "val/perplexity",
        "val/next_token_accuracy",
        "with_best/test/perplexity",
    } <= tags["scalars"]
    assert "samples/text_summary" in tags["tensors"]


def test_a_checkpoint_holds_the_adapters_and_nothing_else(run: Path) -> None:
    state = weights(run / "checkpoints/last.ckpt")
    assert all("lora_" in name for name in state)
    saved = sum(tensor.untyped_storage().nbytes() for tensor in state.values())
    assert saved <= 1.05 * 4 * summary(run)["trained_parameters"]


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test")])
def test_evaluation_gives_the_training_runs_own_metrics(run: Path, command: str, split: str) -> None:
    assert main(evaluate_words(command, run)) == 0
    metrics = json.loads((run / f"{command}_metrics.json").read_text())
    expected = {name: value for name, value in summary(run)["metrics"].items() if name.startswith(f"{split}/")}
    assert metrics == pytest.approx(expected, rel=1e-6)


def test_the_saved_config_reproduces_the_run_bit_for_bit(run: Path, tmp_path: Path) -> None:
    assert main(["fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={tmp_path}"]) == 0
    again = weights(tmp_path / "run/version_0/checkpoints/last.ckpt")
    for name, tensor in weights(run / "checkpoints/last.ckpt").items():
        assert torch.equal(tensor, again[name]), name


def test_training_goes_on_from_the_last_checkpoint(run: Path, tmp_path: Path) -> None:
    words = ["fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={tmp_path}"]
    assert main([*words, "--trainer.max_epochs=3", f"--ckpt_path={run / 'checkpoints/last.ckpt'}"]) == 0
    before = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    after = torch.load(tmp_path / "run/version_0/checkpoints/last.ckpt", weights_only=True)
    assert after["global_step"] == before["global_step"] * 3 // 2


def test_plain_peft_loads_the_adapter_and_gives_the_same_logits(run: Path, tiny_backbone: TinyBackbone) -> None:
    task = CausalLanguageModelingTask.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True).eval()
    base = AutoModelForCausalLM.from_pretrained(tiny_backbone("gpt2"), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, run / "adapter").eval()
    inputs = AutoTokenizer.from_pretrained(run / "adapter")("w1 w2 w3", return_tensors="pt")
    with torch.no_grad():
        expected = task.transformers_model(inputs["input_ids"]).logits
        torch.testing.assert_close(model(inputs["input_ids"]).logits, expected, rtol=0, atol=1e-5)
        with model.disable_adapter():
            assert (model(inputs["input_ids"]).logits - expected).abs().max() > 0.01


def test_prediction_needs_no_training_data_and_keeps_the_order(run: Path, tmp_path: Path) -> None:
    prompts = ["w1", "w3 w4 w5 w6", "w2 w3"]
    (tmp_path / "prompts.txt").write_text("\n".join(prompts) + "\n")
    more = ["--data.data_dir=/nowhere", f"--data.predict_file={tmp_path / 'prompts.txt'}"]
    assert main(evaluate_words("predict", run, *more, f"--predictions.file={tmp_path / 'out.csv'}")) == 0
    with (tmp_path / "out.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["prompt"] for row in rows] == prompts
    assert list(rows[0]) == ["prompt", "completion"]
    assert all(1 <= len(row["completion"].split()) <= 5 for row in rows)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_instructions_train_with_long_context_settings(
    tiny_backbone: TinyBackbone, instructions: Path, tmp_path: Path, family: str
) -> None:
    more = ["--model.gradient_checkpointing=true", "--trainer.accumulate_grad_batches=3"]
    words = fit_words(tiny_backbone(family), tmp_path, *instruction_words(instructions, tmp_path), *more)
    assert main([*words, "--trainer.gradient_clip_val=1"]) == 0
    run = tmp_path / "run" / "version_0"
    assert "test/loss" not in summary(run)["metrics"]  # there is no test file
    assert summary(run)["metrics"]["val/next_token_accuracy"] > 0.05
    rows = '{"instruction": "w1", "input": "w2"}\n{"prompt": "w3"}\n'
    (tmp_path / "prompts.jsonl").write_text(rows)
    more = [f"--data.predict_file={tmp_path / 'prompts.jsonl'}", f"--predictions.file={tmp_path / 'out.jsonl'}"]
    assert main(evaluate_words("predict", run, *more)) == 0
    out = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in out] == ["w1\n\nw2", "w3"]


def save_family(family: str, tiny_backbone: TinyBackbone, folder: Path) -> Path:
    """A tiny random model of an architecture, with the tokenizer of the tiny GPT-2."""
    config = causal_config(family, vocab_size=VOCABULARY_SIZE, bos_token_id=1, eos_token_id=1)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_backbone("gpt2")).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["lfm2, short convolution", "bloom, alibi", "mamba"])
def test_what_cannot_be_packed_is_refused_before_weights_load_and_trains_one_example_a_row(
    tiny_backbone: TinyBackbone,
    instructions: Path,
    tmp_path: Path,
    family: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    backbone = save_family(family, tiny_backbone, tmp_path / "backbone")
    words = fit_words(backbone, tmp_path, *instruction_words(instructions, tmp_path), "--trainer.max_steps=2")
    with monkeypatch.context() as patched:
        patched.delattr(CausalLanguageModelingTask, "build_network")
        assert main(words) == 2
    last = capfd.readouterr().err.strip().splitlines()[-1]
    assert "cannot keep several documents in one row apart" in last
    assert last.endswith("set data.packing: false, which trains one example a row.")
    assert main([*words, "--data.packing=false"]) == 0
    assert math.isfinite(summary(tmp_path / "run" / "version_0")["metrics"]["val/loss"])


def test_a_model_that_sees_the_next_token_is_refused_before_weights_load(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    backbone = save_family("xlnet, both directions", tiny_backbone, tmp_path / "backbone")
    assert main(fit_words(backbone, tmp_path, *text_words(data, tmp_path))) == 2
    assert "attends to the tokens after a position too" in capfd.readouterr().err


def test_full_fine_tuning_leaves_a_transformers_folder(tiny_backbone: TinyBackbone, data: Path, tmp_path: Path) -> None:
    words = [word for word in fit_words(tiny_backbone("gpt2"), tmp_path) if ".lora." not in word]
    more = ["--model.lora=null", "--trainer.max_epochs=1", "--trainer.logger=CSVLogger"]
    assert main([*words, *text_words(data, tmp_path), *more]) == 0
    run = next(tmp_path.rglob("adapter")).parent
    task = CausalLanguageModelingTask.load_from_checkpoint(run / "checkpoints/best.ckpt", weights_only=True).eval()
    model = AutoModelForCausalLM.from_pretrained(run / "adapter").eval()
    assert model.lm_head.weight is model.transformer.wte.weight
    tokens = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, task.transformers_model(tokens).logits, rtol=0, atol=1e-5)


def test_two_processes_train_and_score_as_one(tiny_backbone: TinyBackbone, instructions: Path, tmp_path: Path) -> None:
    found = []
    for processes, batch_size in ((1, 4), (2, 2)):
        logs = tmp_path / str(processes)
        words = fit_words(tiny_backbone("llama"), logs, *instruction_words(instructions, logs))
        words += [f"--data.batch_size={batch_size}", f"--trainer.devices={processes}", "--trainer.max_steps=4"]
        words += ["--model.base_dropout=0", "--model.lora.lora_dropout=0", "--trainer.gradient_clip_val=0.1"]
        words += ["--trainer.strategy=ddp"] if processes > 1 else []
        command = [sys.executable, "-m", "lora_lightning", *words]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert result.returncode == 0, result.stderr
        run = logs / "run" / "version_0"
        found.append((weights(run / "checkpoints/last.ckpt"), summary(run)["metrics"]))
    for name, tensor in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], tensor, rtol=0, atol=2e-4, msg=name)
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-3)


Misuse = Callable[[Path, Path], Words]

MISUSE: dict[str, tuple[Misuse, list[str]]] = {
    "context beyond the positions": (
        lambda run, _: ["fit", f"--config={run / 'config.yaml'}", "--data.context_length=41"],
        ["data.context_length is 41", "only 40 positions"],
    ),
    "a classifier's data": (
        lambda run, _: ["fit", f"--config={run / 'config.yaml'}", "--data=PlainTextDataModul"],
        ["PlainTextDataModule"],
    ),
    "data without next tokens": (
        lambda run, folder: [
            *("fit", "--model=CausalLanguageModelingTask", f"--model.backbone={_backbone(run)}"),
            *("--data=TextClassificationDataModule", f"--data.train_file={_labeled(folder)}"),
            *(f"--data.cache_dir={folder}", "--data.max_length=30", "--trainer.logger=TensorBoardLogger"),
            f"--trainer.logger.save_dir={run.parent}",
        ],
        ["needs texts to continue, and TextClassificationDataModule has none; use PlainTextDataModule or"],
    ),
    "missing file": (
        lambda run, folder: ["fit", f"--config={run / 'config.yaml'}", f"--data.data_dir={folder}"],
        ["wiki.train.raw is missing"],
    ),
    "adapter on the head": (
        lambda run, _: ["fit", f"--config={run / 'config.yaml'}", "--model.lora.target_modules=[lm_head]"],
        ["no linear layer 'lm_head'"],
    ),
    "other rank": (lambda run, _: evaluate_words("test", run, "--model.lora.r=2"), ["lora.r is 2 here and 4"]),
    "too many new tokens": (
        lambda run, folder: evaluate_words(
            "predict", run, f"--data.predict_file={_prompts(folder)}", "--model.generation.max_new_tokens=40"
        ),
        ["prompts.txt, line 1: the prompt has 2 tokens", "40 positions"],
    ),
    "no response in any context": (
        lambda run, folder: [
            *("fit", "--model=CausalLanguageModelingTask", f"--model.backbone={_backbone(run)}"),
            *("--data=InstructionDataModule", f"--data.train_file={save_tiny_instructions(folder)}"),
            *("--data.context_length=4", f"--data.cache_dir={folder}", "--trainer.logger=TensorBoardLogger"),
            f"--trainer.logger.save_dir={run.parent}",
        ],
        ["none of the", "data.context_length 4; raise it"],
    ),
    "no prompts": (lambda run, _: evaluate_words("predict", run), ["--data.predict_file"]),
    "no chat template": (
        lambda run, folder: [
            *("fit", "--model=CausalLanguageModelingTask", f"--model.backbone={_backbone(run)}"),
            *("--data=InstructionDataModule", f"--data.train_file={save_tiny_instructions(folder)}"),
            *("--data.chat_template=true", "--data.context_length=40", "--trainer.logger=TensorBoardLogger"),
            f"--trainer.logger.save_dir={run.parent}",
        ],
        ["no chat template", "data.chat_template: false"],
    ),
}


def _backbone(run: Path) -> str:
    return str(torch.load(run / "checkpoints/best.ckpt", weights_only=True)["hyper_parameters"]["backbone"])


def _labeled(folder: Path) -> Path:
    (folder / "labeled.csv").write_text("text,label\n" + "w1,a\nw2,b\n" * 10)
    return folder / "labeled.csv"


def _prompts(folder: Path) -> Path:
    (folder / "prompts.txt").write_text("w1 w2\n")
    return folder / "prompts.txt"


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_one_clear_sentence(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str) -> None:
    words, needed = MISUSE[case]
    before = set(run.parent.iterdir())
    assert main(words(run, tmp_path)) == 2
    output = capfd.readouterr()
    last = output.err.strip().splitlines()[-1]
    assert "run folder" not in output.out
    assert last.startswith("lora-lightning: error: ")
    for text in needed:
        assert text in last
    assert set(run.parent.iterdir()) == before  # a mistake leaves no half run behind


def test_a_prompt_that_is_too_long_is_found_before_any_weights_load(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w1"}\n' + json.dumps({"prompt": "w1 " * 38}) + "\n")
    monkeypatch.delattr(CausalLanguageModelingTask, "build_network")
    assert main(evaluate_words("predict", run, f"--data.predict_file={tmp_path / 'prompts.jsonl'}")) == 2
    assert f"{tmp_path}/prompts.jsonl, line 2: the prompt has 38 tokens, which with" in capfd.readouterr().err


@pytest.mark.parametrize("task", ["CausalLanguageModelingTask", "SequenceClassificationTask"])
def test_a_config_that_says_nothing_of_lora_trains_an_adapter(task: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["fit", f"--model={task}", "--model.backbone=x", "--data=PlainTextDataModule", "--print_config"])
    assert "    lora:\n      r: 8\n" in capfd.readouterr().out
