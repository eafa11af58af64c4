"""Train, evaluate and predict from Python: the same as the commands, with objects as arguments and results."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning import Callback
from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.callbacks.adapter_monitor import AdapterMonitor
from lora_lightning.errors import CheckpointError, ConfigurationError, RunFinished
from lora_lightning.runs.layout import CONFIG
from lora_lightning.runs.record import RunRecord
from lora_lightning.runs.signals import ending_on_signals, raise_training_stopped, set_stop_handler
from lora_lightning.training.commands import explain_errors, prepare_command
from lora_lightning.training.evaluation import predict_rows, score_split
from lora_lightning.training.fitting import TrainingRun
from lora_lightning.training.option_checks import check_no_repeated_monitors
from lora_lightning.training.scored_rows import in_words, scored_rows

Config = str | Path | Mapping[str, Any]
Options = Mapping[str, Any] | Sequence[tuple[str, Any]]
COMMANDS: dict[str, Literal["validate", "test"]] = {"val": "validate", "test": "test"}


def train(
    config: Config | Sequence[Config],
    overrides: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
) -> RunRecord:
    """Trains, tests the best checkpoint and writes a run folder, like `lora-lightning fit`.

    It can be called many times in one process, for example in a notebook. In the main thread, signals are handled as
    in the command.

    Args:
        config: A YAML file, its content as a mapping, or a sequence of them, in which later ones override earlier ones.
        overrides: Options that override the config, named as on the command line:
            `{"model.lora.r": 4, "trainer.max_epochs": 2}`.
        resume: Resume the newest run with the same settings, or return it if it is finished, like `--resume auto`.
        callbacks: Callbacks to add to those of the config. They are not part of the run's settings.

    Returns:
        The finished run.

    Raises:
        LoraLightningError: If an option, the data, the backbone or a checkpoint is wrong, or if training fails. Also
            with `trainer.fast_dev_run`, which writes no run that could be returned.
        VerificationError: If a check of the trained model failed. The run is finished and can be loaded.
        TrainingStopped: After SIGTERM or SIGUSR1. The last step is saved, and the run can be resumed.
        KeyboardInterrupt: After Ctrl-C.
    """
    arguments = [*config_arguments(config), *option_arguments(overrides or {}), *(["--resume=auto"] if resume else [])]
    with ending_on_signals(wanted=True):
        set_stop_handler(raise_training_stopped)
        try:
            with explain_errors():
                run = TrainingRun(prepare_command("fit", arguments))
                _add_callbacks(run, callbacks)
                return _finished_run(run)
        except RunFinished as finished:
            return RunRecord.load(finished.folder)


def _add_callbacks(run: TrainingRun, callbacks: Sequence[Callback]) -> None:
    """Adds callbacks to a run's; those that measure the adapter, or change what is saved, before `AdapterCheckpoint`.

    It keeps chosen thresholds out of averages, and has the monitors measure what is exported.
    """
    present: list[Callback] = run.trainer.callbacks  # type: ignore[attr-defined]
    check_no_repeated_monitors([type(callback).__name__ for callback in (*present, *callbacks)])
    place = present.index(run.checkpoint)
    before = [added for added in callbacks if isinstance(added, AdapterMonitor) or _changes_checkpoints(added)]
    present[place:place] = before
    present.extend(added for added in callbacks if added not in before)


def _changes_checkpoints(callback: Callback) -> bool:
    return type(callback).on_save_checkpoint is not Callback.on_save_checkpoint


def _finished_run(run: TrainingRun) -> RunRecord:
    record = run.execute()
    if run.is_fast_dev_run:
        msg = "trainer.fast_dev_run writes no run to return; set trainer.max_steps and limit_val_batches instead."
        raise CheckpointError(msg)
    if record is not None and run.trainer.world_size == 1:
        return record
    return RunRecord.load(run.trainer.strategy.broadcast(str(run.folder)))  # only the main process knows the folder


def evaluate(
    run: RunRecord | str | Path,
    split: Literal["val", "test"] = "test",
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Evaluates a run's best checkpoint on a split, like `lora-lightning validate` and `test`.

    Args:
        run: The run or its folder.
        split: `val` or `test`.
        overrides: Options that override those of the run, such as `{"data.eval_batch_size": 16}`.

    Returns:
        Metrics by tag, such as `test/accuracy`.

    Raises:
        LoraLightningError: If the run has no checkpoint, or if an option or the data does not match it.
    """
    if split not in COMMANDS:
        msg = f"split is {split!r}, but it must be 'val' or 'test'."
        raise CheckpointError(msg)
    with explain_errors():
        cli = prepare_command(COMMANDS[split], run_arguments(run, overrides or {}))
        metrics = score_split(cli, COMMANDS[split])
        if limited := in_words(scored_rows(cli.trainer, cli.datamodule, split)):
            rank_zero_warn(limited)
        return metrics


def predict(
    run: RunRecord | str | Path,
    inputs: str | Path | Sequence[Any],
    overrides: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Predicts with a run's best checkpoint, like `lora-lightning predict`.

    Args:
        run: The run or its folder.
        inputs: A file in the format of `--data.predict_file`, or its content: a list of texts of one line, or, where
            the file may be a table, a list of mappings from column names to values; for SQuAD a list of mappings with
            `question`, `context` and perhaps `id`.
        overrides: Options that override those of the run.

    Returns:
        One row per input, with the columns of the file that the command writes.

    Raises:
        LoraLightningError: If the run has no checkpoint, or if an option or an input does not match it.
    """
    with explain_errors(), tempfile.TemporaryDirectory() as folder:
        cli = prepare_command("predict", [*run_arguments(run, overrides or {}), "--predictions.file=null"])
        if not cli.datamodule.takes_inputs:
            msg = (
                f"{type(cli.datamodule).__name__} predicts rows of its own and no inputs; use the command "
                "`lora-lightning predict`, or give another data module in a config."
            )
            raise ConfigurationError(msg)
        file = inputs if isinstance(inputs, str | Path) else cli.datamodule.save_inputs(inputs, Path(folder))
        cli.datamodule.predict_file = str(file)
        return [dict(row) for rows in predict_rows(cli).values() for row in rows]


def config_arguments(config: Config | Sequence[Config]) -> list[str]:
    """Turns configs into command-line arguments.

    Args:
        config: One or several configs, as in `train`.

    Returns:
        `--config=...` for each config.
    """
    configs = [config] if isinstance(config, str | Path | Mapping) else config
    return [f"--config={yaml.safe_dump(dict(c)) if isinstance(c, Mapping) else c}" for c in configs]


def option_arguments(options: Options) -> list[str]:
    """Turns options into command-line arguments.

    Args:
        options: Values by dotted name, or pairs of them, in which a name such as `data.columns+` may occur again. YAML
            must be able to represent the values.

    Returns:
        `--name=value` for each option.
    """
    pairs = options.items() if isinstance(options, Mapping) else options
    return [f"--{name}={_as_argument(value)}" for name, value in pairs]


def run_arguments(run: RunRecord | str | Path, overrides: Mapping[str, Any]) -> list[str]:
    """Returns the command-line arguments that select a run's best checkpoint and its settings.

    Args:
        run: The run or its folder.
        overrides: Options that override those of the run.

    Returns:
        The arguments.

    Raises:
        CheckpointError: If the folder is not a run folder, or if the run has no checkpoint yet.
    """
    record = run if isinstance(run, RunRecord) else RunRecord.load(run)
    if record.checkpoint is None:
        msg = f"the run {record.folder} has no checkpoint yet; train or resume it first."
        raise CheckpointError(msg)
    arguments = [f"--config={record.folder / CONFIG}", f"--ckpt_path={record.checkpoint}"]
    return [*arguments, *option_arguments(overrides)]


def _as_argument(value: Any) -> str:
    if isinstance(value, str):
        return value
    text: str = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")
