"""Overhead of all monitors in a complete training run on CLINC150, test included; prints JSON and a short table.

Runs without and with `configs/callbacks/all_monitors.yaml` take turns, each in a process of its own, whose total wall
time and peak memory are measured. One more run with monitors uses Lightning's SimpleProfiler: the time inside the hooks
of each monitor, as a share of that run, depends little on other work on the machine.

All other options are passed to `lora-lightning fit`.

Example:
    python benchmarks/monitor_overhead.py --data ../shared/data/clinc150
    python benchmarks/monitor_overhead.py --data ../shared/data/clinc150 --pairs 1 --trainer.max_steps=20
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from lightning.pytorch.profilers import SimpleProfiler

from lora_lightning.callbacks import FrozenBaseCheck
from lora_lightning.callbacks.adapter_monitor import AdapterMonitor
from lora_lightning.cli.commands import run_command

CONFIGS = Path(__file__).parent.parent / "configs"
MONITORS = CONFIGS / "callbacks/all_monitors.yaml"
MONITOR_CLASSES = (AdapterMonitor, FrozenBaseCheck)  # of the callbacks in all_monitors.yaml
NEGLIGIBLE = 1e-3  # seconds in a hook during the complete run


class Cost(NamedTuple):
    """Cost of one process.

    Attributes:
        seconds: Wall time, in seconds.
        peak_rss_mib: Peak resident memory, in MiB.
    """

    seconds: float
    peak_rss_mib: float


def words_of(options: argparse.Namespace, more: list[str], logs: str) -> list[str]:
    """The command line of a run without monitors."""
    words = ["fit", "--config", str(CONFIGS / "clinc150/minilm_lora.yaml"), "--data.data_dir", options.data]
    words += ["--data.variant", options.variant, "--trainer.enable_progress_bar=false"]
    words += [f"--trainer.max_epochs={options.epochs}"] * (options.epochs is not None)
    return [*words, "--trainer.logger.init_args.save_dir", logs, *more]


def train(words: list[str]) -> Cost:
    """Runs `lora-lightning` until it ends."""
    command = [sys.executable, "-m", "lora_lightning", *words]
    with tempfile.TemporaryFile() as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=output)  # noqa: S603
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{' '.join(command)} failed:\n{output.read().decode()}")
    return Cost(seconds, usage.ru_maxrss / 1024)


def compare(pairs: int, words: list[str]) -> dict[str, Any]:
    """Runs without and with monitors in turns."""
    turns: list[tuple[Cost, Cost]] = []
    for turn in range(pairs):
        turns.append((train(words), train([*words, "--config", str(MONITORS)])))
        print(f"pair {turn + 1} of {pairs}: {turns[-1]}", file=sys.stderr)
    ratios = [monitored.seconds / plain.seconds for plain, monitored in turns]
    plain, monitored = ([cost[side] for cost in turns] for side in (0, 1))
    return {
        "seconds": statistics.median(cost.seconds for cost in plain),
        "monitored_seconds": statistics.median(cost.seconds for cost in monitored),
        "overhead": statistics.median(ratios) - 1,
        "overheads": [ratio - 1 for ratio in ratios],
        "peak_rss_mib": statistics.median(cost.peak_rss_mib for cost in plain),
        "monitored_peak_rss_mib": statistics.median(cost.peak_rss_mib for cost in monitored),
    }


def seconds_in_hooks(words: list[str]) -> dict[str, Any]:
    """Trains once in this process and measures the time in the hooks of each monitor."""
    start = time.perf_counter()
    cli = run_command([*words, "--config", str(MONITORS), "--trainer.profiler=SimpleProfiler"])
    seconds = time.perf_counter() - start
    trainer: Any = cli.trainer
    monitors = {type(callback).__name__ for callback in trainer.callbacks if isinstance(callback, MONITOR_CLASSES)}
    hooks: dict[str, dict[str, float]] = {name: {} for name in sorted(monitors)}
    for action, durations in cast("SimpleProfiler", trainer.profiler).recorded_durations.items():
        name, _, hook = action.removeprefix("[Callback]").partition(".")
        if name in hooks and sum(durations) > NEGLIGIBLE:
            hooks[name][hook] = sum(durations)
    total = sum(sum(each.values()) for each in hooks.values())
    return {"seconds": seconds, "share": total / seconds, "seconds_in_hooks": hooks}


def print_table(report: dict[str, Any]) -> None:
    """Prints the main results to standard error."""
    profile, pairs = report["profile"], report["pairs"]
    rows = {name: sum(hooks.values()) for name, hooks in profile["seconds_in_hooks"].items()}
    for name, seconds in sorted(rows.items(), key=lambda row: -row[1]):
        print(f"{name:24} {seconds:8.2f} s {seconds / profile['seconds']:8.2%}", file=sys.stderr)
    print(f"{'all hooks':24} {sum(rows.values()):8.2f} s {profile['share']:8.2%}", file=sys.stderr)
    if pairs:
        difference = pairs["monitored_seconds"] - pairs["seconds"]
        print(f"{'pairs of runs':24} {difference:8.2f} s {pairs['overhead']:8.2%}", file=sys.stderr)


def main() -> None:
    """Measures pairs of runs and the time in hooks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with data_<variant>.json")
    parser.add_argument("--variant", default="full")
    parser.add_argument("--epochs", type=int, help="number of epochs; by default that of the config")
    parser.add_argument(
        "--pairs", type=int, default=3, help="pairs of runs without and with monitors; 0 to profile only"
    )
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as logs:
        words = words_of(options, more, logs)
        report = {"threads": torch.get_num_threads(), "pairs": compare(options.pairs, words) if options.pairs else None}
        report |= {"profile": seconds_in_hooks(words)}
    print_table(report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
