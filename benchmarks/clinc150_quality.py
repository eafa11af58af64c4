"""Train on CLINC150 full with several seeds; prints mean and standard deviation of the test metrics as JSON.

Each seed is a run of `lora-lightning fit --config configs/clinc150/minilm_lora.yaml` in its own process. Finished runs
are not repeated.

Example:
    python benchmarks/clinc150_quality.py --data ../shared/data/clinc150 --seeds 0 1 2
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from processes import is_finished

from lora_lightning import RunRecord

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "lightning_logs" / "clinc150-quality"
METRICS = (
    "in_scope_accuracy",
    "in_scope_accuracy_at_threshold",
    "out_of_scope_recall",
    "out_of_scope_recall_at_threshold",
    "out_of_scope_auroc",
    "out_of_scope_fpr_at_95_tpr",
    "macro_f1",
    "calibration_error",
)


def train(seed: int, data: str) -> None:
    """Runs one seed as a user would."""
    command = [sys.executable, "-m", "lora_lightning", "fit"]
    command += ["--config", str(ROOT / "configs/clinc150/minilm_lora.yaml"), "--data.data_dir", data]
    command += ["--seed_everything", str(seed), "--trainer.logger.save_dir", str(RUNS.parent)]
    command += ["--trainer.logger.name", RUNS.name, "--trainer.logger.version", f"seed_{seed}"]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603


def main() -> None:
    """Trains the missing runs and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with data_full.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    records = []
    for seed in options.seeds:
        folder = RUNS / f"seed_{seed}"
        if not is_finished(folder):
            shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted run
            train(seed, options.data)
        records.append(RunRecord.load(folder))
    report = {
        "seeds": options.seeds,
        "trained_parameters": records[0].trainable_parameters,
        "total_parameters": records[0].total_parameters,
    }
    for name in METRICS:
        values = [record.metric(f"test/{name}") for record in records]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        report[f"test/{name}"] = {"mean": statistics.mean(values), "stdev": spread, "seeds": values}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
