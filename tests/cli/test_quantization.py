"""Quantized bases through the program: train under every monitor, evaluate, hand over, two processes, misuse."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from lora_lightning.cli.main import main
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150

pytest.importorskip("bitsandbytes")

Words = list[str]

CALLBACKS = Path(__file__).parents[2] / "configs" / "callbacks"
QLORA = ["--model.quantization.bits=4", "--model.quantization.double_quantization=true"]


def fit_words(backbone: Path, logs: Path, *more: str) -> Words:
    return [
        "fit",
        "--seed_everything=1",
        "--model=SequenceClassificationTask",
        f"--model.backbone={backbone}",
        "--model.lora.r=4",
        "--model.optimization.learning_rate=0.02",
        "--data=Clinc150DataModule",
        f"--data.data_dir={save_tiny_clinc150(logs / 'data')}",
        "--data.batch_size=8",
        f"--data.cache_dir={logs / 'cache'}",
        "--trainer.max_epochs=2",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.log_every_n_steps=1",
        "--trainer.logger=TensorBoardLogger",
        f"--trainer.logger.save_dir={logs}",
        "--trainer.logger.name=run",
        *more,
    ]


def evaluate_words(command: str, run: Path, *more: str) -> Words:
    return [command, f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints/best.ckpt'}", *more]


@pytest.fixture(scope="module", params=[["4", "loftq"], ["8", "true"]], ids="-".join)
def run(request: pytest.FixtureRequest, tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished run with all monitors; not to be changed."""
    logs = tmp_path_factory.mktemp("logs")
    bits, init = request.param
    quantization = QLORA if bits == "4" else ["--model.quantization.bits=8"]
    more = [*quantization, f"--model.lora.init_lora_weights={init}", f"--config={CALLBACKS / 'all_monitors.yaml'}"]
    assert main(fit_words(tiny_backbone("bert"), logs, *more)) == 0
    return logs / "run" / "version_0"


def test_every_monitor_knows_quantized_weights(run: Path) -> None:
    rows = pq.read_table(run / "adapter_metrics" / "merge_equivalence.parquet").to_pylist()
    metrics = {row["metric"] for row in rows}
    assert {"dequantized/max_logit_difference", "requantized/max_logit_difference", "requantization_error"} <= metrics
    efficiency = pq.read_table(run / "adapter_metrics" / "parameter_efficiency.parquet").to_pylist()
    assert efficiency
    summary = json.loads((run / "summary.json").read_text())
    assert summary["metrics"]["val/in_scope_accuracy"] > 0.5


def test_evaluation_gives_the_training_runs_own_metrics(run: Path) -> None:
    assert main(evaluate_words("test", run)) == 0
    expected = {
        name: value
        for name, value in json.loads((run / "summary.json").read_text())["metrics"].items()
        if name.startswith("test/")
    }
    assert json.loads((run / "test_metrics.json").read_text()) == pytest.approx(expected, abs=1e-6)


def test_prediction_needs_nothing_more(run: Path, tmp_path: Path) -> None:
    queries, answers = tmp_path / "queries.txt", tmp_path / "answers.jsonl"
    queries.write_text("w1 w2\nw3\n")
    more = [f"--data.predict_file={queries}", f"--predictions.file={answers}", "--data.data_dir=/nowhere"]
    assert main(evaluate_words("predict", run, *more)) == 0
    assert len(answers.read_text().splitlines()) == 2


def test_the_checkpoint_holds_what_trains_and_the_folder_how_to_quantize(run: Path) -> None:
    state = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert all("lora_" in name or "modules_to_save" in name or "." not in name for name in state)
    assert "quantization_config" not in json.loads((run / "adapter/config/config.json").read_text())
    found = json.loads((run / "adapter/quantization_config.json").read_text())
    assert found["quant_method"] == "bitsandbytes"
    assert found["llm_int8_skip_modules"] == ["bert.pooler", "classifier"]


def test_another_quantization_contradicts_the_checkpoint(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(evaluate_words("test", run, "--model.quantization=null", "--model.lora.init_lora_weights=true")) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "contradicts the options" in error
    assert "quantization.bits is None here and" in error


def test_two_processes_train_one_adapter(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    more = [
        *QLORA,
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        "--trainer.max_epochs=1",
        f"--config={CALLBACKS / 'frozen_base.yaml'}",
    ]
    command = [sys.executable, "-m", "lora_lightning", *fit_words(tiny_backbone("bert"), tmp_path, *more)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    run = tmp_path / "run" / "version_0"
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(tensor.any() for name, tensor in state.items() if "lora_B" in name)
    # Two processes would be this interpreter's own command once more.
    assert main([*evaluate_words("test", run), "--trainer.devices=1", "--trainer.strategy=auto"]) == 0
    expected = json.loads((run / "summary.json").read_text())["metrics"]["test/in_scope_accuracy"]
    assert json.loads((run / "test_metrics.json").read_text())["test/in_scope_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("bits", ["4", "8"])
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_16_bit_precision_trains_too(tiny_backbone: TinyBackbone, tmp_path: Path, precision: str, bits: str) -> None:
    more = [f"--model.quantization.bits={bits}", f"--trainer.precision={precision}", "--trainer.fast_dev_run=true"]
    assert main(fit_words(tiny_backbone("bert"), tmp_path, *more)) == 0


MISUSE = {
    "full fine-tuning": (["--model.lora=null"], "model.quantization is set, but model.lora is null"),
    "8 bits of a type": (
        ["--model.quantization.bits=8"],
        "double_quantization is True, but it applies to 4-bit weights only",
    ),
    "unknown module": (
        ["--model.quantization.skip_modules=[intermediat]"],
        "the model has no module 'intermediat'; did you mean 'intermediate'",
    ),
    "float16 on a CPU": (
        ["--model.quantization.compute_dtype=float16"],
        "float16, but CPUs emulate products of 4-bit weights",
    ),
    "sharding": (
        [
            '--trainer.strategy={"class_path": "lora_lightning.training.strategies.FullyShardedStrategy"}',
            "--trainer.devices=2",
        ],
        "does not work with trainer.strategy FullyShardedStrategy",
    ),
    "float64": (["--trainer.precision=64-true"], "trainer.precision is 64-true"),
    "LoftQ without bits": (
        ["--model.quantization=null", "--model.lora.init_lora_weights=loftq"],
        "init_lora_weights is loftq, but model.quantization is null",
    ),
    "PiSSA": (
        ["--model.lora.init_lora_weights=pissa"],
        "model.lora.init_lora_weights is pissa, but the base is quantized to 4 bits",
    ),
    "3 bits": (["--model.quantization.bits=3"], "3"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_one_clear_sentence(
    tiny_backbone: TinyBackbone, tmp_path: Path, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    more, needed = MISUSE[case]
    assert main(fit_words(tiny_backbone("bert"), tmp_path, *QLORA, *more)) == 2
    output = capfd.readouterr().err
    last = output.strip().splitlines()[-1]
    assert last.startswith("lora-lightning: error: ")
    assert needed in last
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()
