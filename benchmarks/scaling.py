"""Speed of two processes compared with one, and the bytes that they communicate per step; prints JSON.

Each process has one thread, so two processes need two idle cores. One process has batch size 32. Two processes have
batch size 16 each, or 32 each with --weak. Speeds are medians of the values of ThroughputMonitor; bytes are those that
DDP passes to all-reduce.

All other options are passed to `lora-lightning fit` in every run.

Example:
    OMP_NUM_THREADS=1 python benchmarks/scaling.py --config configs/quickstart.yaml --steps 200 --rounds 3
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from processes import run_commands, start_processes
from torch.distributed import GradBucket, ProcessGroup  # type: ignore[attr-defined]
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from lora_lightning import RunRecord

WARM_UP = 10  # steps that are not measured
SPEED = "training_efficiency/samples_per_second"


def run_counting(rank: int, processes: int, port: int, runs: list[list[str]], report: Path) -> None:
    """Like `run_commands`, and writes the number of bytes that DDP passes to all-reduce to a file."""
    communicated = [0]

    def count(group: ProcessGroup | None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
        communicated[0] += bucket.buffer().nbytes
        return allreduce_hook(group, bucket)  # type: ignore[arg-type]  # None is all processes

    original = DistributedDataParallel.__init__

    def with_hook(self: DistributedDataParallel, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        self.register_comm_hook(None, count)

    DistributedDataParallel.__init__ = with_hook  # type: ignore[method-assign]
    run_commands(rank, processes, port, runs)
    if rank == 0:
        report.write_text(json.dumps(communicated[0]))


def speed_of(folder: Path) -> float:
    """Median of the samples per second that the only run below a folder logged after the warm-up."""
    (config,) = folder.rglob("config.yaml")
    curve = RunRecord.load(config.parent).curves[SPEED]
    points = zip(curve.steps, curve.values, strict=True)
    return float(statistics.median(value for step, value in points if step > WARM_UP))


def measure(processes: int, batch_size: int, steps: int, words: list[str]) -> dict[str, float]:
    """Trains once and returns speed and bytes per step."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        line = ["fit", *words, f"--trainer.max_steps={steps}", f"--data.batch_size={batch_size}"]
        line += [f"--trainer.devices={processes}", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=5"]
        line += ["--trainer.strategy=ddp"] if processes > 1 else []
        line += ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={folder}", "--test_after_fit=false"]
        line += ["--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]
        start_processes(run_counting, processes, [line], folder / "bytes.json")
        communicated = int((folder / "bytes.json").read_text())
        return {"samples_per_second": speed_of(folder), "bytes_per_step": communicated / steps}


def main() -> None:
    """Trains with one process and with two in turns, and prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--weak", action="store_true", help="give every process the full batch size")
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
