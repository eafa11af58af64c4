"""Compare LoRA with full fine-tuning on GLUE tasks, using the offline encoder; prints JSON and a table.

For each task and method, a small grid of learning rates is trained with the first seed. The rate that is best on rows
held out of the training file is then used for the other seeds. The same held-out rows choose the best epoch of each
run. The dev set is scored once, at the end, so nothing is chosen on it. Every run is `lora-lightning fit` on the config
of the task, with its number of epochs and its early stopping. Finished runs are not repeated, so the command can be
interrupted and started again.

Example:
    python benchmarks/glue_lora_against_full.py --data ../shared/data/glue --seeds 0 1 2 --processes 14
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from processes import is_finished

from lora_lightning import RunRecord
from lora_lightning.datamodules.glue_tasks import GLUE_TASKS

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "lightning_logs" / "glue-lora-against-full"
HELD_OUT_ROWS = 500
# All rows of the training file that are not held out, rounded down; a part of SST-2's 67,349 rows.
TRAIN_ROWS = {"sst2": 20000, "cola": 8000, "stsb": 5200, "mrpc": 3100, "rte": 1900}
METHODS = {
    "LoRA": ([5e-4, 1e-3, 2e-3], []),
    "full": ([3e-5, 1e-4, 3e-4], ["--model.lora", "null"]),
}
METRICS = {
    "sst2": ["accuracy"],
    "cola": ["matthews_correlation"],
    "stsb": ["pearson", "spearman"],
    "mrpc": ["accuracy", "f1"],
    "rte": ["accuracy"],
}
DISTILBERT = {
    "sst2": 91.3,
    "cola": 51.3,
    "stsb": 86.9,
    "mrpc": 87.5,
    "rte": 59.9,
}  # one score per task, from its authors' README


def write_parts(data: Path, task_name: str) -> None:
    """Draws training and held-out rows from the training file of the task; the same rows at every call."""
    task = GLUE_TASKS[task_name]
    source = data / task.folder / task.splits["train"].file
    lines = source.read_bytes().rstrip(b"\n").split(b"\n")
    first = 1 if task.splits["train"].columns is None else 0  # the file has a header unless columns are named
    header, rows = lines[:first], lines[first:]
    order = np.random.default_rng(0).permutation(len(rows))
    ends = [HELD_OUT_ROWS, HELD_OUT_ROWS + TRAIN_ROWS[task_name]]
    folder = RUNS / "data" / task.folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, numbers in (("dev.tsv", order[: ends[0]]), ("train.tsv", order[ends[0] : ends[1]])):
        content = header + [rows[number] for number in sorted(numbers)]
        (folder / name).write_bytes(b"\n".join(content) + b"\n")


def run_command(words: list[str]) -> None:
    """Runs one command of the program in a new process; a forked one could not use a GPU."""
    command = [sys.executable, "-m", "lora_lightning", *words]
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:  # noqa: S603  # this program
        msg = f"lora-lightning {' '.join(words)} failed; see above"
        raise SystemExit(msg)


def train(task: str, method: str, rate: float, seed: int) -> RunRecord:
    """Trains unless the run is finished, and returns it."""
    folder = RUNS / f"{task}-{method}-{rate:g}" / f"seed_{seed}"
    if not is_finished(folder):
        shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted run
        words = ["fit", "--config", str(ROOT / f"configs/glue/{task}_minilm_lora.yaml"), *METHODS[method][1]]
        words += ["--model.optimization.learning_rate", str(rate), "--seed_everything", str(seed)]
        words += ["--data.data_dir", str(RUNS / "data"), "--data.allow_partial", "true"]
        words += ["--trainer.logger.save_dir", str(RUNS), "--trainer.logger.name", folder.parent.name]
        run_command([*words, "--trainer.logger.version", folder.name])
    return RunRecord.load(folder)


def score_dev(data: Path, folder: Path) -> dict[str, float]:
    """Scores the best epoch of a run on the real dev set."""
    if "validate" not in RunRecord.load(folder).evaluations:
        words = ["validate", "--config", str(folder / "config.yaml"), "--data.data_dir", str(data)]
        run_command([*words, "--ckpt_path", str(folder / "checkpoints/best.ckpt"), "--data.allow_partial", "false"])
    return RunRecord.load(folder).evaluations["validate"]


def chosen_rate(task: str, method: str, seed: int) -> tuple[float, dict[float, float]]:
    """The learning rate with the best score on the held-out rows, and the scores of all learning rates."""
    decisive = f"val/{METRICS[task][0]}"  # the metric that chooses the best epoch in the config
    trials = {rate: train(task, method, rate, seed) for rate in METHODS[method][0]}
    grid = {rate: record.metric(decisive) for rate, record in trials.items()}
    return max(grid, key=lambda rate: (grid[rate], -trials[rate].metric("val/loss"))), grid


def compare(data: Path, task: str, method: str, seeds: list[int]) -> dict[str, Any]:
    """Scores the runs with the chosen learning rate; trains those that are missing."""
    rate, grid = chosen_rate(task, method, seeds[0])
    runs = [train(task, method, rate, seed) for seed in seeds]
    scores = [score_dev(data, each.folder) for each in runs]
    result: dict[str, Any] = {
        "grid": grid,
        "learning_rate": rate,
        "trained_share": runs[0].trainable_share,
    }
    for name in METRICS[task]:
        values = [100 * score[f"val/{name}"] for score in scores]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        result[name] = {"mean": statistics.mean(values), "stdev": spread, "seeds": values}
    return result


def run_all(data: Path, tasks: list[str], seeds: list[int], processes: int) -> None:
    """Trains and scores all runs that `compare` needs, several at the same time: grids, other seeds, scores."""
    pairs = [(task, method) for task in tasks for method in METHODS]
    call_in_threads(train, [(*pair, rate, seeds[0]) for pair in pairs for rate in METHODS[pair[1]][0]], processes)
    chosen = [(*pair, chosen_rate(*pair, seeds[0])[0], seed) for pair in pairs for seed in seeds]
    runs = call_in_threads(train, chosen, processes)
    call_in_threads(score_dev, [(data, each.folder) for each in runs], processes)


def call_in_threads(work: Callable[..., Any], arguments: Iterable[tuple[Any, ...]], processes: int) -> list[Any]:
    """Calls a function that waits for a process, several calls at a time; the first failure cancels pending calls."""
    with ThreadPoolExecutor(processes) as pool:
        waiting = [pool.submit(work, *each) for each in arguments]
        try:
            return [each.result() for each in waiting]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def majority_accuracy(data: Path, task_name: str) -> float:
    """Accuracy of always predicting the most frequent label of the dev set, in percent; 0 for a correlation."""
    task = GLUE_TASKS[task_name]
    if METRICS[task_name][0] != "accuracy":
        return 0.0
    split = task.splits["val"]
    lines = (data / task.folder / split.file).read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    column = lines[0].split("\t").index(task.label)
    labels = Counter(line.split("\t")[column] for line in lines[1:])
    return 100 * max(labels.values()) / labels.total()


def markdown_table(report: dict[str, Any]) -> str:
    """The results as Markdown."""
    head = ["task, metric", "training rows", "majority class", "LoRA", "full", "LoRA - full", "learning rates"]
    lines = [[*head, "DistilBERT, full, all rows"], ["---"] * (len(head) + 1)]
    for task, results in report["tasks"].items():
        lora, full = results["LoRA"], results["full"]
        for number, name in enumerate(METRICS[task]):
            ours = [f"{each[name]['mean']:.1f} ({each[name]['stdev']:.1f})" for each in (lora, full)]
            gap = lora[name]["mean"] - full[name]["mean"]
            rates = f"{lora['learning_rate']:g}, {full['learning_rate']:g}"
            share = [f"{results['majority']:.1f}", str(DISTILBERT[task])] if number == 0 else ["", ""]
            rows = [str(TRAIN_ROWS[task]), share[0], *ours, f"{gap:+.1f}", rates, share[1]]
            lines.append([f"{task}, {name}", *rows])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Trains the missing runs and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", required=True, type=Path, help="folder with SST-2/train.tsv, CoLA/train.tsv and so on"
    )
    parser.add_argument("--processes", type=int, default=1, help="runs at the same time")
    parser.add_argument("--tasks", nargs="+", choices=list(TRAIN_ROWS), default=list(TRAIN_ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    data = options.data.resolve()
    for task in options.tasks:
        for split in ("train", "val"):
            if not (place := data / GLUE_TASKS[task].folder / GLUE_TASKS[task].splits[split].file).is_file():
                parser.error(
                    f"--data is {options.data}, but {place} does not exist; pass the folder of the GLUE download."
                )
    if options.processes < 1:
        parser.error(f"--processes is {options.processes}, but at least 1 is needed.")
    report: dict[str, Any] = {"seeds": options.seeds, "held_out_rows": HELD_OUT_ROWS, "tasks": {}}
    for task in options.tasks:
        write_parts(data, task)
    run_all(data, options.tasks, options.seeds, options.processes)
    for task in options.tasks:
        results = {method: compare(data, task, method, options.seeds) for method in METHODS}
        report["tasks"][task] = {"train_rows": TRAIN_ROWS[task], "majority": majority_accuracy(data, task), **results}
    print(json.dumps(report, indent=2))
    print(markdown_table(report))


if __name__ == "__main__":
    main()
