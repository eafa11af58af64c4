"""Measure what a study costs beside the training of its trials: 16 short trials of the quickstart, one after the other.

Training is what each trial spends between its first batch and the end of its last validation, and between the first and
the last test batch. Everything else is overhead: imports, the check of all configurations, options, data, weights,
checkpoints, the export and the report. Prints JSON with the ratio of the whole command to the training, of wall-clock
time and of CPU time, which other load on the machine does not change much.

Example:
    python benchmarks/study_overhead.py --trials 16 --epochs 2
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from lightning import Callback, LightningModule, Trainer

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
CLOCK = "STUDY_OVERHEAD_CLOCK"  # the file that the trials write to


class TrainingClock(Callback):
    """Writes the wall-clock and CPU seconds of training and testing to a file that all trials share."""

    def __init__(self) -> None:
        self._start = (0.0, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clocks."""
        del trainer, pl_module
        self._start = (time.monotonic(), time.process_time())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clocks."""
        del trainer, pl_module
        self._write("training")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clocks."""
        del trainer, pl_module
        self._start = (time.monotonic(), time.process_time())

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clocks."""
        del trainer, pl_module
        self._write("test")

    def _write(self, what: str) -> None:
        now = (time.monotonic(), time.process_time())
        seconds = [end - start for start, end in zip(self._start, now, strict=True)]
        with Path(os.environ[CLOCK]).open("a") as file:
            file.write(json.dumps({"what": what, "wall": seconds[0], "cpu": seconds[1]}) + "\n")


def measure_study(trials: int, epochs: int, folder: Path) -> dict[str, Any]:
    """Runs a study in a process of its own.

    Args:
        trials: Number of trials.
        epochs: Of each trial.
        folder: Where to.

    Returns:
        Seconds and their ratios.
    """
    study = {
        "base": str(QUICKSTART),
        "options": {"trainer.max_epochs": epochs, "trainer.callbacks": ["study_overhead.TrainingClock"]},
        "axes": {"model.lora.r": [8]},
        "seeds": list(range(trials)),
        "objective": "in_scope_accuracy",
        "reference": {"r": 8},
    }
    path, clock = folder / "overhead.yaml", folder / "clock.jsonl"
    path.write_text(yaml.safe_dump(study))
    paths = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, "-m", "lora_lightning", "study", "run", str(path), f"--save_dir={folder / 'studies'}"]
    start = time.monotonic()
    subprocess.run(  # noqa: S603  # our own command
        command, check=True, stdout=sys.stderr, env={**os.environ, CLOCK: str(clock), "PYTHONPATH": paths}
    )
    wall, used = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    rows = [json.loads(line) for line in clock.read_text().splitlines()]
    trained = {kind: sum(row[kind] for row in rows) for kind in ("wall", "cpu")}
    cpu = used.ru_utime + used.ru_stime
    return {
        "trials": trials,
        "training seconds a trial": round(trained["wall"] / trials, 2),
        "whole command, seconds": round(wall, 1),
        "ratio, wall-clock": round(wall / trained["wall"], 3),
        "ratio, CPU": round(cpu / trained["cpu"], 3),
        "overhead a trial, CPU seconds": round((cpu - trained["cpu"]) / trials, 2),
    }


def main() -> None:
    """Prints the measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measure_study(options.trials, options.epochs, Path(folder)), indent=2))


if __name__ == "__main__":
    main()
