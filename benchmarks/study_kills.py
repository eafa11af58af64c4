"""Kill the workers of a study with SIGKILL at random moments, restart them, and compare with a study left alone.

All workers are started together on empty storage, with the command that started the study. Moments are drawn in turn
from training steps, validation batches, saves and any time. Each trial must end once: none may be lost, none may be
run twice. Equal means bit for bit: the exported adapter, the trainable parameters and optimizer state in last.ckpt, the
outcome of each test example, all metrics, and all curves except those that measure time. Prints JSON; exits with 1
unless all trials are equal.

Example:
    python benchmarks/study_kills.py --workers 3 --kills 20
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
import yaml
from kill_and_resume import ELSE, PHASES, PROCESSES, SAVE, STEP, VALIDATION, PhaseRecorder, curves, equal_bitwise
from kill_and_resume import record_save as recorded
from processes import end_with_parent

from lora_lightning import RunRecord
from lora_lightning.cli.main import main as lora_lightning
from lora_lightning.reports import study_report
from lora_lightning.studies.storage import open_storage
from lora_lightning.studies.study_folder import StudyFolder, load_plan
from lora_lightning.studies.trial_measurements import OUTCOMES
from lora_lightning.training.checkpointing import AdapterCheckpoint

NAME = "kills"
STUDY: dict[str, Any] = {
    "name": NAME,
    "base": {
        "model": {
            "class_path": "PlantedRankTask",
            "init_args": {
                "problem": {"in_features": 16, "out_features": 12, "ranks": [1, 2]},
                "lora": {"r": 4, "lora_alpha": 4, "lora_dropout": 0.1, "target_modules": "all-linear"},
                "optimization": {"learning_rate": 0.02, "weight_decay": 0.01},
            },
        },
        "data": {
            "class_path": "PlantedRankDataModule",
            "init_args": {"in_features": 16, "train_rows": 128, "batch_size": 8},
        },
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "log_every_n_steps": 2,
            "callbacks": ["kill_and_resume.PhaseRecorder"],
        },
        "checkpoint": {"monitor": "val/loss", "mode": "min", "every_n_train_steps": 5},
    },
    "derived": {"model.lora.lora_alpha": "r"},
    "objective": "loss",
    "margin": 0.5,
    "reference": {"r": 4},
}


@dataclass(frozen=True)
class Kill:
    """When to kill a worker.

    Attributes:
        doing: The phase during which one is killed; `ELSE` for any time.
        number: Which occurrence of the phase in the same worker, from 1, counted from the last kill.
        delay: Seconds after the start of the phase, or after the last kill.
        worker: Which one is killed if the phase is `ELSE`; otherwise the first to get there.
    """

    doing: str
    number: int
    delay: float
    worker: int


def work(words: list[str], shared: Any, output: Path) -> None:
    """Runs `lora-lightning` in this process, a child of the benchmark.

    Args:
        words: The command line.
        shared: Shared memory of `PhaseRecorder`.
        output: File that receives the output of the command.
    """
    end_with_parent()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    torch.set_num_threads(1)
    PhaseRecorder.shared = shared
    AdapterCheckpoint.save_file = recorded(AdapterCheckpoint.save_file)  # type: ignore[method-assign]
    study_report.study_figures = lambda *_: []  # they take longer than the study
    sys.exit(lora_lightning(words))


class Workers:
    """Processes that run the same study.

    Args:
        study: The study's YAML.
        save_dir: Parent of the study's folder.
        count: Number of processes.
    """

    def __init__(self, study: Path, save_dir: Path, count: int) -> None:
        PROCESSES.set_forkserver_preload(
            ["study_kills", "lora_lightning.cli.commands", "lora_lightning.studies.worker"]
        )
        save_dir.mkdir(parents=True, exist_ok=True)
        self.words = ["study", "run", str(study), f"--save_dir={save_dir}"]
        self.output, self.folder = save_dir / "output.txt", StudyFolder(save_dir / NAME)
        self.shared = [PROCESSES.RawArray("q", 2 + len(PHASES)) for _ in range(count)]
        self.processes: list[Any] = [None] * count

    def start(self, worker: int) -> None:
        """Starts a worker, for the first time or once more."""
        self.shared[worker][:] = [0] * len(self.shared[worker])
        arguments = (self.words, self.shared[worker], self.output)
        self.processes[worker] = PROCESSES.Process(target=work, args=arguments)
        self.processes[worker].start()

    def kill(self, kill: Kill) -> tuple[int, str] | None:
        """Waits for a moment, and kills a worker.

        Args:
            kill: The moment.

        Returns:
            The worker, and what it was doing; `None` if all had ended before the moment came.
        """
        place = 1 + PHASES.index(kill.doing)
        before = [shared[place] for shared in self.shared]
        worker = kill.worker
        while kill.doing != ELSE:
            if not any(process.is_alive() for process in self.processes):
                return None
            there = [n for n, shared in enumerate(self.shared) if shared[place] >= before[n] + kill.number]
            if there:
                worker = there[0]
                break
            time.sleep(0.0005)
        time.sleep(kill.delay)
        process, doing = self.processes[worker], PHASES[self.shared[worker][0]]
        process.kill()
        process.join()
        return (worker, doing) if process.exitcode == -signal.SIGKILL else None

    def finish(self) -> list[int]:
        """Waits for all workers, and returns their exit statuses."""
        for process in self.processes:
            process.join()
        return [int(process.exitcode) for process in self.processes]


def random_kills(workers: int, kills: int, source: random.Random) -> list[Kill]:
    """Draws the moments, in turn during steps, validation batches, saves and at any time.

    Args:
        workers: Number of workers.
        kills: Number of moments.
        source: Random number generator.

    Returns:
        The moments in order.
    """
    most = {STEP: 16, VALIDATION: 8, SAVE: 4, ELSE: 1}
    longest = {STEP: 0.02, VALIDATION: 0.01, SAVE: 0.03, ELSE: 3.0}
    phases = [*most]
    return [
        Kill(phase, source.randint(1, most[phase]), source.uniform(0, longest[phase]), source.randrange(workers))
        for phase in (phases[number % len(phases)] for number in range(kills))
    ]


def trial_results(folder: StudyFolder) -> dict[str, dict[str, Any]]:
    """Reads all that must be equal, by trial."""
    return {trial.id: _results(folder.run(trial)) for trial in load_plan(folder.path).trials}


def _results(run: Path) -> dict[str, Any]:
    record = RunRecord.load(run)
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return {
        "adapter": (run / "adapter/adapter_model.safetensors").read_bytes(),
        "weights": last["state_dict"],
        "optimizer": last["optimizer_states"],
        "metrics": record.metrics,
        "steps": record.steps,
        "curves": curves(run),
        "test outcomes": (run / OUTCOMES).read_bytes(),
    }


def recorded_states(folder: StudyFolder, url: str | None) -> dict[str, list[str]]:
    """Reads the states of each trial in the storage, by id: one for each time that the trial was added."""
    storage = open_storage(folder, url)
    found: dict[str, list[str]] = {}
    for trial in optuna.load_study(study_name=NAME, storage=storage).trials:
        found.setdefault(str(trial.user_attrs["id"]), []).append(trial.state.name)
    return found


def what_is_wrong(workers: Workers, undisturbed: dict[str, dict[str, Any]], storage: str | None) -> list[str]:
    """Compares a study whose workers were killed with one left alone.

    Args:
        workers: Of the killed study.
        undisturbed: Results by trial.
        storage: URL of the database of the killed study; `None` for its journal file.

    Returns:
        Sentences; empty if all is as it should be.
    """
    rows = recorded_states(workers.folder, storage)
    wrong = [f"{name}: {states} in the storage" for name, states in rows.items() if states != ["COMPLETE"]]
    wrong += [f"{name} is not in the storage" for name in undisturbed if name not in rows]
    folders = {path.name for path in workers.folder.path.iterdir() if (path / "config.yaml").is_file()}
    if folders != set(undisturbed):
        wrong.append(f"run folders: {sorted(folders ^ set(undisturbed))}")
    if wrong:
        return wrong
    for name, results in trial_results(workers.folder).items():
        wrong += [
            f"{name}: other {key}" for key, value in undisturbed[name].items() if not equal_bitwise(value, results[key])
        ]
        sessions = RunRecord.load(workers.folder.path / name).sessions
        if [session.get("ending") for session in sessions].count("finished") != 1:
            wrong.append(f"{name} finished {len(sessions)} times")
    return wrong


def kill_workers(
    folder: Path,
    count: int,
    kills: Sequence[Kill],
    *,
    seeds: Sequence[int],
    ranks: Sequence[int] = (1, 2, 4),
    storage: str | None = None,
) -> dict[str, Any]:
    """Runs a study twice: left alone, and with workers that are killed and started again.

    Args:
        folder: An empty folder.
        count: Number of workers.
        kills: The moments.
        seeds: Seeds of the study.
        ranks: Its configurations; the last one is the reference, and must be 4.
        storage: URL of the database of the killed study; `None` for a journal file.

    Returns:
        What was killed, how often trials were resumed, and what is wrong.
    """
    path = folder / "study.yaml"
    study = STUDY | {"axes": {"model.lora.r": list(ranks)}, "seeds": list(seeds)}
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    alone = Workers(path, folder / "alone", 1)
    alone.start(0)
    if alone.finish() != [0]:
        return {"wrong": [alone.output.read_text()]}
    undisturbed = trial_results(alone.folder)
    path.write_text(yaml.safe_dump(study | ({} if storage is None else {"storage": storage}), sort_keys=False))
    workers, killed = Workers(path, folder / "killed", count), []
    for worker in range(count):
        workers.start(worker)
    for kill in kills:
        if (found := workers.kill(kill)) is not None:
            worker, doing = found
            killed.append(doing)
            print(f"kill {len(killed)}: worker {worker} during {doing}", file=sys.stderr, flush=True)
            workers.start(worker)
    statuses = workers.finish()
    wrong = [f"exit statuses {statuses}: {workers.output.read_text()}"] if any(statuses) else []
    wrong = wrong or what_is_wrong(workers, undisturbed, storage)
    sessions = [len(RunRecord.load(workers.folder.path / name).sessions) for name in undisturbed] if not wrong else []
    return {
        "workers": count,
        "trials": len(undisturbed),
        "kills": len(killed),
        "killed during": dict(Counter(killed)),
        "trials that were resumed": sum(number > 1 for number in sessions),
        "resumptions": sum(sessions) - len(sessions),
        "wrong": wrong,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=4, help="seeds of the study, which has three configurations")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--folder", type=Path, help="keep both studies in this folder, which must be empty")
    options = parser.parse_args()
    kills = random_kills(options.workers, options.kills, random.Random(options.seed))  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        found = kill_workers(options.folder or Path(folder), options.workers, kills, seeds=range(options.seeds))
    print(json.dumps(found | {"seconds": round(time.monotonic() - start)}, indent=2))
    sys.exit(bool(found["wrong"]))


if __name__ == "__main__":
    # Child processes import the functions by the name of this module.
    from study_kills import main as main_of_the_module

    main_of_the_module()
