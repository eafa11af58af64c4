"""Compare all adaptation methods: quality, trainable parameters, memory, time per step; prints JSON and Markdown.

Trains all-MiniLM-L6-v2 on CLINC150 small and SmolLM2-135M on instructions. Each run is `lora-lightning fit` on a config
of this repository, in a process of its own. A few steps of each method come first, one run at a time, to measure memory
and time per step. The runs that measure quality follow, `--processes` at a time. Each finished run writes a JSON file
and is not repeated, so the command can be interrupted and started again.

Example:
    python benchmarks/adaptation_methods.py --clinc150 FOLDER --instructions FILE --seeds 0 1 2 --processes 2
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "lightning_logs" / "adaptation-methods"
WARM_UP = 5  # optimizer steps that are not timed
TIMED = ["--trainer.max_steps=15", "--trainer.max_epochs=-1", "--trainer.limit_val_batches=0", "--test_after_fit=false"]
# Options in addition to the plain LoRA config.
METHODS: dict[str, list[str]] = {
    "LoRA": [],
    "LoRA, bf16": ["--trainer.precision=bf16-mixed"],
    "LoRA, 8-bit": ["--model.quantization.bits=8"],
    "LoRA, NF4": ["--model.quantization.bits=4"],
    "LoRA, NF4, double": ["--model.quantization.bits=4", "--model.quantization.double_quantization=true"],
    "LoRA, NF4, double, bf16": [
        "--model.quantization.bits=4",
        "--model.quantization.double_quantization=true",
        "--trainer.precision=bf16-mixed",
    ],
    "LoftQ, NF4": ["--model.quantization.bits=4", "--model.lora.init_lora_weights=loftq"],
    "DoRA": ["--model.lora.use_dora=true"],
    "rsLoRA": ["--model.lora.use_rslora=true"],
    "PiSSA": ["--model.lora.init_lora_weights=pissa"],
    "EVA": ["--model.lora.init_lora_weights=eva"],
    "full": ["--model.lora=null"],
    "head only": ["--model.lora=null", "--model.freeze_backbone=true"],
}
# Learning rates that differ from LoRA's, chosen on validation data with `--learning_rates`.
LEARNING_RATES = {
    "clinc150": {"full": 3e-4, "head only": 2e-1},
    "instructions": {"full": 5e-5},
}
# Config, option that names the data, further options, reported metric.
PROBLEMS: dict[str, tuple[str, str, list[str], str]] = {
    "clinc150": (
        "configs/clinc150/minilm_lora.yaml",
        "--data.data_dir",
        ["--data.variant=small", "--trainer.max_epochs=2"],
        "test/in_scope_accuracy",
    ),
    "instructions": (
        "configs/causal_lm/smollm2_offline_instructions_lora.yaml",
        "--data.train_file",
        [
            *("--trainer.max_steps=100", "--trainer.max_epochs=-1", "--trainer.accumulate_grad_batches=1"),
            *(
                "--data.context_length=128",
                "--data.batch_size=2",
                "--trainer.callbacks=null",
                "--trainer.limit_val_batches=32",
            ),
        ],
        "val/loss",
    ),
}


def weight_bytes(module: LightningModule) -> int:
    """Bytes of all parameters and buffers, including the scales of quantized weights."""
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    for parameter in module.parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            tensors |= {id(tensor): tensor for tensor in state.as_dict(packed=True).values()}
        if isinstance(scales := getattr(parameter, "SCB", None), torch.Tensor):
            tensors[id(scales)] = scales
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


class StepTimer(Callback):
    """Measures the time of each optimizer step, including all accumulated batches, and the size of the model."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.weight_bytes = 0
        self._start: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures the size of the model in memory."""
        del trainer
        self.weight_bytes = weight_bytes(pl_module)

    def on_train_batch_start(self, *_: Any) -> None:
        """Starts timing with the first batch of a step."""
        self._start = self._start or time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Stops timing after the last batch of a step."""
        if trainer.global_step > len(self.seconds) and self._start is not None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self._start)
            self._start = None


def train_and_measure(words: list[str], place: Path) -> None:
    """Trains in this process and writes metrics, memory and time per step to a JSON file."""
    # The process that starts the runs does not need these.
    from lora_lightning.training.commands import prepare_command  # noqa: PLC0415
    from lora_lightning.training.fitting import TrainingRun  # noqa: PLC0415

    measure = StepTimer()
    program = prepare_command("fit", words[1:])
    program.trainer.callbacks.append(measure)  # type: ignore[attr-defined]
    record = TrainingRun(program).execute()
    assert record is not None  # noqa: S101  # only fast_dev_run leaves none
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    steps = measure.seconds[WARM_UP:] or measure.seconds
    result = {
        "command": words,
        "metrics": record.flat_metrics,
        "trained_share": record.trainable_share,
        "trained_parameters": record.trainable_parameters,
        "weight_mib": measure.weight_bytes / 2**20,
        "peak_mib": (torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak) / 2**20,
        "seconds_per_step": statistics.median(steps),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    }
    place.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def words_of(problem: str, data: Path, method: str, name: str, more: list[str]) -> list[str]:
    """The command line of one run."""
    config, data_option, own, _ = PROBLEMS[problem]
    words = ["fit", f"--config={ROOT / config}", f"{data_option}={data}", *own, *METHODS[method]]
    if (rate := LEARNING_RATES[problem].get(method)) is not None:
        words += [f"--model.optimization.learning_rate={rate}"]
    return [*words, f"--trainer.logger.save_dir={RUNS}", f"--trainer.logger.name={name}", *more]


def cached_result(problem: str, data: Path, method: str, name: str, more: list[str]) -> dict[str, Any] | None:
    """The result of one run, from its file if the same command was run before; `None` if the run failed."""
    name = f"{problem}-{method.replace(', ', '-').replace(' ', '-')}-{name}"
    place, words = RUNS / f"{name}.json", words_of(problem, data, method, name, more)
    if not place.exists() or json.loads(place.read_text())["command"] != words:
        place.unlink(missing_ok=True)
        shutil.rmtree(RUNS / name, ignore_errors=True)  # left by an interrupted run
        RUNS.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(Path(__file__).resolve()), "--run", str(place), *words]
        with (RUNS / f"{name}.log").open("w") as log:
            if subprocess.run(command, check=False, stdout=log, stderr=log).returncode:  # noqa: S603  # this file
                print(f"{name} failed, see {log.name}", file=sys.stderr)
                return None
    result: dict[str, Any] = json.loads(place.read_text())
    return result


def summarize_seeds(results: list[dict[str, Any]], timed: dict[str, Any], metric: str) -> dict[str, Any]:
    """Combines the seeds of one method with its memory and time per step."""
    quality = [float(each["metrics"][metric]) for each in results]
    return {
        "quality": statistics.mean(quality),
        "spread": statistics.stdev(quality) if len(quality) > 1 else 0.0,
        "seeds": quality,
        **{name: timed[name] for name in ("trained_share", "weight_mib", "peak_mib", "seconds_per_step", "device")},
    }


def compare_methods(
    problem: str, data: Path, methods: list[str], seeds: list[int], more: list[str], processes: int
) -> Any:
    """Results of all methods; a method whose runs failed is left out."""
    # A language model has no new head that could be trained alone.
    methods = [name for name in methods if problem == "clinc150" or name != "head only"]
    seeds = seeds if problem == "clinc150" else seeds[:1]
    runs = [
        (problem, data, name, str(seed), [f"--seed_everything={seed}", *more]) for seed in seeds for name in methods
    ]
    times = {name: cached_result(problem, data, name, "timed", [*more, *TIMED]) for name in methods}
    with ThreadPool(processes) as pool:
        results = pool.starmap(cached_result, runs, chunksize=1)
    rows = {}
    for position, name in enumerate(methods):
        finished = [each for each in results[position :: len(methods)] if each is not None]
        if (timed := times[name]) is not None and finished:
            few = f", {len(finished)} of {len(seeds)} seeds" if len(finished) < len(seeds) else ""
            rows[name + few] = summarize_seeds(finished, timed, PROBLEMS[problem][3])
    return rows


def best_rates(
    problem: str, data: Path, methods: list[str], rates: list[float], seed: int, more: list[str], processes: int
) -> Any:
    """The validation metric of each method at each learning rate."""
    runs = [
        (
            problem,
            data,
            name,
            f"rate-{rate:g}",
            [f"--seed_everything={seed}", *more, f"--model.optimization.learning_rate={rate}"],
        )
        for name in methods
        for rate in rates
    ]
    with ThreadPool(processes) as pool:
        results = iter(pool.starmap(cached_result, runs, chunksize=1))
    metric = PROBLEMS[problem][3].replace("test/", "val/")
    return {
        name: {rate: (next(results) or {"metrics": {}})["metrics"].get(metric) for rate in rates} for name in methods
    }


def markdown_table(problem: str, rows: dict[str, dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [[problem, PROBLEMS[problem][3], "trained", "weights", "peak memory", "a step"], ["---"] * 6]
    for method, row in rows.items():
        quality = f"{row['quality']:.4f} ({row['spread']:.4f})"
        sizes = [f"{100 * row['trained_share']:.2f} %", f"{row['weight_mib']:.0f} MiB", f"{row['peak_mib']:.0f} MiB"]
        lines.append([method, quality, *sizes, f"{1000 * row['seconds_per_step']:.0f} ms"])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    """Trains the missing runs and prints the report."""
    if sys.argv[1:2] == ["--run"]:
        train_and_measure(sys.argv[3:], Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clinc150", type=Path, help="folder with data_small.json")
    parser.add_argument("--instructions", type=Path, help="instructions as JSON lines")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of CLINC150; instructions use the first one"
    )
    parser.add_argument("--processes", type=int, default=1, help="runs at the same time, except while steps are timed")
    parser.add_argument(
        "--learning_rates",
        type=float,
        nargs="+",
        help="instead of the table, print the validation metric at each of these, with the first seed",
    )
    parser.add_argument("--more", nargs="*", default=[], help="options for every run, such as trainer.max_steps=5")
    options = parser.parse_args()
    report: dict[str, Any] = {}
    more = [f"--{word}" for word in options.more]
    for problem in PROBLEMS:
        if (data := getattr(options, problem)) and (rates := options.learning_rates):
            rest = (options.seeds[0], more, options.processes)
            found = best_rates(problem, data.resolve(), options.methods, rates, *rest)
            print(json.dumps({problem: found}, indent=2))
        elif data:
            report[problem] = compare_methods(
                problem, data.resolve(), options.methods, options.seeds, more, options.processes
            )
    if report:
        print(json.dumps(report, indent=2))
    for problem, rows in report.items():
        print(f"\n{markdown_table(problem, rows)}")


if __name__ == "__main__":
    main()
