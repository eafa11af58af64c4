"""The run that predictions, merges and compressions start from: trained once, kept in the output folder."""

import json
import random
from pathlib import Path

from comparison.kept import kept
from comparison.row import Side, whole_seconds
from comparison.settings import CONFIGS, MissingError, Settings, program
from comparison.turns import run_side

QUICK_QUERIES = 200


def trained_run(settings: Settings) -> Path:
    """Trains an epoch on CLINC150, unless that is done.

    Args:
        settings: What the command line says; a quick run has 60 steps.

    Returns:
        The run folder.
    """

    def train(logs: Path) -> None:
        words = ["fit", "--config", CONFIGS / "clinc150/minilm_lora.yaml", "--test_after_fit=false"]
        words += [f"--data.data_dir={settings.data_folder('clinc150')}", f"--trainer.logger.init_args.save_dir={logs}"]
        words += ["--trainer.max_steps=60"] if settings.quick else ["--trainer.max_epochs=1"]
        run_side(Side("fit", program(*words), whole_seconds))

    logs = kept(settings, "trained", train)
    found = list(logs.rglob("best.ckpt"))
    if not found:
        msg = f"the run in {logs} has no best.ckpt; delete that folder and its file .done"
        raise MissingError(msg)
    return found[0].parents[1]


def merged_folder(settings: Settings) -> Path:
    """Merges that run, unless that is done.

    Args:
        settings: What the command line says.

    Returns:
        The merged folder.
    """
    run = trained_run(settings)
    return kept(
        settings,
        "merged",
        lambda folder: run_side(Side("merge", program("merge", run, "--output", folder), whole_seconds)),
    )


def query_file(settings: Settings, times: int = 1) -> Path:
    """The queries of the test split in random order, one a line.

    Args:
        settings: What the command line says; a quick run has 200 queries.
        times: How often each of them is there.

    Returns:
        The file.

    Raises:
        MissingError: If the data is not there.
    """
    source = settings.data_folder("clinc150") / "data_full.json"
    if not source.is_file():
        msg = f"{source} is not there; it is part of CLINC150"
        raise MissingError(msg)
    data = json.loads(source.read_text(encoding="utf-8"))
    queries = [text for text, _ in data["test"] + data["oos_test"]][: QUICK_QUERIES if settings.quick else None] * times
    random.Random(0).shuffle(queries)  # noqa: S311
    file = settings.work / f"queries_{times}.txt"
    file.write_text("\n".join(queries) + "\n", encoding="utf-8")
    return file


def count_lines(file: Path) -> int:
    """Lines of a file that ends with a line break."""
    return file.read_bytes().count(b"\n")
