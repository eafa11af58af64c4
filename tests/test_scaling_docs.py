"""The commands of docs/scaling.md run: two processes for eight, two "machines" on loopback, SLURM's variables."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import processes
import pytest
from lightning import Trainer

from lora_lightning.cli.main import main
from lora_lightning.runs.checkpoint import read_checkpoint
from lora_lightning.training.final_validation import FinalValidation
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150, save_tiny_wikitext

ROOT = Path(__file__).parent.parent
LINES = (ROOT / "docs" / "scaling.md").read_text().splitlines()
ON_ONE_MACHINE = [line for line in LINES if line.startswith("lora-lightning fit ")]
EVALUATING = [line for line in LINES if line.startswith("lora-lightning test ")]
BY_TORCHRUN = [line for line in LINES if line.startswith("torchrun ")]
START = LINES.index("#!/bin/bash")
SCRIPT = "\n".join(LINES[START : LINES.index("```", START)]) + "\n"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def small(line: str, tiny_backbone: TinyBackbone, folder: Path) -> list[str]:
    """A documented `fit` with few processes, a tiny backbone and tiny data."""
    words = shlex.split(line)
    words = words[words.index("fit") :]
    words[words.index("--trainer.devices") + 1] = "1" if "--trainer.num_nodes" in words else "2"
    classifies = "configs/clinc150/minilm_lora.yaml" in words
    words += [f"--model.backbone={tiny_backbone('bert' if classifies else 'llama')}"]
    words += [f"--data.data_dir={(save_tiny_clinc150 if classifies else save_tiny_wikitext)(folder / 'data')}"]
    words += [] if classifies else ["--data.context_length=30", "--model.generation.max_new_tokens=2"]
    words += [f"--data.cache_dir={folder}", f"--trainer.logger.save_dir={folder}", "--trainer.max_steps=2"]
    return [*words, "--data.batch_size=4", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def test_one_machine(tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / str(number) for number, _ in enumerate(ON_ONE_MACHINE)]
    processes.run_in_processes(
        2, [small(line, tiny_backbone, place) for line, place in zip(ON_ONE_MACHINE, folders, strict=True)]
    )
    assert len(ON_ONE_MACHINE) == 2
    assert len(EVALUATING) == 1
    for folder in folders:
        (adapter,) = folder.rglob("adapter_model.safetensors")
        monkeypatch.setenv("RUN", str(adapter.parents[1]))
        assert main(shlex.split(os.path.expandvars(EVALUATING[0]))[1:]) == 0


def start_two_machines(tiny_backbone: TinyBackbone, tmp_path: Path, *more: str) -> list[subprocess.Popen[str]]:
    """Both by torchrun on loopback, with one process each."""
    assert len(BY_TORCHRUN) == 2
    port = str(processes.free_port())
    machines = []
    for line in BY_TORCHRUN:
        launch = shlex.split(line)[1 : shlex.split(line).index("fit")]
        for option, value in {"--nproc-per-node": "1", "--master-addr": "127.0.0.1", "--master-port": port}.items():
            launch[launch.index(option) + 1] = value
        command = [sys.executable, "-m", "torch.distributed.run", *launch, *small(line, tiny_backbone, tmp_path), *more]
        pipe, watch = subprocess.PIPE, processes.end_with_parent
        machines.append(
            subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, preexec_fn=watch)  # noqa: PLW1509
        )
    return machines


def test_two_machines_by_torchrun(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    machines = start_two_machines(tiny_backbone, tmp_path)
    outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], outputs
    assert len(list(tmp_path.rglob("adapter_model.safetensors"))) == 1


def test_what_torchrun_started_stops_and_saves_when_one_machine_is_asked_to(
    tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    """Torchrun exits with a status of its own."""
    more = ["--trainer.max_steps=-1", "--trainer.max_epochs=100000", "--early_stopping.patience=100000"]
    machines = start_two_machines(tiny_backbone, tmp_path, *more)
    try:
        end = time.monotonic() + 300
        while not (saved := list(tmp_path.rglob("last.ckpt"))):
            assert all(machine.poll() is None for machine in machines)
            assert time.monotonic() < end
            time.sleep(0.1)
        machines[1].terminate()
        outputs = [machine.communicate(timeout=300)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.terminate()  # and it those that it started
    assert [machine.returncode for machine in machines] == [1, 1]
    steps = read_checkpoint(saved[0])["global_step"]
    assert all(f"stopped by SIGTERM after step {steps}, which is saved" in output for output in outputs), outputs


def ask_to_stop(trainer: Trainer, *_: Any) -> None:
    """SLURM's signal ahead of the time limit, which one of the tasks gets first."""
    if trainer.global_rank == 1:
        signal.raise_signal(signal.SIGUSR1)


def as_slurm_task(rank: int, tasks: int, port: int, words: list[str], asked: bool, said: Path) -> None:
    """One of srun's tasks: each on a machine of its own, all of them this one."""
    os.dup2(os.open(f"{said}{rank}", os.O_WRONLY | os.O_CREAT), 1)
    if asked:
        FinalValidation.on_train_batch_end = lambda _, *arguments: ask_to_stop(*arguments)  # type: ignore[method-assign]
    here = {"SLURM_JOB_ID": f"{port - 15000:04}", "SLURM_JOB_NAME": "lora", "SLURM_NTASKS": str(tasks)}
    here |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": "0", "SLURM_NODEID": str(rank), "SLURM_NNODES": str(tasks)}
    here |= {"SLURM_NODELIST": "127.0.0.1", "SLURM_NTASKS_PER_NODE": "1", "MASTER_PORT": str(port)}
    os.environ |= here
    status = main(words)
    raise SystemExit(0 if status == (75 if asked else 0) else 1)


@pytest.mark.parametrize("status", [0, 2, 75])
def test_slurm(status: int, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    """The script asks for what it got, runs, and puts itself into the queue again where the run was preempted."""
    for command, end in {"srun": status, "scontrol": 0}.items():
        stand_in = tmp_path / "bin" / command
        stand_in.parent.mkdir(exist_ok=True)
        stand_in.write_text(f'#!/bin/bash\nprintf "%s\\n" {command} "$@"\nexit {end}\n')
        stand_in.chmod(0o755)
    environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["/bin/bash"], input=SCRIPT, text=True, capture_output=True, check=False, env=environment)
    assert done.returncode == status, done.stderr
    said = done.stdout.splitlines()
    requeued = said[-3:] == ["scontrol", "requeue", "7"]
    assert requeued == (status == 75)
    task = said[1:-3] if requeued else said[1:]
    assert f"#SBATCH --nodes={task[task.index('--trainer.num_nodes') + 1]}" in SCRIPT
    assert f"#SBATCH --ntasks-per-node={task[task.index('--trainer.devices') + 1]}" in SCRIPT
    if status == 2:
        return
    words = small(shlex.join(task), tiny_backbone, tmp_path)
    if status == 75:
        processes.start_processes(as_slurm_task, 2, words, True, tmp_path / "asked")
        assert not list(tmp_path.rglob("summary.json"))
    processes.start_processes(as_slurm_task, 2, words, False, tmp_path / "said")
    assert ("resuming from " in (tmp_path / "said0").read_text()) == (status == 75)
    assert len(list(tmp_path.rglob("summary.json"))) == 1
