"""Runs that end before their end, and go on as if they had not."""

import random
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_and_resume import ELSE, SAVE, STEP, VALIDATION, Moment, Runs, equal_bitwise, kill_and_resume, random_moments
from lightning import Trainer
from strategy_equality import WAYS

from lora_lightning.cli.main import main
from lora_lightning.runs.checkpoint import read_checkpoint
from lora_lightning.runs.checkpoint_io import AtomicCheckpointIO
from lora_lightning.training.final_validation import FinalValidation
from tests.cli.test_commands import Words, fit_words
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150

MONITORS = Path(__file__).parents[2] / "configs/callbacks/all_monitors.yaml"
COUNTS = {STEP: 18, VALIDATION: 6, SAVE: 9}  # in the run below, at least
DROPOUT = ["--model.base_dropout=0.1", "--model.lora.lora_dropout=0.1", "--checkpoint.every_n_train_steps=2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny release."""
    return save_tiny_clinc150(tmp_path_factory.mktemp("clinc150"))


@pytest.fixture(scope="module")
def runs(tiny_backbone: TinyBackbone, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Runs in processes of their own, one of which is left alone."""
    folder = tmp_path_factory.mktemp("runs")
    words = [*fit_words(tiny_backbone("bert"), data, folder)[1:], *DROPOUT, "--trainer.val_check_interval=4"]
    runs = Runs(words, folder)
    status, _ = runs.start("left alone")
    assert status == 0, (folder / "left alone/output.txt").read_text()
    return runs


def test_a_run_killed_at_random_moments_ends_as_one_left_alone(runs: Runs) -> None:
    few = {doing: 1 + count // 3 for doing, count in COUNTS.items()}
    kills = random_moments(few, 0.01, 3, random.Random(0))  # noqa: S311
    row = kill_and_resume(runs, runs.result("left alone"), "killed", kills)
    assert len(row["killed during"]) == 3
    assert set(row["killed during"]) - {ELSE}
    assert row["differs"] == []


@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
def test_two_processes_killed_and_stopped_end_as_ones_left_alone(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, way: str
) -> None:
    words = [*fit_words(tiny_backbone("bert"), data, tmp_path)[1:], *DROPOUT, *WAYS[way][1]]
    runs = Runs([*words, "--trainer.max_epochs=2"], tmp_path, processes=2)
    assert runs.start("left alone")[0] == 0, (tmp_path / "left alone/output.txt").read_text()
    reference = runs.result("left alone")
    assert {rank for _, _, rank in reference["examples"]} == {0, 1}
    kills = [Moment(SAVE, 2, 0.001), Moment(STEP, 3, 0.005)]
    row = kill_and_resume(runs, reference, "killed", kills)
    assert len(row["killed during"]) == 2
    assert row["differs"] == []
    assert runs.start("stopped", Moment(STEP, 5, 0, signal.SIGTERM))[0] == 75
    assert runs.start("stopped")[0] == 0
    assert equal_bitwise(runs.result("stopped"), reference)


def test_a_run_asked_to_stop_saves_its_step_and_goes_on_with_the_same_command(runs: Runs) -> None:
    asked = [
        (Moment(STEP, 3, 0, signal.SIGTERM), 75),
        (Moment(VALIDATION, 1, 0, signal.SIGUSR1), 75),
        (Moment(STEP, 4, 0, signal.SIGINT), 130),
    ]
    steps = 0
    for moment, status in asked:
        assert runs.start("asked", moment)[0] == status, (runs.folder / "asked/output.txt").read_text()
        last = torch.load(runs.run_folder("asked") / "checkpoints/last.ckpt", weights_only=True)
        assert last["global_step"] == runs.shared[len(runs.shared) - 1] > steps
        steps = last["global_step"]
        said = (runs.folder / "asked/output.txt").read_text().splitlines()[-1]
        command = f"lora-lightning fit --config {runs.run_folder('asked') / 'config.yaml'} --resume auto"
        name = signal.Signals(moment.how).name
        assert said == f"lora-lightning: stopped by {name} after step {steps}, which is saved; resume with: {command}"
    assert runs.start("asked")[0] == 0
    assert equal_bitwise(runs.result("asked"), runs.result("left alone"))
    assert runs.start("asked")[0] == 0
    assert "is finished: there is nothing to resume" in (runs.folder / "asked/output.txt").read_text()


class Snapshots:
    """What a kill after each save would leave.

    Args:
        run: The run's folder.
        place: For the snapshots.
    """

    def __init__(self, run: Path, place: Path) -> None:
        self.run, self.place = run, place
        self.original = AtomicCheckpointIO.save_checkpoint

    def take(self, patch: pytest.MonkeyPatch) -> None:
        """Copies the run's folder after each save from now on."""

        def save_checkpoint(io: AtomicCheckpointIO, checkpoint: dict[str, Any], path: Any, **options: Any) -> None:
            self.original(io, checkpoint, path, **options)
            name = f"{len(self.taken()):02d} {Path(path).stem} at step {checkpoint['global_step']}"
            shutil.copytree(self.run, self.place / name)

        patch.setattr(AtomicCheckpointIO, "save_checkpoint", save_checkpoint)

    def taken(self) -> list[Path]:
        """Sorted by time."""
        return sorted(self.place.iterdir()) if self.place.is_dir() else []

    def put_back(self, snapshot: Path) -> None:
        """Makes the run's folder what it was then."""
        shutil.rmtree(self.run)
        shutil.copytree(snapshot, self.run)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["--trainer.val_check_interval=4", "--trainer.accumulate_grad_batches=3"], id="within a step"),
        pytest.param(
            ["--early_stopping.patience=1", "--trainer.max_epochs=3", "--model.optimization.learning_rate=1e-9"],
            id="stopped early",
        ),
        pytest.param(["--trainer.max_steps=13", "--trainer.max_epochs=-1"], id="last step within an epoch"),
        pytest.param(["--data.num_workers=1", "--trainer.callbacks=AdapterNormMonitor"], id="workers and a monitor"),
        pytest.param(["--trainer.limit_val_batches=0"], id="no validation"),
        pytest.param(
            ["--trainer.max_steps=18", "--trainer.max_epochs=-1", f"--config={MONITORS}"], id="monitors and last step"
        ),
        pytest.param(["--model.lora.adalora={init_r: 6, target_r: 2, tinit: 2, tfinal: 6, deltaT: 3}"], id="AdaLoRA"),
        pytest.param(
            [
                "--trainer.limit_train_batches=1",
                "--trainer.max_epochs=6",
                "--trainer.check_val_every_n_epoch=3",
                "--trainer.log_every_n_steps=1",
                "--checkpoint.every_n_train_steps=1",
            ],
            id="one step an epoch",
        ),
        pytest.param(
            ["--trainer.check_val_every_n_epoch=2", "--checkpoint.every_n_train_steps=9"], id="between epochs"
        ),
    ],
)
def test_whatever_was_saved_last_the_end_is_the_same(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: Words
) -> None:
    runs = Runs(["--trainer.max_epochs=2"], tmp_path)  # to read what a run left
    words = [*fit_words(tiny_backbone("bert"), data, tmp_path / "one"), *DROPOUT]
    words += ["--checkpoint.every_n_train_steps=4", *more, "--resume=auto"]
    words = [word for word in words if "lora.r=" not in word or not any("adalora" in word for word in more)]
    snapshots = Snapshots(tmp_path / "one/run/version_0", tmp_path / "snapshots")
    with monkeypatch.context() as patch:
        snapshots.take(patch)
        assert main(words) == 0
    (tmp_path / "one/examples.jsonl").touch()
    reference = runs.result("one")
    assert len(snapshots.taken()) >= 3
    for snapshot in snapshots.taken()[-4:]:
        snapshots.put_back(snapshot)
        assert main(words) == 0
        result = runs.result("one")
        different = [name for name in reference if not equal_bitwise(reference[name], result[name])]
        assert not different, (snapshot.name, different)


def test_a_run_of_one_step_an_epoch_stops_before_the_next_validation(
    tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*fit_words(tiny_backbone("bert"), data, tmp_path), "--trainer.limit_train_batches=1"]
    words += ["--trainer.max_epochs=5", "--trainer.check_val_every_n_epoch=5"]

    def ask(_: FinalValidation, trainer: Trainer, *__: Any) -> None:
        if trainer.current_epoch == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(FinalValidation, "on_train_epoch_start", ask)
    assert main(words) == 75
    assert read_checkpoint(tmp_path / "run/version_0/checkpoints/last.ckpt")["global_step"] == 2
