"""The run that predictions, merges and compressions start from: trained once, kept in the output folder."""

import json
import sys
from pathlib import Path

from comparison.row import Side, whole_seconds
from comparison.settings import CONFIGS, Settings, program
from comparison.turns import run_side

QUICK_QUERIES = 200


def trained_run(settings: Settings) -> Path:
    """Trains an epoch on CLINC150, unless that is done.

    Args:
        settings: What the command line says; a quick run has 60 steps.

    Returns:
        The run folder.
    """
    logs = settings.work / ("trained_quick" if settings.quick else "trained")
    if not list(logs.rglob("best.ckpt")):
        words = ["fit", "--config", CONFIGS / "clinc150/minilm_lora.yaml", "--test_after_fit=false"]
        words += [f"--data.data_dir={settings.data_folder('clinc150')}", f"--trainer.logger.init_args.save_dir={logs}"]
        words += ["--trainer.max_steps=60"] if settings.quick else ["--trainer.max_epochs=1"]
        print("  training the run that this row needs", file=sys.stderr, flush=True)
        run_side(Side("fit", program(*words), whole_seconds))
    return next(logs.rglob("best.ckpt")).parents[1]


def merged_folder(settings: Settings) -> Path:
    """Merges that run, unless that is done.

    Args:
        settings: What the command line says.

    Returns:
        The merged folder.
    """
    run, folder = trained_run(settings), settings.work / ("merged_quick" if settings.quick else "merged")
    if not folder.is_dir():
        run_side(Side("merge", program("merge", run, "--output", folder), whole_seconds))
    return folder


def query_file(settings: Settings) -> Path:
    """The queries of the test split, one a line.

    Args:
        settings: What the command line says; a quick run has 200 queries.

    Returns:
        The file.
    """
    data = json.loads((settings.data_folder("clinc150") / "data_full.json").read_text(encoding="utf-8"))
    queries = [text for text, _ in data["test"] + data["oos_test"]]
    file = settings.work / "queries.txt"
    file.write_text("\n".join(queries[: QUICK_QUERIES if settings.quick else None]) + "\n", encoding="utf-8")
    return file
