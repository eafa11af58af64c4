"""Training, evaluating and predicting from Python: the same as the commands, with objects in and out."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml

from lora_lightning.errors import CheckpointError, RunFinished
from lora_lightning.runs.layout import CONFIG
from lora_lightning.runs.record import RunRecord
from lora_lightning.runs.signals import ending_on_signals, raise_training_stopped, set_stop_handler
from lora_lightning.training.commands import explain_errors, prepare
from lora_lightning.training.evaluation import predict_rows, score_split
from lora_lightning.training.fitting import TrainingRun

Config = str | Path | Mapping[str, Any]
COMMANDS: dict[str, Literal["validate", "test"]] = {"val": "validate", "test": "test"}


def train(
    config: Config | Sequence[Config],
    overrides: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
) -> RunRecord:
    """Trains, tests the best checkpoint, and leaves a run's folder, as `lora-lightning fit` does.

    It may be called many times in one process, also in a notebook. Signals are handled as by the command if this is
    the main thread.

    Args:
        config: A YAML file, its content as a mapping, or several of them, of which later ones win.
        overrides: Options that replace the config's, by the names of the command line:
            `{"model.lora.r": 4, "trainer.max_epochs": 2}`.
        resume: Continue the newest run of the same settings, or return it if it is finished, as `--resume auto` does.

    Returns:
        The finished run. After `trainer.fast_dev_run`, which leaves no run, a record cannot be made.

    Raises:
        LoraLightningError: If an option, the data, the backbone or a checkpoint is wrong, or training fails.
        VerificationError: If a check of the trained model failed; the run is finished and can be loaded.
        TrainingStopped: After SIGTERM or SIGUSR1; the step is saved, and the run can be resumed.
        KeyboardInterrupt: After Ctrl-C.
    """
    words = [*config_words(config), *option_words(overrides or {}), *(["--resume=auto"] if resume else [])]
    with ending_on_signals(wanted=True):
        set_stop_handler(raise_training_stopped)
        try:
            with explain_errors():
                return _finished_run(TrainingRun(prepare("fit", words)))
        except RunFinished as finished:
            return RunRecord.load(finished.folder)


def _finished_run(run: TrainingRun) -> RunRecord:
    record = run.execute()
    if run.leaves_nothing:
        msg = "trainer.fast_dev_run leaves no run to return; set trainer.max_steps and limit_val_batches instead."
        raise CheckpointError(msg)
    if record is not None and run.trainer.world_size == 1:
        return record
    return RunRecord.load(run.trainer.strategy.broadcast(str(run.folder)))  # which only the main process knows


def evaluate(
    run: RunRecord | str | Path,
    split: Literal["val", "test"] = "test",
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Scores a run's best checkpoint on a split, as `lora-lightning validate` and `test` do.

    Args:
        run: The run or its folder.
        split: `val` or `test`.
        overrides: Options that replace the run's, such as `{"data.eval_batch_size": 16}`.

    Returns:
        Metrics by tag, such as `test/accuracy`.

    Raises:
        LoraLightningError: If the run has no checkpoint, or an option or the data does not fit it.
    """
    if split not in COMMANDS:
        msg = f"split is {split!r}, but a run is evaluated on 'val' or 'test'."
        raise CheckpointError(msg)
    with explain_errors():
        return score_split(prepare(COMMANDS[split], run_words(run, overrides or {})), COMMANDS[split])


def predict(
    run: RunRecord | str | Path,
    inputs: str | Path | Sequence[Any],
    overrides: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Predicts with a run's best checkpoint, as `lora-lightning predict` does.

    Args:
        run: The run or its folder.
        inputs: A file that `--data.predict_file` takes, or its content: texts, or one mapping for each row, with the
            names of the data module's columns.
        overrides: Options that replace the run's.

    Returns:
        One row for each input, as in the command's table.

    Raises:
        LoraLightningError: If the run has no checkpoint, or an option or an input does not fit it.
    """
    with explain_errors(), tempfile.TemporaryDirectory() as folder:
        cli = prepare("predict", [*run_words(run, overrides or {}), "--predictions.file=null"])
        file = inputs if isinstance(inputs, str | Path) else cli.datamodule.save_inputs(inputs, Path(folder))
        cli.datamodule.predict_file = str(file)
        return [dict(row) for rows in predict_rows(cli).values() for row in rows]


def config_words(config: Config | Sequence[Config]) -> list[str]:
    """Words of a command line that give configs.

    Args:
        config: As `train` takes it.

    Returns:
        `--config=...` for each.
    """
    configs = [config] if isinstance(config, str | Path | Mapping) else config
    return [f"--config={yaml.safe_dump(dict(c)) if isinstance(c, Mapping) else c}" for c in configs]


def option_words(options: Mapping[str, Any]) -> list[str]:
    """Words of a command line that give options.

    Args:
        options: Values by dotted name, as YAML can hold them.

    Returns:
        `--name=value` for each.
    """
    return [f"--{name}={_as_word(value)}" for name, value in options.items()]


def run_words(run: RunRecord | str | Path, overrides: Mapping[str, Any]) -> list[str]:
    """Words that evaluate a run's best checkpoint with its own settings.

    Args:
        run: The run or its folder.
        overrides: Options that replace the run's.

    Returns:
        The words.

    Raises:
        CheckpointError: If it has no checkpoint, or is no run.
    """
    record = run if isinstance(run, RunRecord) else RunRecord.load(run)
    if record.checkpoint is None:
        msg = f"the run {record.folder} has no checkpoint yet; train it first, or resume it."
        raise CheckpointError(msg)
    words = [f"--config={record.folder / CONFIG}", f"--ckpt_path={record.checkpoint}"]
    return [*words, *option_words(overrides)]


def _as_word(value: Any) -> str:
    if isinstance(value, str):
        return value
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
