"""Is an adapter that was truncated to k as good as one that was trained at k? Prints Markdown, writes JSON.

all-MiniLM-L6-v2 on CLINC150 full, r = 16 in all linear layers: each seed's adapter is compressed, an adapter is trained
at the k that was found, with the same seed, and both are compared with the full adapter on the same examples. The cost
of a compression is given in epochs, by the CPU time of this process. What is finished is not repeated, so the command
can be interrupted and started again.

Example:
    OMP_NUM_THREADS=1 python benchmarks/compression.py --data ../shared/data/clinc150 --output docs/results/compression
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from lora_lightning import RunRecord, train
from lora_lightning.artefacts import compress

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "clinc150" / "minilm_lora.yaml"
RANK, EPOCHS = 16, 5


def trained(data: Path, folder: Path, name: str, rank: int, seed: int) -> RunRecord:
    """A run with alpha / r = 2; trained unless it is there."""
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": str(folder), "name": name}}
    overrides = {
        "data.data_dir": str(data.resolve()),
        "model.lora.r": rank,
        "model.lora.lora_alpha": 2 * rank,
        "trainer.max_epochs": EPOCHS,
        "trainer.logger": logger,
        "seed_everything": seed,
    }
    return train(CONFIG, overrides, resume=True)


def timed_training(data: Path, folder: Path, seed: int) -> tuple[RunRecord, float]:
    """The run that is compressed, and the CPU seconds that it took when it was trained."""
    path = folder / f"training_seed_{seed}.json"
    start = time.process_time()
    run = trained(data, folder, f"r{RANK}_seed{seed}", RANK, seed)
    if not path.exists():
        path.write_text(json.dumps(time.process_time() - start))
    return run, float(json.loads(path.read_text()))


def measured(data: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Trains, compresses, trains at k, and compares."""
    path = folder / f"seed_{seed}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    run, training = timed_training(data, folder, seed)
    start = time.process_time()
    first = compress(run.folder, folder / f"compressed_seed{seed}", ranks="all", overwrite=True, report=print)
    cost = time.process_time() - start
    rival = trained(data, folder, f"r{first.k}_seed{seed}", first.k, seed)
    output = folder / f"compared_seed{seed}"
    result = compress(run.folder, output, ranks="all", trained_at_k=[rival.folder], overwrite=True, report=print)
    found = {
        "seed": seed,
        "training_cpu_seconds": training,
        "epochs": EPOCHS,
        "compression_cpu_seconds": cost,
        "test_metrics_trained_at_k": rival.metrics["test"],
        "compression": {**result.as_json(), "source": run.folder.name, "output": output.name},
    }
    for each in (*found["compression"]["validation"], found["compression"]["test"], found["compression"]["full_test"]):
        del each["ranks"]  # by layer: they are in the folder that was written
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def points(interval: dict[str, float]) -> str:
    """A difference with its interval, in points."""
    return f"{100 * interval['value']:+.2f} ({100 * interval['low']:+.2f} to {100 * interval['high']:+.2f})"


def table(results: list[dict[str, Any]]) -> str:
    """One row a seed."""
    lines = [
        "| seed | r = 16 | k | truncated to k | trained at k | truncated, test | bytes | cost (epochs) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for found in results:
        result = found["compression"]
        full, chosen = result["validation"][0], result["k"]
        kept = next(one for one in result["validation"] if one["rule"] == "uniform" and one["k"] == chosen)
        rival = next(one for one in result["validation"] if one["rule"] == "trained")
        epoch = found["training_cpu_seconds"] / found["epochs"]
        sizes = result["sizes"]
        lines.append(
            f"| {found['seed']} | {100 * full['value']:.2f} | {chosen} | {points(kept['difference'])} | "
            f"{points(rival['difference'])} | {points(result['test']['difference'])} | "
            f"{sizes['full']:,} to {sizes['kept']:,} (written {sizes['written']:,}) | "
            f"{found['compression_cpu_seconds'] / epoch:.2f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with data_full.json")
    parser.add_argument("--output", type=Path, required=True, help="folder of the JSON file")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    folder = ROOT / "lightning_logs" / "compression"
    folder.mkdir(parents=True, exist_ok=True)
    results = [measured(options.data, folder, seed) for seed in options.seeds]
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "compression.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
