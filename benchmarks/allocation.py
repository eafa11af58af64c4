"""Does choosing ranks by measurement beat one rank for all? Writes the ranks and a study, and runs the study.

At one budget of adapter parameters: uniform ranks, ranks by the spectrum of a run, ranks by gradients before training,
both of these shuffled over layers of the same shape, EVA and AdaLoRA. Each method has its own learning rate, chosen on
validation with a seed of its own; then five seeds are tested, and the study's statistics compare them with uniform
ranks. EVA keeps the sum of ranks, not of parameters; AdaLoRA starts with 1.5 times the rank. What is finished is not
repeated, so the command can be interrupted and started again.

Example:
    python benchmarks/allocation.py clinc150 --data ../shared/data/clinc150
    python benchmarks/allocation.py stsb --data ../shared/data/glue --only-prepare
"""

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lora_lightning import RunRecord, train
from lora_lightning.artefacts import allocate

ROOT = Path(__file__).resolve().parent.parent
RANK, MEASURED_RANK = 8, 32  # of the budget, and of the run whose spectrum is measured
SEED = 100  # of everything that is chosen: the measured run, the shuffling, the learning rates


class Benchmark(NamedTuple):
    """One data set.

    Attributes:
        config: Of `fit`.
        options: That all runs have.
        steps: Optimizer steps of a run, for AdaLoRA's schedule.
        objective: The metric that decides.
        rates: Learning rates that are tried, a factor of 2 apart, and more of them beyond the best one at an end.
        measured_rate: That of the run whose spectrum is measured.
    """

    config: str
    options: dict[str, Any]
    steps: int
    objective: str
    rates: tuple[float, ...]
    measured_rate: float


BENCHMARKS = {
    "clinc150": Benchmark(
        "configs/clinc150/minilm_lora.yaml",
        {"data.variant": "small", "trainer.max_epochs": 2},
        476,
        "in_scope_accuracy",
        (5.0e-4, 1.0e-3, 2.0e-3, 4.0e-3),
        1.0e-3,
    ),
    "stsb": Benchmark(
        "configs/glue/stsb_minilm_lora.yaml",
        {"data.test_share": 0.2, "data.split_seed": 0, "data.batch_size": 8, "trainer.max_epochs": 1},
        575,
        "pearson",
        (5.0e-4, 1.0e-3, 2.0e-3),
        1.0e-3,
    ),
}


def uniform(rank: int) -> dict[str, Any]:
    """Options of one rank for all layers; alpha / r is 2 throughout."""
    return {"model.lora.r": rank, "model.lora.lora_alpha": 2 * rank}


def measured_run(benchmark: Benchmark, options: dict[str, Any], folder: Path) -> RunRecord:
    """The run whose spectrum is measured; trained unless it is there."""
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(folder), "name": "measured"}}
    settings = {"model.optimization.learning_rate": benchmark.measured_rate, "seed_everything": SEED}
    overrides = {**options, **uniform(MEASURED_RANK), **settings, "trainer.logger": logger}
    return train(ROOT / benchmark.config, {**overrides, "test_after_fit": False}, resume=True)


def methods(benchmark: Benchmark, options: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Options by method."""
    config = ROOT / benchmark.config
    run = measured_run(benchmark, options, folder)
    found: dict[str, dict[str, Any]] = {"uniform": uniform(RANK)}
    for name, source in (
        ("spectrum", {"run": run.folder}),
        ("gradients", {"config": config, "overrides": {**options, **uniform(RANK)}}),
    ):
        for suffix, shuffled in (("", None), (" shuffled", SEED)):
            output = folder / f"{name}{suffix.replace(' ', '_')}.yaml"
            allocation = allocate(budget=f"r={RANK}", output=output, shuffled=shuffled, overwrite=True, **source)
            chosen = {f"model.lora.{option}": value for option, value in allocation.settings().items()}
            found[f"{name}{suffix}"] = {option: value for option, value in chosen.items() if value is not None}
    found["EVA"] = {**uniform(RANK), "model.lora.init_lora_weights": "eva"}
    budget = {"target_r": RANK, "init_r": 12, "tinit": benchmark.steps // 10, "tfinal": benchmark.steps // 2}
    found["AdaLoRA"] = {"model.lora.r": 8, "model.lora.lora_alpha": 32, "model.lora.adalora": {**budget, "deltaT": 5}}
    return found


def write_study(name: str, data: Path, folder: Path) -> Path:
    """Writes the study; everything in it is known before its first run."""
    benchmark = BENCHMARKS[name]
    options = {**benchmark.options, "data.data_dir": str(data)}  # as given: results name no path of a machine
    study = {
        "base": str(ROOT / benchmark.config),
        "options": options,
        "axes": {"ranks": methods(benchmark, options, folder)},
        "learning_rate": {"values": list(benchmark.rates), "seeds": [SEED], "extend": 2},
        "seeds": [0, 1, 2, 3, 4],
        "objective": benchmark.objective,
        "margin": 0.5,
        "reference": "uniform",
        "costs": ["trainable_parameters", "peak_memory_bytes", "seconds_per_step"],
    }
    path = folder / f"allocation_{name}.yaml"
    path.write_text(yaml.safe_dump(study, sort_keys=False))
    return path


def main() -> None:
    """Prepares the study and runs it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(BENCHMARKS))
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--only-prepare", action="store_true", help="write ranks and study, and show the plan")
    options = parser.parse_args()
    folder = ROOT / "lightning_logs" / "allocation" / options.name
    folder.mkdir(parents=True, exist_ok=True)
    study = folder / f"allocation_{options.name}.yaml"
    if not study.exists():
        write_study(options.name, options.data, folder)
    more = ["--dry-run"] if options.only_prepare else []
    command = [sys.executable, "-m", "lora_lightning", "study", "run", str(study), *more]
    subprocess.run(command, check=True)  # noqa: S603  # our own program


if __name__ == "__main__":
    main()
