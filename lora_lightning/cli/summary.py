"""What a run tells its user: where it is, how it went, what to do next."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import Trainer
from rich.console import Console
from rich.table import Table

from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics.direction import LOWER_IS_BETTER
from lora_lightning.runs.files import cannot_be_written, write_whole
from lora_lightning.runs.layout import FAILED_CHECK, SUMMARY
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.optimization import count_trainable_parameters
from lora_lightning.training.checkpointing import AdapterCheckpoint

KINDS = {"val": "validation", "test": "test"}


def announce_run(folder: Path, trainer: Trainer, resumed: Path | None = None) -> None:
    """Prints where the results will be and what trains, before the work starts.

    Args:
        folder: The run's.
        trainer: Knows devices and processes.
        resumed: The checkpoint that it goes on from.
    """
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(f"run folder: {folder}  (tensorboard --logdir {folder.parent})")
    strategy = f"es, {type(trainer.strategy).__name__}" if trainer.world_size > 1 else ""
    console.print(f"trains on: {trainer.strategy.root_device.type}, {trainer.world_size} process{strategy}")
    if resumed is not None:
        console.print(f"goes on from {resumed}")


def metrics_table(metrics: Mapping[str, float]) -> Table:
    """Lays metrics out by name and split.

    Args:
        metrics: Values by `<split>/<name>`; names such as `domain_accuracy/travel` keep their slash.

    Returns:
        A rich table, one column a split of validation or test that occurs.
    """
    tags = [name.partition("/") for name in metrics if name.partition("/")[0].partition("_")[0] in KINDS]
    splits = sorted({split for split, _, _ in tags}, key=lambda split: (split.startswith("test"), split))
    names = list(dict.fromkeys(name for _, _, name in tags))
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("metric")
    for split in splits:
        kind, _, part = split.partition("_")
        table.add_column(f"{KINDS[kind]} {part}".strip(), justify="right")
    for name in names:
        values = [metrics.get(f"{split}/{name}") for split in splits]
        arrow = " (lower is better)" if name in LOWER_IS_BETTER else ""
        table.add_row(name + arrow, *["" if value is None else f"{value:.4f}" for value in values])
    return table


def print_metrics(metrics: Mapping[str, float]) -> None:
    """Prints a table of metrics."""
    Console(highlight=False, markup=False).print(metrics_table(metrics))


def write_metrics(metrics: Mapping[str, float], path: Path) -> None:
    """Writes metrics as JSON and says where.

    Raises:
        ConfigurationError: If the file cannot be written.
    """
    try:
        write_whole(path, json.dumps(dict(metrics), indent=2) + "\n")
    except OSError as error:
        msg = f"the metrics cannot be written to {path} ({error.strerror}); make the run folder writable."
        raise ConfigurationError(msg) from error
    Console(highlight=False, markup=False, soft_wrap=True).print(f"metrics: {path}")


def print_run_summary(
    folder: Path,
    task: AdaptationTask,
    metrics: Mapping[str, float],
    checkpoint: AdapterCheckpoint,
    failed_check: Exception | None = None,
) -> None:
    """Prints the end of a training run and writes `summary.json`, with which the run is finished.

    Args:
        folder: The run's folder.
        task: The trained task.
        metrics: The best epoch's validation metrics, and the test metrics where there are some.
        checkpoint: Knows the best checkpoint and the adapter's folder.
        failed_check: What the trained model failed, if anything; `--resume auto` says it again.

    Raises:
        TrainingError: If `summary.json` cannot be written.
    """
    trained, total = count_trainable_parameters(task)
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(metrics_table(metrics))
    console.print(f"\ntrained parameters: {trained:,} of {total:,} ({100 * trained / total:.2f} %)")
    console.print(f"run folder:         {folder}")
    console.print(f"best checkpoint:    {checkpoint.best_model_path}")
    name = "adapter for PEFT:  " if task.lora else "for transformers:  "
    console.print(f"{name} {checkpoint.adapter_folder}")
    summary: dict[str, Any] = {"metrics": dict(metrics), "trained_parameters": trained, "total_parameters": total}
    if failed_check is not None:
        summary[FAILED_CHECK] = str(failed_check)
    try:
        write_whole(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    except OSError as error:
        raise cannot_be_written(folder / SUMMARY, error) from error
    if any(folder.glob("events.out.tfevents.*")):
        console.print(f"curves:             tensorboard --logdir {folder.parent}")
