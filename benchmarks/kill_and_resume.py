"""Kill training with SIGKILL at random moments, go on with `--resume auto`, compare with a run that was left alone.

Moments are drawn from training steps, validation batches and saves in turn: which one, and how far into it. Equal means
bit for bit: what trained and the optimizer's state in last.ckpt, best.ckpt, the exported adapter, all metrics, all
curves but those of the clock; and every example once in an epoch. Prints a Markdown table and JSON; exits with 1 unless
all are equal.

Options that are not its own go to `lora-lightning fit`, for every run.

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
from processes import become, free_port
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import Tensor

from lora_lightning.cli.main import main as lora_lightning
from lora_lightning.runs.resume import last_good
from lora_lightning.training.checkpointing import AdapterCheckpoint

# What a process is doing, as it notes in shared memory.
ELSE, STEP, VALIDATION, SAVE = "between", "step", "validation", "save"
DOINGS = (ELSE, STEP, VALIDATION, SAVE)
CLOCK = ("training_efficiency/", "hp_metric", "epoch")  # no two runs share them, or every start writes them
PROCESSES = multiprocessing.get_context("forkserver")  # one process imports, its children only train


class Notes(Callback):
    """Notes what the process is doing, and the examples of each batch; the benchmark adds it to the trainer."""

    shared: Any = None  # the main process's: [what, of DOINGS; how often that began, by DOINGS ...; optimizer steps]
    examples: Path | None = None

    @classmethod
    def begin(cls, doing: str) -> None:
        """Notes that something begins."""
        if cls.shared is not None:
            cls.shared[0] = DOINGS.index(doing)
            cls.shared[1 + DOINGS.index(doing)] += 1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """A step begins."""
        del trainer, pl_module, batch, batch_idx
        self.begin(STEP)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: dict[str, Tensor], batch_idx: int
    ) -> None:
        """A step ends; its examples."""
        del pl_module, outputs
        row = [trainer.current_epoch, batch_idx, trainer.global_rank, batch["index"].tolist()]
        if self.examples is not None:
            with self.examples.open("a") as file:
                file.write(json.dumps(row) + "\n")
        if self.shared is not None:
            self.shared[-1] = trainer.global_step
        self.begin(ELSE)

    def on_validation_batch_start(self, *_: Any, **__: Any) -> None:
        """A batch of the validation begins."""
        self.begin(VALIDATION)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The validation ends."""
        del trainer, pl_module
        self.begin(ELSE)


def train(place: tuple[int, int, int], words: list[str], shared: Any, examples: Path, output: Path) -> None:
    """Runs `lora-lightning` in this process, a child of the benchmark.

    Args:
        place: Which of how many processes this is, and the port where they meet.
        words: The command line.
        shared: Memory for `Notes`.
        examples: File for the examples of each batch.
        output: File for what the command prints.
    """
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    become(*place)
    Notes.shared, Notes.examples = shared if place[0] == 0 else None, examples
    AdapterCheckpoint._save_checkpoint = noted(AdapterCheckpoint._save_checkpoint)  # type: ignore[method-assign]  # noqa: SLF001
    sys.exit(lora_lightning(words))


def noted(save: Callable[..., None]) -> Callable[..., None]:
    """Notes when a save begins and ends."""

    @wraps(save)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        Notes.begin(SAVE)
        save(*args, **kwargs)
        Notes.begin(ELSE)

    return wrapper


@dataclass(frozen=True)
class Moment:
    """When to end a process.

    Attributes:
        doing: One of `DOINGS`.
        number: The how manyth one of it.
        delay: Seconds into it.
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
        folder: Where to.
        processes: How many train together, and are killed together.
    """

    def __init__(self, words: list[str], folder: Path, processes: int = 1) -> None:
        self.processes = processes
        self.words = ["fit", *words, "--trainer.callbacks+=kill_and_resume.Notes", "--resume=auto"]
        self.words += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
        self.words += [f"--trainer.devices={processes}"]
        self.folder = folder
        PROCESSES.set_forkserver_preload(["kill_and_resume", "lora_lightning.cli.lightning_cli"])
        self.shared = PROCESSES.RawArray("q", 2 + len(DOINGS))
        self.counts: dict[str, int] = {}  # how often a process that was left alone last did each of DOINGS

    def start(self, name: str, moment: Moment | None = None) -> tuple[int, str]:
        """Trains, until the moment if there is one.

        Args:
            name: Of the run; the same name goes on with it.
            moment: When to end it.

        Returns:
            The exit status, negative for a signal, and what the process was doing last.
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
        place_of = 1 + DOINGS.index(moment.doing) if moment else 0
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
            self.counts = dict(zip(DOINGS, self.shared[1:-1], strict=True))
        return group[0].exitcode or 0, DOINGS[self.shared[0]]

    def run_folder(self, name: str) -> Path:
        """Where a run lands: in the same folder however often it was started."""
        folders = list((self.folder / name / "run").glob("version_*"))
        assert len(folders) == 1, folders  # noqa: S101
        return folders[0]

    def result(self, name: str) -> dict[str, Any]:
        """All that must be equal, by name."""
        folder = self.run_folder(name)
        last, best = (torch.load(folder / f"checkpoints/{file}.ckpt", weights_only=True) for file in ("last", "best"))
        return {
            "weights": last["state_dict"],
            "optimizer": last["optimizer_states"],
            "best weights": best["state_dict"],
            "adapter": (folder / "adapter/adapter_model.safetensors").read_bytes(),
            "metrics": json.loads((folder / "summary.json").read_text())["metrics"],
            "curves": curves(folder),
            "examples": self.examples(name),
        }

    def examples(self, name: str) -> dict[tuple[int, int, int], list[int]]:
        """Rows by epoch, batch and process; where a killed step was done again, it must have had the same."""
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
    """Steps and values of every scalar but the clock's, from all of TensorBoard's files of a run together."""
    found: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for path in sorted(folder.glob("events.*"), key=lambda path: path.stat().st_mtime):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if not tag.startswith(CLOCK) and not tag.endswith("/seconds_per_batch"):
                found[tag] += [(event.step, event.value) for event in events.Scalars(tag)]
    return dict(found)


def same(left: Any, right: Any) -> bool:
    """Bit for bit, through mappings and lists; NaN equals NaN."""
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[name], right[name]) for name in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right or (left != left and right != right))  # noqa: PLR0124


def moments(counts: dict[str, int], seconds: float, kills: int, source: random.Random) -> list[Moment]:
    """Random moments, of steps, validation and saves in turn.

    Args:
        counts: How often each of them is in a whole run.
        seconds: Largest delay.
        kills: How many.
        source: Of randomness.

    Returns:
        The moments.
    """
    doings = [doing for doing in (STEP, VALIDATION, SAVE) if counts[doing]]
    return [
        Moment(doing, source.randint(1, counts[doing]), source.uniform(0, seconds))
        for doing, _ in zip(cycle(doings), range(kills), strict=False)
    ]


def kill_and_resume(runs: Runs, reference: dict[str, Any], name: str, kills: list[Moment]) -> dict[str, Any]:
    """Kills one run at each of the moments, lets it end, and compares.

    Args:
        runs: The runs.
        reference: Of the run that was left alone.
        name: Of this one.
        kills: When to kill; a moment that does not come any more is left out.

    Returns:
        A row of the table: what it was doing, how many steps were done, what it went on from, what differs.
    """
    doing, steps, start = [], [], []
    for moment in kills:
        status, last = runs.start(name, moment)
        if status != -signal.SIGKILL:  # it had ended before
            continue
        folder = runs.run_folder(name)
        path, checkpoint = last_good(folder, (folder / "config.yaml").read_text())
        doing.append(last)
        steps.append(runs.shared[len(runs.shared) - 1])
        start.append("0" if path is None else f"{checkpoint['global_step']} ({path.name})")
    status, _ = runs.start(name)
    result = runs.result(name) if status == 0 else {}
    different = [part for part, value in reference.items() if not same(value, result.get(part))]
    return {"killed during": doing, "steps in it": steps, "went on from": start, "status": status, "differs": different}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="of a run each")
    parser.add_argument("--kills_of_one_run", type=int, default=5, help="of one more run, one after the other")
    parser.add_argument("--processes", type=int, default=1, help="that train together; set --trainer.strategy too")
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
    print("| kill | during | steps done by then | went on from step | equal |")
    print("| --- | --- | --- | --- | --- |")
    rows = []
    alone = [[moment] for moment in moments(counts, 0.05, options.kills, source)]
    few = {doing: 1 + count // options.kills_of_one_run for doing, count in counts.items()}  # a process does less then
    for number, kills in enumerate([*alone, moments(few, 0.05, options.kills_of_one_run, source)]):
        row = kill_and_resume(runs, reference, str(number), kills)
        rows.append(row)
        cells = [", ".join(map(str, row[name])) for name in ("killed during", "steps in it", "went on from")]
        equal = "yes" if not row["differs"] else f"no: {', '.join(row['differs'])}"
        print(f"| {number + 1} | {' | '.join(cells)} | {equal} |", flush=True)
    print(json.dumps({"runs": len(rows), "equal": sum(not row["differs"] for row in rows), "rows": rows}))
    sys.exit(any(row["differs"] for row in rows))


if __name__ == "__main__":
    from kill_and_resume import main as main_of_the_module  # whose classes have the names that children import

    main_of_the_module()
