"""What TensorBoard's HParams tab shows of a study: the settings and the final metrics of each trial."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_lightning.runs.files import write_error
from lora_lightning.runs.layout import EVENTS, HPARAMS_SUFFIX
from lora_lightning.runs.record import RunRecord
from lora_lightning.studies.plan import StudyPlan
from lora_lightning.studies.specification import label_of
from lora_lightning.studies.trial_table import short_settings
from lora_lightning.studies.trials import Trial

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

FINAL = "final/"  # before the tags of metrics, since `val/loss` is a curve, whose last value may not be the best one


def write_hparams(plan: StudyPlan, trial: Trial, record: RunRecord, tag: str) -> None:
    """Writes an event file with the settings and the metrics of a finished trial into its run folder.

    Args:
        plan: The study.
        trial: The trial.
        record: Its run.
        tag: The metric that decides, with its split.

    Raises:
        TrainingError: If the file cannot be written.
    """
    settings = {"configuration": trial.configuration, **short_settings(plan, trial), "seed": trial.seed}
    metrics = {name: value for name, value in record.flat_metrics.items() if name.count("/") == 1}
    # TensorBoard takes the list of metrics from one of the runs, so that all trials need the same one.
    splits = dict.fromkeys(name.partition("/")[0] for name in (*metrics, tag))
    names = dict.fromkeys(name.partition("/")[2] for name in metrics)
    tags = [f"{FINAL}{split}/{name}" for split in splits for name in names]
    summaries = _summaries({name: _value(value) for name, value in settings.items()}, tags)
    values = {f"{FINAL}{name}": value for name, value in metrics.items()}
    try:
        _write(record.folder, summaries, values, record.steps or 0)
    except OSError as error:
        raise write_error(record.folder, error) from error


def _value(value: Any) -> str | float:
    """TensorBoard knows text and numbers."""
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else label_of(value)


def _summaries(settings: Mapping[str, str | float], tags: list[str]) -> "list[Summary]":
    from torch.utils.tensorboard.summary import hparams  # noqa: PLC0415  # half a second

    found: list[Summary] = list(hparams(dict(settings), dict.fromkeys(tags)))  # type: ignore[no-untyped-call]
    return found


def _write(folder: Path, summaries: "list[Summary]", values: Mapping[str, float], step: int) -> None:
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

    for former in folder.glob(f"{EVENTS}{HPARAMS_SUFFIX}"):  # of a worker that was killed before the trial counted
        former.unlink()
    with SummaryWriter(str(folder), filename_suffix=HPARAMS_SUFFIX) as writer:
        for summary in summaries:
            writer.file_writer.add_summary(summary)
        for name, value in values.items():
            writer.add_scalar(name, value, step)
