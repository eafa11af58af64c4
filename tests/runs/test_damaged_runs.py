"""What breaks around a run: files, folders, disks, other processes. Nothing saved is lost, and a sentence says so."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.loggers import TensorBoardLogger
from processes import end_with_parent

from lora_lightning.cli.main import main
from lora_lightning.errors import VerificationError
from lora_lightning.runs.checkpoint import read_checkpoint
from lora_lightning.runs.checkpoint_io import AtomicCheckpointIO
from lora_lightning.runs.lock import lock_run_folder
from lora_lightning.runs.processes import WatchingLauncher, end_child_processes
from lora_lightning.tasks import SequenceClassificationTask
from lora_lightning.training.final_validation import FinalValidation
from tests.cli.test_commands import Words, fit_words, trained_state
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150

RUN = "run/version_0"
PATIENCE = 300  # seconds until a process counts as one that hangs; a busy machine takes a minute to import all
SLURM = {  # of a job with one task
    "SLURM_JOB_ID": "1234",
    "SLURM_JOB_NAME": "lora",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "localhost",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny release."""
    return save_tiny_clinc150(tmp_path_factory.mktemp("clinc150"))


@pytest.fixture(scope="module")
def words(tiny_backbone: TinyBackbone, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Words:
    """A command that may be started again and again."""
    more = ["--resume=auto", "--checkpoint.every_n_train_steps=4", "--test_after_fit=false"]
    return [*fit_words(tiny_backbone("bert"), data, tmp_path_factory.mktemp("logs")), *more]


@pytest.fixture(scope="module")
def logs(words: Words) -> Path:
    """Where the command's runs land."""
    return Path(next(word for word in words if "save_dir" in word).partition("=")[2])


class Interrupted(Exception):  # noqa: N818  # stands for a crash
    """What ends a run in the middle."""


@pytest.fixture(scope="module")
def interrupted(words: Words, logs: Path) -> Path:
    """A copy of a run that crashed after step 14 of 18: last.ckpt of step 12, previous.ckpt of step 9."""
    original = SequenceClassificationTask.training_step

    def crash(self: SequenceClassificationTask, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == 14:
            raise Interrupted
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SequenceClassificationTask, "training_step", crash)
        assert main(words) == 1
    return Path(shutil.move(logs / "run", logs / "kept"))


@pytest.fixture(scope="module")
def whole(words: Words, logs: Path, interrupted: Path) -> dict[str, torch.Tensor]:
    """What the run ends with."""
    shutil.copytree(interrupted, logs / "run")
    assert main(words) == 0
    state = trained_state(logs / RUN)
    shutil.rmtree(logs / "run")
    return state


@pytest.fixture
def run(logs: Path, interrupted: Path) -> Iterator[Path]:
    """The crashed run's folder."""
    shutil.copytree(interrupted, logs / "run")
    yield logs / RUN
    shutil.rmtree(logs / "run")


def flip_a_bit(path: Path) -> None:
    """Of the largest tensor: what fills the gaps between them may be anything."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        tensor = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    content[content.find(tensor) + len(tensor) // 2] ^= 1
    path.write_bytes(content)


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def take_from_another_run(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {"settings": "0" * 64}, path)


def forge_the_ends_of_curves(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    torch.save(checkpoint | {"event_sizes": {"events.out.tfevents.1": -1}}, path)


def make_empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES = [flip_a_bit, cut_in_half, take_from_another_run, make_empty, forge_the_ends_of_curves]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    run: Path,
    words: Words,
    whole: dict[str, torch.Tensor],
    damage: Callable[[Path], None],
    capfd: pytest.CaptureFixture[str],
) -> None:
    last = run / "checkpoints/last.ckpt"
    damage(last)
    damaged = last.read_bytes()
    assert main(words) == 0
    said = capfd.readouterr()
    assert f"lora-lightning: warning: {last} " in said.err
    assert f"resuming from {run / 'checkpoints/previous.ckpt'}" in said.out
    assert (run / "checkpoints/last.ckpt.damaged").read_bytes() == damaged
    assert all(torch.equal(tensor, whole[name]) for name, tensor in trained_state(run).items())


def test_files_that_were_never_finished_go_when_the_run_goes_on(run: Path, words: Words) -> None:
    draft = run / "checkpoints/.earlier.ckpt.draft"  # of a name that this run does not write again
    draft.write_bytes(b"half")
    assert main(words) == 0
    assert not draft.exists()


def test_where_all_are_damaged_nothing_is_started_anew(
    run: Path, words: Words, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*.ckpt")}
    for path, damage in zip(sorted(before), DAMAGES, strict=False):
        damage(path)
    assert len(before) == 3
    assert main(words) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"the run {run} has no checkpoint to resume from" in said
    assert all(str(path) in said for path in before)
    assert [path.name for path in run.parent.glob("version_*")] == ["version_0"]


@pytest.mark.parametrize("damage", [flip_a_bit, cut_in_half])
def test_a_damaged_checkpoint_that_is_asked_for_is_refused(
    run: Path, words: Words, damage: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    last = run / "checkpoints/last.ckpt"
    damage(last)
    assert main([*words, "--resume=null", f"--ckpt_path={last}"]) == 2
    assert f"lora-lightning: error: {last} is damaged" in capfd.readouterr().err.strip().splitlines()[-1]


def test_the_command_that_a_stopped_run_prints_goes_on_with_it(
    run: Path, words: Words, whole: dict[str, torch.Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "--config", str(run / "config.yaml"), "--resume", "auto"]) == 0
    assert f"resuming from {run / 'checkpoints/last.ckpt'}" in capfd.readouterr().out
    assert all(torch.equal(tensor, whole[name]) for name, tensor in trained_state(run).items())
    assert main(words) == 0
    assert f"the run {run} is finished: there is nothing to resume" in capfd.readouterr().out


def test_the_command_means_the_stopped_run_even_if_a_newer_one_of_the_same_settings_is_finished(
    run: Path, words: Words, capfd: pytest.CaptureFixture[str]
) -> None:
    newer = shutil.copytree(run, run.parent / "version_1")
    (newer / "summary.json").write_text("{}")
    assert main(words) == 0
    assert f"the run {newer} is finished" in capfd.readouterr().out
    assert main(["fit", "--config", str(run / "config.yaml"), "--resume", "auto"]) == 0
    assert f"resuming from {run / 'checkpoints/last.ckpt'}" in capfd.readouterr().out
    assert (run / "summary.json").exists()


def test_only_training_is_resumed(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["test", f"--config={run / 'config.yaml'}", "--resume=auto"]) == 2
    assert "only fit can resume a run" in capfd.readouterr().err
    assert main(["fit", f"--config={run / 'config.yaml'}", "--resume=yes"]) == 2
    assert "resume must be 'auto'." in capfd.readouterr().err


def test_slurms_signal_saves_a_whole_step_and_not_lightnings_way(
    run: Path, words: Words, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = SequenceClassificationTask.training_step

    def preempted(self: SequenceClassificationTask, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == 13:
            signal.raise_signal(signal.SIGUSR1)
        return original(self, batch, batch_idx)

    monkeypatch.chdir(tmp_path)
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    with monkeypatch.context() as patch:
        patch.setattr(SequenceClassificationTask, "training_step", preempted)
        assert main(words) == 75
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 14
    assert not list(tmp_path.iterdir())  # where Lightning saves before it queues the job again
    assert main(words) == 0
    assert all(torch.equal(tensor, whole[name]) for name, tensor in trained_state(run).items())


def test_the_table_of_a_csv_logger_stays(words: Words, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*words, "--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}", "--trainer.logger.name=run"]
    assert main(words) == 0
    table = (tmp_path / RUN / "metrics.csv").read_text()
    (tmp_path / RUN / "summary.json").unlink()  # as if it had ended just before
    assert main(words) == 0
    assert (tmp_path / RUN / "metrics.1.csv").read_text() == table
    assert "will be deleted" not in capfd.readouterr().err  # as Lightning would have it


def test_other_settings_are_another_run(run: Path, words: Words, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*words, "--config={trainer: {max_time: null}}", "--model.lora.r=2"]
    assert main([*words, "--trainer.logger.version=0"]) == 2
    different = "model.init_args.lora.r is 2 here and 4 there"
    said = capfd.readouterr().err
    assert (
        f"the run folder {run} contains a run with other settings: {different}; trainer.logger.init_args.version"
        in said
    )
    assert main(words) == 0
    assert (
        f"starting a new run, because the newest run, {run}, has other settings: {different}\n"
        in capfd.readouterr().out
    )
    assert sorted(path.name for path in run.parent.glob("version_*")) == ["version_0", "version_1"]
    assert not (run / "summary.json").exists()


def fill_the_disk(patch: pytest.MonkeyPatch, draft: Path) -> None:
    """From the start of training on: there is no room for a file."""
    patch.setattr(FinalValidation, "on_train_start", lambda *_: draft.symlink_to("/dev/full"))


def test_a_full_disk_leaves_what_was_saved(
    run: Path,
    words: Words,
    whole: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    last = run / "checkpoints/last.ckpt"
    before = last.read_bytes()
    with monkeypatch.context() as patch:
        fill_the_disk(patch, run / "checkpoints/.last.ckpt.draft")
        assert main(words) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"lora-lightning: error: {last} cannot be written (No space left on device); what was saved before" in said
    assert last.read_bytes() == before
    assert main(words) == 0
    assert all(torch.equal(tensor, whole[name]) for name, tensor in trained_state(run).items())


@pytest.mark.parametrize("more", [[], ["--trainer.limit_val_batches=0"]], ids=["best", "last"])
@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_full_disk_in_the_export_leaves_no_half_folder(
    tiny_backbone: TinyBackbone,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    file: str,
    more: Words,
) -> None:
    from lora_lightning.backbones import export  # noqa: PLC0415

    write_model = export._write_model

    def write_and_fill(network: torch.nn.Module, folder: Path, state: Any) -> None:
        write_model(network, folder, state)
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to("/dev/full")

    monkeypatch.setattr(export, "_write_model", write_and_fill)
    words = fit_words(tiny_backbone("bert"), data, tmp_path, "--trainer.max_steps=2", *more)
    assert main(words) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert "cannot be written (No space left on device); what was saved before is intact" in said
    assert not list((tmp_path / RUN).glob("*adapter*"))


def delete(folder: Path) -> None:
    """Also where a thread still writes into it."""
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)


def write_curves_now(logger: TensorBoardLogger) -> None:
    """Has TensorBoard's thread write what it holds, as it does every two minutes; it fails when the folder is gone."""
    thread = logger.experiment.file_writer.event_writer._async_writer._worker
    thread._next_flush_time = 0
    logger.experiment.add_scalar("number", 1)
    for _ in range(500):
        time.sleep(0.01)
        if thread.exception is not None:
            return
    pytest.fail("TensorBoard's thread has written")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("written", [False, True])
def test_a_folder_that_vanished_is_made_again_and_the_run_stops_to_have_curves_again(
    run: Path,
    words: Words,
    whole: dict[str, torch.Tensor],
    written: bool,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    original = SequenceClassificationTask.training_step

    def vanish(self: SequenceClassificationTask, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.trainer.global_step == 14:
            delete(run)
            if written:
                write_curves_now(self.logger)
        return original(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(SequenceClassificationTask, "training_step", vanish)
        assert main(words) == 75
    said = capfd.readouterr().err
    assert f"lora-lightning: warning: the run folder {run} disappeared; it is created again" in said
    assert "stopped by SIGTERM after step 15, which is saved" in said
    assert main(words) == 0
    assert (run / "summary.json").exists()
    assert list(run.glob("events.*"))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in trained_state(run).items())


def test_a_folder_that_vanishes_while_curves_are_logged_is_a_sentence(
    run: Path, words: Words, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    original = TensorBoardLogger.log_metrics

    def vanish(self: TensorBoardLogger, metrics: Any, step: int | None) -> None:
        if (step or 0) > 12 and (run / "config.yaml").exists():
            delete(run)
            write_curves_now(self)
        original(self, metrics, step)

    monkeypatch.setattr(TensorBoardLogger, "log_metrics", vanish)
    assert main(words) == 2
    assert f"the run folder {run} disappeared while a file in it was being written" in capfd.readouterr().err


HOLD = (
    "import sys, pathlib; from lora_lightning.runs.lock import lock_run_folder; "
    "lock = lock_run_folder(pathlib.Path(sys.argv[1]))"
)


def test_a_second_process_is_kept_out_of_a_run(run: Path, words: Words, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "run.lock"}
    code = f"{HOLD}; print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, run], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert main(words) == 2
        holder.kill()
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"another process ({holder.pid} on " in said
    assert f"is training in the run folder {run}; wait for it or stop it" in said
    assert {path: path.read_bytes() for path in before} == before
    with lock_run_folder(run) as lock:  # a process that is killed holds nothing
        assert lock is not None


ENDINGS = {  # what happens to two processes that train together: exit status of the main one, and what is said
    "asked": (75, "lora-lightning: stopped by SIGTERM after step"),
    "Ctrl-C": (
        130,
        "stopping after this step or validation; press Ctrl-C again to stop immediately\nlora-lightning: stopped by",
    ),
    "child killed": (
        2,
        (
            "training process 1 was killed by SIGKILL, possibly because the machine ran out of memory; "
            "the other processes were stopped"
        ),
    ),
    "main process killed": (-signal.SIGKILL, "the other processes were stopped after step"),
    "disk full": (2, "last.ckpt cannot be written (No space left on device)"),
}


def link_to_a_full_disk(draft: Path) -> None:
    """Once the file that is being written is whole, and so has another name."""
    while not draft.is_symlink():
        with suppress(FileExistsError):
            draft.symlink_to("/dev/full")


@pytest.mark.skipif(sys.platform != "linux", reason="children are found in /proc")
@pytest.mark.parametrize("ending", ENDINGS)
def test_training_processes_end_together(tiny_backbone: TinyBackbone, data: Path, tmp_path: Path, ending: str) -> None:
    words = [*fit_words(tiny_backbone("bert"), data, tmp_path), "--trainer.devices=2", "--trainer.strategy=ddp"]
    words += ["--trainer.max_epochs=100000", "--early_stopping.patience=100000", "--checkpoint.every_n_train_steps=2"]
    last, output = tmp_path / RUN / "checkpoints/last.ckpt", tmp_path / "output.txt"
    command = [sys.executable, "-m", "lora_lightning", *words]
    with (
        output.open("w") as file,
        subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=end_with_parent,  # noqa: PLW1509
        ) as main_one,
    ):
        try:
            while not last.exists():
                assert main_one.poll() is None, output.read_text()
                time.sleep(0.1)
            child = int(Path(f"/proc/{main_one.pid}/task/{main_one.pid}/children").read_text())
            if ending == "asked":
                main_one.terminate()
            elif ending == "Ctrl-C":  # a terminal tells all processes
                os.killpg(main_one.pid, signal.SIGINT)
            elif ending == "disk full":
                link_to_a_full_disk(last.with_name(".last.ckpt.draft"))
            else:
                os.kill(child if ending == "child killed" else main_one.pid, signal.SIGKILL)
            status, said = ENDINGS[ending]
            assert main_one.wait(timeout=PATIENCE) == status, output.read_text()
        finally:
            main_one.kill()
    began = time.monotonic()
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() - began < PATIENCE
        time.sleep(0.1)
    assert said in output.read_text()
    assert "training on: cpu, 2 processes, DDPStrategy\n" in output.read_text()
    assert read_checkpoint(last)["global_step"] >= 2


def start_from(rank: int, count: int, port: int, words: Words, checkpoints: list[Words], output: Path) -> None:
    """One of several processes, each with a checkpoint of its own."""
    os.dup2(os.open(f"{output}{rank}", os.O_WRONLY | os.O_CREAT), 2)
    processes.join_training(rank, count, port)
    raise SystemExit(main([*words, *checkpoints[rank]]))


@pytest.mark.parametrize(("other", "found"), [("previous.ckpt", "previous.ckpt of step 9"), (None, "no checkpoint")])
def test_processes_that_would_go_on_from_different_places_are_refused(
    run: Path, words: Words, tmp_path: Path, other: str | None, found: str
) -> None:
    words = [word for word in words if "resume" not in word]
    words += ["--trainer.devices=2", "--trainer.strategy=ddp", f"--trainer.logger.save_dir={tmp_path / 'logs'}"]
    words += ["--data.batch_size=4"]  # 8 of both, as before
    checkpoints = [[f"--ckpt_path={run / 'checkpoints' / name}"] if name else [] for name in ("last.ckpt", other)]
    with pytest.raises(SystemExit):
        processes.start_processes(start_from, 2, words, checkpoints, tmp_path / "said")
    for rank in range(2):
        said = (tmp_path / f"said{rank}").read_text()
        assert f"the main process resumes from last.ckpt of step 12, but process 1 found {found};" in said


WAITS = {  # a process that waits for one that is gone, and learns nothing from it: its script, status and what it says
    "for a child": (
        """
        WatchingLauncher(LightningEnvironment(), 2, 1).launch(time.sleep, 600)
        """,
        2,
        "error: training process 1 exited with status 2; the other processes were stopped.",
    ),
    "for a child that was asked to stop": (
        """
        os.environ["STATUS"] = "75"
        WatchingLauncher(LightningEnvironment(), 2, 1).launch(time.sleep, 600)
        """,
        75,
        "stopped, because training process 1 exited with status 75.",
    ),
    "for a child that was interrupted": (
        """
        os.environ["STATUS"] = "130"
        WatchingLauncher(LightningEnvironment(), 2, 1).launch(time.sleep, 600)
        """,
        130,
        "stopped, because training process 1 exited with status 130.",
    ),
    "for the main process": (
        """
        if MAIN_PROCESS not in os.environ:
            subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, MAIN_PROCESS: str(os.getpid())})
            os._exit(2)
        os.environ["LOCAL_RANK"] = "1"
        watch_processes(Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False))
        time.sleep(600)
        """,
        2,
        "error: the main process is gone; stopping this process, too.",
    ),
}
HEADING = """
import os, subprocess, sys, time
if "LOCAL_RANK" in os.environ:  # a child, which needs no imports to exit
    sys.exit(int(os.environ.get("STATUS", "2")))
from lightning import Trainer
from lightning.fabric.plugins.environments import LightningEnvironment
from lora_lightning.runs import processes as lost_processes
from lora_lightning.runs.processes import MAIN_PROCESS, WatchingLauncher, watch_processes
lost_processes.PATIENCE = 1
"""


@pytest.mark.parametrize("wait", WAITS)
def test_a_process_that_waits_for_a_lost_one_is_ended(tmp_path: Path, wait: str) -> None:
    script, output = tmp_path / "script.py", tmp_path / "output.txt"
    lines, status, said = WAITS[wait]
    script.write_text(HEADING + textwrap.dedent(lines))
    with output.open("w") as file:
        ended = subprocess.run([sys.executable, script], stdout=file, stderr=file, timeout=PATIENCE, check=False)
    assert ended.returncode == status
    began = time.monotonic()
    while f"lora-lightning: {said}" not in output.read_text():
        assert time.monotonic() - began < PATIENCE, output.read_text()
        time.sleep(0.1)


def test_processes_that_do_not_end_are_killed_together() -> None:
    launcher = WatchingLauncher(LightningEnvironment(), 4, 1)
    launcher.procs = [subprocess.Popen(["/bin/sleep", "60"]) for _ in range(3)]
    began = time.monotonic()
    assert end_child_processes(launcher, patience=2) == ""
    assert 2 < time.monotonic() - began < 5  # 6 if it waited for each
    assert [process.returncode for process in launcher.procs] == [-signal.SIGKILL] * 3


def test_the_process_that_a_signal_ended_is_the_one_to_blame() -> None:
    launcher = WatchingLauncher(LightningEnvironment(), 4, 1)
    endings = ("exit 2", "kill -9 $$", "sleep 60")
    launcher.procs = [subprocess.Popen(["/bin/sh", "-c", ending]) for ending in endings]
    launcher.procs[1].wait()
    assert end_child_processes(launcher, patience=5) == (
        "training process 2 was killed by SIGKILL, possibly because the machine ran out of memory"
    )


def test_a_new_checkpoint_takes_its_place_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    content = {"state_dict": {"a": torch.arange(5)}, "hyper_parameters": {}}
    io.save_checkpoint(content | {"number": 1}, place)
    io.save_checkpoint(content | {"number": 2}, place)
    monkeypatch.setattr(torch, "save", lambda _, file: [file.write(b"half"), int("x")])
    with pytest.raises(ValueError, match="invalid literal"):
        io.save_checkpoint(content | {"number": 3}, place)
    assert io.load_checkpoint(place)["number"] == 2
    assert io.load_checkpoint(tmp_path / "previous.ckpt")["number"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "previous.ckpt"]


def test_a_summary_that_is_cut_off_is_written_again(run: Path, words: Words, capfd: pytest.CaptureFixture[str]) -> None:
    (run / "summary.json").write_text('{"metrics": {')
    assert main(words) == 0
    assert "is finished" not in capfd.readouterr().out
    assert json.loads((run / "summary.json").read_text())["trained_parameters"] > 0


def test_a_disk_that_is_full_at_the_summary_leaves_the_run_unfinished(
    run: Path, words: Words, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        fill_the_disk(patch, run / ".summary.json.draft")
        assert main(words) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"{run / 'summary.json'} cannot be written (No space left on device)" in said
    assert main(words) == 0
    assert "is finished" not in capfd.readouterr().out
    assert main(words) == 0
    assert "is finished" in capfd.readouterr().out


def test_a_failed_check_stays_failed_when_the_run_is_started_again(
    run: Path, words: Words, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise VerificationError("merging changes what the model says.")

    with monkeypatch.context() as patch:
        patch.setattr(FinalValidation, "on_train_end", fail)
        assert main(words) == 3
    capfd.readouterr()
    assert main(words) == 3
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert (
        f"the run {run} is finished, but the trained model failed a check: merging changes what the model says." in said
    )


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_checkpoint_that_cannot_be_read_now_is_not_given_up(
    run: Path, words: Words, error: Exception, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*.ckpt")}

    def fail(*_: Any, **__: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", fail)
        assert main(words) == 2
    assert f"{run / 'checkpoints/last.ckpt'} cannot be read at the moment" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*.ckpt*")} == before


@pytest.mark.parametrize("place", ["setup", "on_sanity_check_start", "on_train_end"])
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_or_after_the_steps_is_not_forgotten(
    run: Path, words: Words, place: str, asked: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*words, "--test_after_fit=true"]
    words.remove("--test_after_fit=false")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    with monkeypatch.context() as patch:
        patch.setattr(FinalValidation, place, lambda *_, **__: signal.raise_signal(asked))
        assert main(words) == 75
    assert not (run / "summary.json").exists()
    assert {number: signal.getsignal(number) for number in before} == before
    assert set(before.values()) == {signal.SIG_DFL}
    assert main(words) == 0


@pytest.mark.parametrize("at_validation", ["false", "true"])
def test_a_failed_merge_check_is_not_lost_with_the_test_after_it(
    words: Words, tmp_path: Path, at_validation: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*words, "--trainer.callbacks=MergeEquivalence", "--trainer.callbacks.tolerance=1e-30"]
    words += [f"--trainer.callbacks.at_validation={at_validation}", f"--trainer.logger.save_dir={tmp_path}"]
    words = [*words, "--test_after_fit=true"]
    with monkeypatch.context() as patch:
        patch.setattr(FinalValidation, "on_test_start", lambda *_: signal.raise_signal(signal.SIGTERM))
        assert main(words) == 75
    steps = read_checkpoint(tmp_path / RUN / "checkpoints/last.ckpt")["global_step"]
    capfd.readouterr()
    assert main(words) == 3
    assert "the exported folder changes the model" in capfd.readouterr().err
    assert read_checkpoint(tmp_path / RUN / "checkpoints/last.ckpt")["global_step"] == steps


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_anywhere_is_a_sentence(
    run: Path, words: Words, number: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), str(run / "metrics.csv"))

    with monkeypatch.context() as patch:
        patch.setattr("lightning.pytorch.loggers.TensorBoardLogger.log_metrics", fail)
        assert main(words) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"{run / 'metrics.csv'} cannot be written ({os.strerror(number)})" in said
    assert main(words) == 0


def test_a_lock_that_cannot_be_written_is_a_sentence(
    run: Path, words: Words, capfd: pytest.CaptureFixture[str]
) -> None:
    (run / "run.lock").unlink()
    (run / "run.lock").mkdir()
    assert main(words) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if ": warning: " not in line]
    assert len(said) == 1
    assert f"{run / 'run.lock'} cannot be written (Is a directory)" in said[0]


def test_lightnings_word_for_the_last_checkpoint_goes_on(
    run: Path, words: Words, whole: dict[str, torch.Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--resume=null", "--ckpt_path=last"]) == 0
    assert f"resuming from {run / 'checkpoints/last.ckpt'}" in capfd.readouterr().out
    assert all(torch.equal(tensor, whole[name]) for name, tensor in trained_state(run).items())


KILL_A_WORKER = """
import multiprocessing, sys
from lora_lightning.training.final_validation import FinalValidation
from lora_lightning.cli.main import main
FinalValidation.on_train_batch_end = lambda *_: [worker.kill() for worker in multiprocessing.active_children()]
sys.exit(main(sys.argv[1:]))
"""


def test_a_lost_process_that_loads_data_is_a_sentence(words: Words, tmp_path: Path) -> None:
    """In a process of its own, for PyTorch tells of each lost one at any time."""
    command = [sys.executable, "-c", KILL_A_WORKER, *words, "--data.num_workers=1"]
    command += [f"--trainer.logger.save_dir={tmp_path}"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 2
    said = ended.stderr.strip().splitlines()[-1]
    assert "a data loading process died (DataLoader worker" in said
    assert "lower data.num_workers" in said


def test_a_seed_that_no_resumed_run_could_find_again_is_refused(
    words: Words, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--seed_everything=true"]) == 2
    assert "seed_everything is true" in capfd.readouterr().err
