"""Shows every logger what a run is when it starts, and what it has achieved when it ends."""

from collections.abc import Mapping
from typing import Any, cast

import yaml
from lightning import Callback, LightningModule, Trainer

from lora_lightning.callbacks.adapter_monitor import AdapterMonitor
from lora_lightning.loggers import RunSettings, boards_of
from lora_lightning.loggers.board import Value
from lora_lightning.runs.history import Ending
from lora_lightning.runs.layout import run_folder_of
from lora_lightning.runs.provenance import package_versions
from lora_lightning.runs.settings import settings_in
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.optimization import count_trainable_parameters
from lora_lightning.training.checkpointing import AdapterCheckpoint
from lora_lightning.training.main_settings import TELLING, main_settings


class FurtherSettings(Callback):
    """Settings that tables of runs show before the run's own, for example the configuration of a study's trial.

    Args:
        values: By name.
    """

    def __init__(self, values: Mapping[str, Value | None]) -> None:
        self.values = values


class LoggedSettings(Callback):
    """Shows settings and results to the loggers.

    Args:
        config: The text of the run's `config.yaml`, with all options.
    """

    def __init__(self, config: str) -> None:
        self.config = config
        self._has_started = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Shows every option, before Lightning has the loggers write them to files."""
        del pl_module
        if stage == "fit" and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            options = {**without_class_levels(yaml.safe_load(self.config)), "versions": package_versions()}
            for board in boards_of(trainer):
                board.add_options(options)
            self._has_started = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the settings, and those again of a run that is resumed: its files may be new."""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            settings = self._settings(trainer, cast("AdaptationTask", pl_module))
            for board in boards_of(trainer):
                board.start(settings)

    def _settings(self, trainer: Trainer, task: AdaptationTask) -> RunSettings:
        callbacks, datamodule = trainer.callbacks, trainer.datamodule  # type: ignore[attr-defined]
        further: dict[str, Value | None] = {}
        for callback in callbacks:
            further |= callback.values if isinstance(callback, FurtherSettings) else {}
        own = main_settings(settings_in(self.config), *count_trainable_parameters(task))
        splits = [name for kind in ("val", "test") for name in datamodule.split_names(kind)]
        monitor = str(next(own.monitor for own in callbacks if isinstance(own, AdapterCheckpoint)))
        first = (monitor.partition("/")[2], "loss")  # TensorBoard shows five results unless asked for more
        names = sorted(
            (name for name in task.metric_names() if "/" not in name),
            key=lambda name: first.index(name) if name in first else 2,
        )
        results = [f"{split}/{name}" for name in names for split in splits]
        results += [tag for monitor in callbacks if isinstance(monitor, AdapterMonitor) for tag in monitor.result_tags]
        folder = run_folder_of(trainer)
        return RunSettings(
            title=f"{folder.parent.name}/{folder.name}",
            main=further | {name: value for name, value in own.items() if name not in further},
            telling=(*further, *TELLING),
            config=self.config,
            results=results,
            monitor=monitor,
        )

    def end(self, trainer: Trainer, ending: Ending, metrics: Mapping[str, float]) -> None:
        """Shows the results.

        Args:
            trainer: The trainer.
            ending: How the process leaves the run.
            metrics: Of the best checkpoint, by tag; those so far if the run can be resumed.
        """
        results = {tag: value for tag, value in metrics.items() if tag.count("/") == 1}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            results |= callback.results if isinstance(callback, AdapterMonitor) else {}
        for board in boards_of(trainer) if self._has_started else []:
            board.end(ending, results, trainer.global_step)


def without_class_levels(options: Any) -> Any:
    """Returns nested options with the names of the command line: `model.lora.r` instead of `model.init_args.lora.r`.

    Args:
        options: As in `config.yaml`.

    Returns:
        The options; beside those of a class there is its `class_path`.
    """
    if isinstance(options, list):
        return [without_class_levels(value) for value in options]
    if not isinstance(options, Mapping):
        return options
    inner = options.get("init_args") if "class_path" in options else None
    flat = {**options, **inner} if isinstance(inner, Mapping) else options
    return {name: without_class_levels(value) for name, value in flat.items() if name != "init_args"}
