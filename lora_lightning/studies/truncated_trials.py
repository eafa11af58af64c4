"""Tests a trained adapter once more after truncation to lower ranks, for claims about training high and truncating."""

import json
import math
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import cast

from lightning import Callback, LightningModule, Trainer

from lora_lightning.errors import DataError
from lora_lightning.lora.truncation import truncated_adapters
from lora_lightning.runs.files import save_text
from lora_lightning.runs.layout import run_folder_of
from lora_lightning.studies.trial_measurements import write_outcomes
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.held_out_batches import isolated_evaluation, on_device, reset_metrics
from lora_lightning.tasks.outcome_rows import batch_rows, split_rows

METRICS = "truncated_metrics.json"  # metrics of each test split by rank


def truncated_outcomes(r: int) -> str:
    """The file of the outcomes after truncation to a rank."""
    return f"test_outcomes_truncated_to_{r}.parquet"


class TruncatedTests(Callback):
    """Tests the adapter after truncation of dW to each of some ranks, and writes metrics and outcomes.

    The adapter itself, its test and its export do not change.

    Args:
        ranks: The ranks.
    """

    def __init__(self, ranks: Sequence[int]) -> None:
        self.ranks = ranks

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tests, with the weights of the best checkpoint, and writes the files."""
        task = cast("AdaptationTask", pl_module)
        found: dict[int, dict[str, float]] = {}
        for r in self.ranks:
            with isolated_evaluation(task), truncated_adapters(task.built_network, r):
                found[r] = self._test(trainer, task, run_folder_of(trainer) / truncated_outcomes(r))
        path = run_folder_of(trainer) / METRICS
        save_text(path, json.dumps(found) + "\n")

    def _test(self, trainer: Trainer, task: AdaptationTask, path: Path) -> dict[str, float]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        loaders = trainer.test_dataloaders
        reset_metrics(task.metrics)
        rows = {}
        metrics: dict[str, float] = {}
        loaders = loaders if isinstance(loaders, list) else [loaders]
        limits = trainer.num_test_batches  # trainer.limit_test_batches counts here, too
        for split, loader, limit in zip(data.split_names("test"), loaders, limits, strict=True):
            batches = []
            for batch in islice(loader, None if limit == math.inf else int(limit)):
                moved = on_device(trainer, batch)
                with trainer.precision_plugin.test_step_context():
                    evaluated = task.evaluate(moved)
                    task.add_to_metrics(split, moved, evaluated)
                    batches.append(batch_rows(task, moved, evaluated))
            rows[split] = split_rows(task, data, split, batches)
            metrics |= {f"{split}/{name}": value for name, value in task.metric_values(split).items()}
        if any(rows.values()):
            write_outcomes(path, rows)
        return metrics


def truncated_metric(run: Path, r: int, tag: str) -> float:
    """Reads a test metric of a run after truncation.

    Args:
        run: The run folder.
        r: The rank.
        tag: The metric with its split.

    Returns:
        Its value.

    Raises:
        DataError: If the file is damaged or gone.
    """
    path = run / METRICS
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))[str(r)][tag])
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} is damaged or gone ({error}); delete the run folder, and run the study again"
        raise DataError(msg) from error
