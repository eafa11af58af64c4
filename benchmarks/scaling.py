"""Two processes against one: samples a second, and what they tell each other in a step. Prints JSON.

Each process has one thread, so two of them need two free cores. One process has batch 32, two have 16 each, or with
--weak 32 each. Speeds are the medians of ThroughputMonitor's figures; bytes are what DDP hands to all-reduce.

Options that are not its own go to `lora-lightning fit`, for every run.

Example:
    OMP_NUM_THREADS=1 python benchmarks/scaling.py --config configs/quickstart.yaml --steps 200 --rounds 3
"""

import argparse
import csv
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from processes import run_all, start
from torch.distributed import GradBucket, ProcessGroup  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

WARM_UP = 10  # steps that are not counted
SPEED = "training_efficiency/samples_per_second"


def run_counting(rank: int, processes: int, port: int, runs: list[list[str]], report: Path) -> None:
    """`run_all` that writes down how many bytes each backward pass hands to all-reduce."""
    handed = [0]

    def count(group: ProcessGroup | None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        handed[0] += bucket.buffer().nbytes
        return allreduce_hook(group, bucket)  # type: ignore[arg-type]  # None is all processes

    original = DistributedDataParallel.__init__

    def with_hook(self: DistributedDataParallel, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        self.register_comm_hook(None, count)

    DistributedDataParallel.__init__ = with_hook  # type: ignore[method-assign]
    run_all(rank, processes, port, runs)
    if rank == 0:
        report.write_text(json.dumps(handed[0]))


def speed_of(folder: Path) -> float:
    """The median of the samples a second that the only run below a folder logged, after the warm-up."""
    (path,) = folder.rglob("metrics.csv")
    with path.open() as stream:
        rows = [row for row in csv.DictReader(stream) if row.get(SPEED)]
    return statistics.median(float(row[SPEED]) for row in rows if int(row["step"]) > WARM_UP)


def measure(processes: int, batch_size: int, steps: int, words: list[str]) -> dict[str, float]:
    """Trains once."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        line = ["fit", *words, f"--trainer.max_steps={steps}", f"--data.batch_size={batch_size}"]
        line += [f"--trainer.devices={processes}", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=5"]
        line += ["--trainer.strategy=ddp"] if processes > 1 else []
        line += ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={folder}", "--test_after_fit=false"]
        line += ["--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]
        start(run_counting, processes, [line], folder / "bytes.json")
        handed = int((folder / "bytes.json").read_text())
        return {"samples_per_second": speed_of(folder), "bytes_per_step": handed / steps}


def main() -> None:
    """Takes turns, one process then two, and reports the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--weak", action="store_true", help="every process has the whole batch size")
    options, words = parser.parse_known_args()
    share = options.batch_size if options.weak else options.batch_size // 2
    turns = [
        (measure(1, options.batch_size, options.steps, words), measure(2, share, options.steps, words))
        for _ in range(options.rounds)
    ]
    ratios = [two["samples_per_second"] / one["samples_per_second"] for one, two in turns]
    result = {
        "samples_per_second_one_process": statistics.median(one["samples_per_second"] for one, _ in turns),
        "samples_per_second_two_processes": statistics.median(two["samples_per_second"] for _, two in turns),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "bytes_per_step": turns[0][1]["bytes_per_step"],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
