"""Kill training with SIGKILL at random moments, resume with `--resume auto`, compare with an uninterrupted run.

Moments are drawn in turn from training steps, validation batches and saves: which one, and how long after its start.
Equal means bit for bit: trainable parameters and optimizer state in last.ckpt, best.ckpt, the exported adapter, all
metrics, all curves except those that measure time; and every example is used once per epoch. Prints a Markdown table
and JSON; exits with 1 unless all runs are equal.

All other options are passed to `lora-lightning fit` in every run.

Example:
    python benchmarks/kill_and_resume.py --kills 25 --config configs/quickstart.yaml --data.batch_size=8
        --trainer.limit_train_batches=15 --trainer.limit_val_batches=4 --trainer.max_epochs=3 --model.base_dropout=0.1
"""

import argparse
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from processes import free_port, join_training
from torch import Tensor

from lora_lightning import RunRecord
from lora_lightning.cli.main import main as lora_lightning
from lora_lightning.runs.curves import logged_points
from lora_lightning.runs.resume import newest_intact_checkpoint
from lora_lightning.training.checkpointing import AdapterCheckpoint

# The phases of a process, which it records in shared memory.
ELSE, STEP, VALIDATION, SAVE = "between", "step", "validation", "save"
PHASES = (ELSE, STEP, VALIDATION, SAVE)
# Curves that differ between any two runs, or are written at every start.
STOPWATCH = "/seconds_per_batch"
CLOCK = ("training_efficiency/", "hp_metric", "epoch")
PROCESSES = multiprocessing.get_context("forkserver")  # one process imports the modules, and its children train


class PhaseRecorder(Callback):
    """Records the phase of the process and the examples of each batch; the benchmark adds it to the trainer."""

    shared: Any = None  # of the main process: [index of the phase; how often each phase began ...; optimizer steps]
    examples: Path | None = None

    @classmethod
    def enter_phase(cls, doing: str) -> None:
        """Records that a phase begins."""
        if cls.shared is not None:
            cls.shared[0] = PHASES.index(doing)
            cls.shared[1 + PHASES.index(doing)] += 1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A step begins."""
        del trainer, pl_module, batch, batch_idx
        self.enter_phase(STEP)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        """A step ends; records its examples."""
        del pl_module, outputs
        row = [trainer.current_epoch, batch_idx, trainer.global_rank, batch["index"].tolist()]
        if self.examples is not None:
            with self.examples.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self.shared is not None:
            self.shared[-1] = trainer.global_step
        self.enter_phase(ELSE)

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        """A validation batch begins."""
        self.enter_phase(VALIDATION)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation ends."""
        del trainer, pl_module
        self.enter_phase(ELSE)


def train(place: tuple[int, int, int], words: list[str], shared: Any, examples: Path, output: Path) -> None:
    """Runs `lora-lightning` in this process, a child of the benchmark.

    Args:
        place: Rank, number of processes, and the port of the process group.
        words: The command line.
        shared: Shared memory of `PhaseRecorder`.
        examples: File that receives the examples of each batch.
        output: File that receives the output of the command.
    """
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    join_training(*place)
    PhaseRecorder.shared, PhaseRecorder.examples = shared if place[0] == 0 else None, examples
    AdapterCheckpoint.save_file = record_save(AdapterCheckpoint.save_file)  # type: ignore[method-assign]
    sys.exit(lora_lightning(words))


def record_save(save: Callable[..., None]) -> Callable[..., None]:
    """Wraps a function to record when a save begins and ends."""

    @wraps(save)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        PhaseRecorder.enter_phase(SAVE)
        save(*args, **kwargs)
        PhaseRecorder.enter_phase(ELSE)

    return wrapper


@dataclass(frozen=True)
class Moment:
    """When to end a process.

    Attributes:
        doing: One of `PHASES`.
        number: Which occurrence of the phase, from 1.
        delay: Seconds after its start.
        how: The signal to send.
    """

    doing: str
    number: int
    delay: float
    how: int = signal.SIGKILL


class Runs:
    """All runs of one command line, below one folder.

    Args:
        words: Options of `fit`.
        folder: Parent folder of the runs.
        processes: Number of processes that train together and are killed together.
    """

    def __init__(self, words: list[str], folder: Path, processes: int = 1) -> None:
        self.processes = processes
        self.words = ["fit", *words, "--trainer.callbacks+=kill_and_resume.PhaseRecorder", "--resume=auto"]
        self.words += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
        self.words += [f"--trainer.devices={processes}"]
        self.folder = folder
        PROCESSES.set_forkserver_preload(["kill_and_resume", "lora_lightning.cli.commands"])
        self.shared = PROCESSES.RawArray("q", 2 + len(PHASES))
        self.counts: dict[str, int] = {}  # of the last uninterrupted run: how often each phase began

    def start(self, name: str, moment: Moment | None = None) -> tuple[int, str]:
        """Trains until the run ends, or until a given moment.

        Args:
            name: Name of the run; the same name resumes it.
            moment: When to send a signal; `None` lets the run end.

        Returns:
            The exit status, negative for a signal, and the last phase of the process.
        """
        (self.folder / name).mkdir(exist_ok=True)
        place = [f"--trainer.logger.init_args.save_dir={self.folder / name}", "--trainer.logger.init_args.name=run"]
        self.shared[:] = [0] * len(self.shared)
        files = (self.folder / name / "examples.jsonl", self.folder / name / "output.txt")
        arguments, port = ([*self.words, *place], self.shared, *files), free_port()
        group = [
            PROCESSES.Process(target=train, args=((rank, self.processes, port), *arguments))
            for rank in range(self.processes)
        ]
        for process in group:
            process.start()
        place_of = 1 + PHASES.index(moment.doing) if moment else 0
        while group[0].is_alive() and moment is not None:
            if self.shared[place_of] >= moment.number:
                time.sleep(moment.delay)
                for process in group:
                    os.kill(process.pid or 0, moment.how)
                break
            time.sleep(0.0002)
        for process in group:
            process.join()
        if moment is None:
            self.counts = dict(zip(PHASES, self.shared[1:-1], strict=True))
        return group[0].exitcode or 0, PHASES[self.shared[0]]

    def run_folder(self, name: str) -> Path:
        """The folder of a run, which stays the same however often the run is started."""
        folders = list((self.folder / name / "run").glob("version_*"))
        assert len(folders) == 1, folders  # noqa: S101
        return folders[0]

    def result(self, name: str) -> dict[str, Any]:
        """Everything that must be equal, by name."""
        folder = self.run_folder(name)
        chosen = RunRecord.load(folder).checkpoint or ""  # the best one, or the last one of a run without validation
        last, best = (torch.load(path, weights_only=True) for path in (folder / "checkpoints/last.ckpt", chosen))
        return {
            "weights": last["state_dict"],
            "optimizer": last["optimizer_states"],
            "best weights": best["state_dict"],
            "adapter": (folder / "adapter/adapter_model.safetensors").read_bytes(),
            "metrics": RunRecord.load(folder).metrics,
            "curves": curves(folder),
            "examples": self.examples(name),
        }

    def examples(self, name: str) -> dict[tuple[int, int, int], list[int]]:
        """Rows by epoch, batch and process; a step that was repeated after a kill must have had the same rows."""
        found: dict[tuple[int, int, int], list[int]] = {}
        for line in (self.folder / name / "examples.jsonl").read_text().splitlines():
            *place, rows = json.loads(line)
            assert found.setdefault(tuple(place), rows) == rows, (name, place)  # noqa: S101
        by_epoch: dict[int, list[int]] = defaultdict(list)
        for (epoch, *_), rows in found.items():
            by_epoch[epoch] += rows
        assert all(len(rows) == len(set(rows)) for rows in by_epoch.values()), name  # noqa: S101
        return found


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every scalar that does not measure time, from all TensorBoard files of a run."""
    points = logged_points(folder)
    return {tag: found for tag, found in points.items() if not tag.startswith(CLOCK) and not tag.endswith(STOPWATCH)}


def equal_bitwise(left: Any, right: Any) -> bool:
    """Compares values bit for bit, including mappings and lists; NaN equals NaN."""
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal_bitwise(left[name], right[name]) for name in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal_bitwise, left, right))
    return bool(left == right or (left != left and right != right))  # noqa: PLR0124


def random_moments(counts: dict[str, int], seconds: float, kills: int, source: random.Random) -> list[Moment]:
    """Draws random moments during steps, validation batches and saves in turn.

    Args:
        counts: How often each phase occurs in a complete run.
        seconds: Largest delay after the start of the phase.
        kills: Number of moments.
        source: Random number generator.

    Returns:
        The moments.
    """
    doings = [doing for doing in (STEP, VALIDATION, SAVE) if counts[doing]]
    return [
        Moment(doing, source.randint(1, counts[doing]), source.uniform(0, seconds))
        for doing, _ in zip(cycle(doings), range(kills), strict=False)
    ]


def kill_and_resume(runs: Runs, reference: dict[str, Any], name: str, kills: list[Moment]) -> dict[str, Any]:
    """Kills one run at each of the moments, lets it finish, and compares it with the uninterrupted run.

    Args:
        runs: The runs.
        reference: Result of the uninterrupted run.
        name: Name of the run to kill.
        kills: When to kill; a moment after the end of the run is left out.

    Returns:
        A row of the table: the phases, the completed steps, the checkpoints it resumed from, and what differs.
    """
    doing, steps, start = [], [], []
    for moment in kills:
        status, last = runs.start(name, moment)
        if status != -signal.SIGKILL:  # the run ended before the moment
            continue
        folder = runs.run_folder(name)
        path, checkpoint = newest_intact_checkpoint(folder, (folder / "config.yaml").read_text())
        doing.append(last)
        steps.append(runs.shared[len(runs.shared) - 1])
        start.append("0" if path is None else f"{checkpoint['global_step']} ({path.name})")
    status, _ = runs.start(name)
    result = runs.result(name) if status == 0 else {}
    different = [part for part, value in reference.items() if not equal_bitwise(value, result.get(part))]
    return {"killed during": doing, "steps in it": steps, "resumed from": start, "status": status, "differs": different}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="number of runs that are killed once")
    parser.add_argument("--kills_of_one_run", type=int, default=5, help="number of kills of one more run")
    parser.add_argument(
        "--processes", type=int, default=1, help="processes that train together; also set --trainer.strategy"
    )
    parser.add_argument("--seed", type=int, default=0)
    options, words = parser.parse_known_args()
    source = random.Random(options.seed)  # noqa: S311
    runs = Runs(["--checkpoint.every_n_train_steps=5", *words], Path(tempfile.mkdtemp()), options.processes)
    status, _ = runs.start("left alone")
    if status:
        sys.exit((runs.folder / "left alone/output.txt").read_text())
    counts = runs.counts
    reference = runs.result("left alone")
    print(f"A run of {runs.shared[len(runs.shared) - 1]} steps: {json.dumps(counts)}\n")
    print("| kill | during | steps completed | resumed from step | equal |")
    print("| --- | --- | --- | --- | --- |")
    rows = []
    alone = [[moment] for moment in random_moments(counts, 0.05, options.kills, source)]
    # A process that is killed several times reaches each phase less often.
    few = {doing: 1 + count // options.kills_of_one_run for doing, count in counts.items()}
    for number, kills in enumerate([*alone, random_moments(few, 0.05, options.kills_of_one_run, source)]):
        row = kill_and_resume(runs, reference, str(number), kills)
        rows.append(row)
        cells = [", ".join(map(str, row[name])) for name in ("killed during", "steps in it", "resumed from")]
        equal = "yes" if not row["differs"] else f"no: {', '.join(row['differs'])}"
        print(f"| {number + 1} | {' | '.join(cells)} | {equal} |", flush=True)
    print(json.dumps({"runs": len(rows), "equal": sum(not row["differs"] for row in rows), "rows": rows}))
    sys.exit(any(row["differs"] for row in rows))


if __name__ == "__main__":
    # Child processes import the classes by the name of this module.
    from kill_and_resume import main as main_of_the_module

    main_of_the_module()
