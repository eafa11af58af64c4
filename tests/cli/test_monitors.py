"""All monitors together through the program: with any loggers, accumulation, resuming, two processes."""

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lora_lightning import callbacks
from lora_lightning.callbacks.adapter_monitor import AdapterMonitor
from lora_lightning.cli.main import main
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150

Words = list[str]

ALL_MONITORS = Path(__file__).parents[2] / "configs" / "callbacks" / "all_monitors.yaml"
STEPS = 9  # an epoch has: 72 rows, batches of 8


AT_THE_START = "parameter_efficiency"
AT_THE_END = ("intruder_dimensions", "merge_equivalence")


def tables_of_monitors() -> list[str]:
    """The Parquet table of every monitor in all_monitors.yaml that has one."""
    names = [entry["class_path"] for entry in yaml.safe_load(ALL_MONITORS.read_text())["trainer"]["callbacks+"]]
    monitors = [getattr(callbacks, name) for name in names]
    return [monitor.table for monitor in monitors if issubclass(monitor, AdapterMonitor)]


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


def steps_in_tables(run: Path) -> dict[str, list[int]]:
    """The steps of each table, after a look at its rows."""
    steps = {}
    for path in sorted((run / "adapter_metrics").iterdir()):
        rows = pq.read_table(path).to_pylist()
        counts = Counter((row["step"], row["module"], row["metric"], row["state"]) for row in rows)
        assert max(counts.values()) == 1, path  # nothing twice
        exported = {row["step"] for row in rows if row["state"] == "exported"}
        assert exported == (set() if path.stem == AT_THE_START else {best_step(run)})
        steps[path.stem] = sorted({row["step"] for row in rows if row["state"] == "training"})
    return steps


def best_step(run: Path) -> int:
    """The step of the checkpoint that `adapter/` is of; without validation that is the last one."""
    (path,) = list((run / "checkpoints").glob("best.ckpt")) or [run / "checkpoints/last.ckpt"]
    return int(torch.load(path, weights_only=True)["global_step"])


def assert_measured(run: Path, *validations: int, start: int = 0) -> None:
    expected = {table: list(validations) for table in tables_of_monitors()}
    expected |= {AT_THE_START: [start], **{table: [] for table in AT_THE_END}}
    assert steps_in_tables(run) == expected


def trained_state(run: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return state


def with_monitors(words: Words) -> Words:
    return [*words, f"--config={ALL_MONITORS}"]


@pytest.fixture(scope="module")
def run(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one run with all monitors and TensorBoard; not to be changed."""
    logs = tmp_path_factory.mktemp("logs")
    assert main(with_monitors(fit_words(tiny_backbone("bert"), logs))) == 0
    return logs / "run" / "version_0"


def test_every_validation_is_in_every_table(run: Path) -> None:
    assert_measured(run, STEPS, 2 * STEPS)


def test_training_does_not_notice(run: Path, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    assert main(fit_words(tiny_backbone("bert"), tmp_path)) == 0
    plain = trained_state(tmp_path / "run" / "version_0")
    assert all(torch.equal(tensor, plain[name]) for name, tensor in trained_state(run).items())


def test_two_loggers(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    words = [word for word in fit_words(tiny_backbone("bert"), tmp_path) if "trainer.logger" not in word]
    board, rows = (f"{{save_dir: {tmp_path}, name: {name}}}" for name in ("board", "rows"))
    loggers = f"[{{class_path: TensorBoardLogger, init_args: {board}}}, {{class_path: CSVLogger, init_args: {rows}}}]"
    assert main(with_monitors([*words, f"--trainer.logger={loggers}"])) == 0
    first = tmp_path / "board" / "version_0"
    assert_measured(first, STEPS, 2 * STEPS)
    assert not (tmp_path / "rows" / "version_0" / "adapter_metrics").exists()  # once, in the run's folder
    events = EventAccumulator(str(first))
    events.Reload()
    header = (tmp_path / "rows" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    shown = [tag for tag in events.Tags()["scalars"] if tag.startswith("weights/drift/")]
    assert shown
    assert set(shown) <= set(header)
    assert [event.step for event in events.Scalars(shown[0])] == [STEPS, 2 * STEPS]


@pytest.mark.parametrize(
    ("more", "validations"),
    [
        pytest.param(["--trainer.accumulate_grad_batches=2"], [5, 10], id="accumulation"),
        pytest.param(["--trainer.val_check_interval=4", "--trainer.max_epochs=1"], [4, 8, 9], id="within an epoch"),
        pytest.param(["--trainer.limit_val_batches=0", "--test_after_fit=false"], [18], id="no validation"),
        pytest.param(["--trainer.max_steps=3"], [3], id="less than an epoch"),
    ],
)
def test_other_ways_to_train(tiny_backbone: TinyBackbone, tmp_path: Path, more: Words, validations: list[int]) -> None:
    assert main(with_monitors(fit_words(tiny_backbone("distilbert"), tmp_path, *more))) == 0
    assert_measured(tmp_path / "run" / "version_0", *validations)


def test_without_a_logger(tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for word in fit_words(tiny_backbone("bert"), tmp_path) if "trainer.logger" not in word]
    assert main(with_monitors([*words, "--trainer.logger=false"])) == 0
    assert_measured(tmp_path / "lightning_logs" / "version_0", STEPS, 2 * STEPS)


def test_a_trial_run_leaves_no_tables(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    assert main(with_monitors(fit_words(tiny_backbone("bert"), tmp_path, "--trainer.fast_dev_run=true"))) == 0
    assert not list(tmp_path.rglob("*.parquet"))


def test_full_fine_tuning(tiny_backbone: TinyBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = fit_words(tiny_backbone("bert"), tmp_path, "--model.lora=null")
    assert main(with_monitors(words)) == 0
    assert "model.lora is null" in capsys.readouterr().err
    steps = steps_in_tables(tmp_path / "run" / "version_0")
    assert steps["representation_drift"] == [STEPS, 2 * STEPS]
    assert "intruder_dimensions" not in steps


def test_a_resumed_run_goes_on(run: Path, tmp_path: Path) -> None:
    words = ["fit", f"--config={run / 'config.yaml'}", f"--trainer.logger.save_dir={tmp_path}"]
    words += ["--trainer.max_epochs=3", f"--ckpt_path={run / 'checkpoints/last.ckpt'}"]
    assert main(words) == 0
    resumed = tmp_path / "run" / "version_0"
    assert_measured(resumed, 3 * STEPS, start=2 * STEPS)
    base: list[Any] = [(folder / "representations" / "base.safetensors").read_bytes() for folder in (run, resumed)]
    assert base[0] == base[1]  # the same examples, the same base


def test_two_processes_measure_as_one(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    found = []
    for processes, batch_size in ((1, 8), (2, 4)):
        logs = tmp_path / str(processes)
        words = fit_words(tiny_backbone("bert"), logs, f"--data.batch_size={batch_size}")
        words += ["--model.base_dropout=0", "--model.lora.lora_dropout=0", "--trainer.max_epochs=1"]
        words += [f"--trainer.devices={processes}", "--trainer.strategy=ddp"] if processes > 1 else []
        if processes == 1:
            assert main(with_monitors(words)) == 0
        else:
            command = [sys.executable, "-m", "lora_lightning", *with_monitors(words)]
            result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
            assert result.returncode == 0, result.stderr
        folder = logs / "run" / "version_0"
        assert_measured(folder, STEPS)
        found.append(
            {
                (row["module"], row["metric"]): row["value"]
                for table in ("representation_drift", "intruder_dimensions")
                for row in pq.read_table(folder / "adapter_metrics" / f"{table}.parquet").to_pylist()
            }
        )
    assert found[1] == pytest.approx(found[0], abs=5e-3)


def test_a_monitor_that_two_configs_bring_is_refused(
    tiny_backbone: TinyBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    single = ALL_MONITORS.with_name("rank_utilization.yaml")
    other = tmp_path / "other.yaml"
    other.write_text(single.read_text().replace("every_n_steps: null", "every_n_steps: 3"))
    assert main([*with_monitors(fit_words(tiny_backbone("bert"), tmp_path)), f"--config={other}"]) == 2
    assert "RankUtilizationMonitor is given 2 times, in trainer.callbacks or from Python" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_failed_check_is_raised_after_test_and_summary(
    tiny_backbone: TinyBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = fit_words(tiny_backbone("bert"), tmp_path, "--trainer.max_epochs=1", "--trainer.callbacks=MergeEquivalence")
    assert main([*words, "--trainer.callbacks.tolerance=1e-12"]) == 3
    run = tmp_path / "run" / "version_0"
    assert "test/in_scope_accuracy" in (run / "summary.json").read_text()
    assert (run / "checkpoints" / "best.ckpt").exists()
    said = capsys.readouterr()
    assert "trainable parameters" in said.out
    assert "the exported folder changes the model: logits move by up to " in said.err
    assert "Traceback" not in said.err
