"""Evaluates a checkpoint on a split, and predicts with it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lora_lightning.datamodules.base import TEST, VALIDATION
from lora_lightning.errors import ConfigurationError
from lora_lightning.runs.files import write_text_atomically
from lora_lightning.runs.layout import CHECKPOINTS
from lora_lightning.runs.processes import end_processes_together
from lora_lightning.runs.status_line import show_status
from lora_lightning.training.finite_loss import check_finite_losses
from lora_lightning.training.fitting import check_same_labels
from lora_lightning.training.lightning_cli import LoraLightningCLI
from lora_lightning.training.option_checks import check_writable
from lora_lightning.training.prediction_writer import PredictionWriter
from lora_lightning.training.same_data import check_evaluated_rows
from lora_lightning.training.scored_rows import SCORED_ROWS

AGAIN = "start the same command again"


def folder_of_checkpoint(path: str) -> Path:
    """Returns the folder for the results of a checkpoint.

    Args:
        path: The checkpoint.

    Returns:
        The run folder of the checkpoint, or the folder that contains the file if it is not in a run folder.
    """
    folder = Path(path).absolute().parent
    return folder.parent if folder.name == CHECKPOINTS else folder


def score_split(cli: LoraLightningCLI, command: Literal["validate", "test"]) -> dict[str, float]:
    """Evaluates the validation or test split, with the threshold that validation chose.

    Args:
        cli: The parsed command.
        command: `validate` or `test`.

    Returns:
        Metrics by tag, such as `test/accuracy`.

    Raises:
        LoraLightningError: If the data does not match the checkpoint, or has rows that the run was trained on.
    """
    show_status("reading data")
    check_same_labels(cli.start.labels, cli.datamodule.label_space, cli.options.ckpt_path)
    allow = "" if cli.options.allow_changed_data else "set --allow_changed_data true"
    kind = VALIDATION if command == "validate" else TEST
    check_evaluated_rows(folder_of_checkpoint(cli.options.ckpt_path), cli.datamodule, kind, allow)
    show_status("loading weights")
    with end_processes_together(cli.trainer, AGAIN):
        evaluate = cli.trainer.validate if command == "validate" else cli.trainer.test
        evaluate(cli.model, cli.datamodule, ckpt_path=cli.options.ckpt_path, verbose=False, weights_only=True)
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    check_finite_losses(metrics, cli.options.ckpt_path)
    return metrics


def write_metrics(metrics: Mapping[str, float], path: Path, rows: Mapping[str, str]) -> None:
    """Writes metrics to a JSON file.

    Args:
        metrics: Values by tag.
        path: The file.
        rows: From `scored_rows`, if not all rows were scored.

    Raises:
        ConfigurationError: If the file cannot be written.
    """
    try:
        content = {**metrics, **({SCORED_ROWS: dict(rows)} if rows else {})}
        write_text_atomically(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        msg = f"the metrics cannot be written to {path} ({error.strerror}); make the run folder writable."
        raise ConfigurationError(msg) from error


def write_predictions(cli: LoraLightningCLI) -> PredictionWriter:
    """Predicts every row of the input and writes the results to `--predictions.file`, or to the run folder.

    Args:
        cli: The parsed `predict` command.

    Returns:
        The writer, which knows the file and its number of rows.

    Raises:
        LoraLightningError: If the input does not match the checkpoint, or the file cannot be written.
    """
    writer = _writer(cli)
    default = folder_of_checkpoint(cli.options.ckpt_path) / cli.datamodule.predictions_name
    writer.file = writer.file or str(default)
    cli.datamodule.check_predictions_file(Path(writer.file))
    check_writable(Path(writer.file).parent, "--predictions.file to a file in a folder")
    if cli.datamodule.predict_file == "-" and cli.trainer.world_size > 1:
        msg = (
            f"data.predict_file is -, but only one of the {cli.trainer.world_size} processes can read standard input; "
            "write the queries to a file, or set --trainer.devices 1."
        )
        raise ConfigurationError(msg)
    predict_rows(cli)
    return writer


def predict_rows(cli: LoraLightningCLI) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Predicts every row of the input.

    Args:
        cli: The parsed `predict` command.

    Returns:
        Readable rows by split, in the order of the input. Empty on all processes but the main process.
    """
    show_status("reading data and loading weights")
    with end_processes_together(cli.trainer, AGAIN):
        cli.trainer.predict(
            cli.model,
            cli.datamodule,
            ckpt_path=cli.options.ckpt_path,
            return_predictions=False,  # the writer has them
            weights_only=True,
        )
    return _writer(cli).rows


def _writer(cli: LoraLightningCLI) -> PredictionWriter:
    return next(found for found in cli.trainer.callbacks if isinstance(found, PredictionWriter))  # type: ignore[attr-defined]
