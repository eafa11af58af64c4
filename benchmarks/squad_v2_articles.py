"""Train on 25 articles of SQuAD 2.0's dev set and score on the other 10; prints the scores of all seeds as JSON.

The result is not a benchmark score, for which a model is trained on 442 other articles and scored on all 35 of these.
Four of the 25 articles are used only to choose the epoch and the threshold, so nothing is chosen on the 10. The report
includes a baseline that calls every question unanswerable. Each seed is a run of `lora-lightning fit` in its own
process. Finished runs are not repeated. All other options are passed to `fit`.

Example:
    python benchmarks/squad_v2_articles.py --data ../shared/data/squad_v2/dev-v2.0.json --seeds 0 1 2
    python benchmarks/squad_v2_articles.py --data ... --name squad-v2-full --model.lora null \
        --model.optimization.learning_rate 5e-5
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from processes import is_finished

from lora_lightning import RunRecord
from lora_lightning.datamodules.squad_format import read_squad_json
from lora_lightning.metrics.squad_v2 import score_answers, squad_v2_report

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "lightning_logs"
TEST_ARTICLES = 10
VALIDATION_SHARE = 0.16  # 4 of 25
NOTE = (
    "not a benchmark score: trained on 21 articles of SQuAD 2.0's dev set, epoch and threshold chosen on 4 others, "
    "scored on the remaining 10"
)
METRICS = ("exact", "f1", "HasAns_exact", "HasAns_f1", "NoAns_exact", "best_exact", "best_f1")


def split_articles(dev: Path, folder: Path) -> tuple[Path, Path]:
    """Writes 25 articles to one file and 10 to another; the same articles at every call."""
    content: dict[str, Any] = json.loads(dev.read_text(encoding="utf-8"))
    order = np.random.default_rng(0).permutation(len(content["data"]))
    chosen = {"test": order[:TEST_ARTICLES], "train": order[TEST_ARTICLES:]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, numbers in chosen.items():
        part = {**content, "data": [content["data"][number] for number in sorted(numbers)]}
        (folder / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
    return folder / "train.json", folder / "test.json"


def train(runs: Path, seed: int, files: tuple[Path, Path], rest: list[str]) -> None:
    """Runs one seed as a user would."""
    command = [sys.executable, "-m", "lora_lightning", "fit"]
    command += ["--config", str(ROOT / "configs/squad_v2/minilm_lora.yaml"), "--seed_everything", str(seed)]
    command += ["--data.train_file", str(files[0]), "--data.validation_file", str(files[1])]
    command += ["--data.validation_share", str(VALIDATION_SHARE), "--trainer.logger.save_dir", str(runs.parent)]
    command += ["--trainer.logger.name", runs.name, "--trainer.logger.version", f"seed_{seed}", *rest]
    subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603


def all_unanswerable(test: Path) -> dict[str, float]:
    """Scores of a model that calls every question unanswerable."""
    questions = [question for article in read_squad_json(test, "test") for question in article]
    report = squad_v2_report(score_answers(questions, [""] * len(questions), np.zeros(len(questions))), np.inf)
    return {"questions": len(questions), **{name: report[name] for name in METRICS}}


def main() -> None:
    """Trains the missing runs and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="dev-v2.0.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--name", default="squad-v2-articles", help="name of the folder in lightning_logs")
    options, rest = parser.parse_known_args()
    runs = LOGS / options.name
    files = split_articles(options.data, runs / "articles")
    records = []
    for seed in options.seeds:
        folder = runs / f"seed_{seed}"
        if not is_finished(folder):
            shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted run
            train(runs, seed, files, rest)
        records.append(RunRecord.load(folder))
    report: dict[str, Any] = {
        "note": NOTE,
        "seeds": options.seeds,
        "options": rest,
        "trained_parameters": records[0].trainable_parameters,
        "total_parameters": records[0].total_parameters,
        "all_unanswerable": all_unanswerable(files[1]),
    }
    for name in METRICS:
        values = [record.metric(f"test/{name}") for record in records]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        report[f"test/{name}"] = {"mean": statistics.mean(values), "stdev": spread, "seeds": values}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
