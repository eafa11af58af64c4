"""The runs of a study's trials: their options, the check of every configuration before any run, and training."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning import Callback
from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.analysis.metric_scale import choose_metric, choose_scale
from lora_lightning.datamodules.base import TEST, VALIDATION
from lora_lightning.errors import ConfigurationError, DataError, LoraLightningError, suggest_names
from lora_lightning.runs.record import RunRecord
from lora_lightning.statistics.study_results import Metric
from lora_lightning.studies.plan import StudyPlan
from lora_lightning.studies.same_inputs import selection_on_test
from lora_lightning.studies.search_settings import search_ends
from lora_lightning.studies.specification import RATE_OPTION, SEED_OPTION
from lora_lightning.studies.study_folder import StudyFolder
from lora_lightning.studies.trial_table import short_settings
from lora_lightning.studies.trials import Configuration, Trial, make_trial
from lora_lightning.training.api import config_arguments, option_arguments, train
from lora_lightning.training.commands import explain_errors, prepare_command
from lora_lightning.training.fitting import TrainingRun
from lora_lightning.training.logged_settings import FurtherSettings


@dataclass(frozen=True)
class Evaluations:
    """How often a run validates, and on how many batches; options of the trainer.

    Attributes:
        interval: `val_check_interval`; what is no number is a time.
        epochs: `check_val_every_n_epoch`.
        validation: `limit_val_batches`.
        test: `limit_test_batches`.
    """

    interval: Any = 1.0
    epochs: int | None = 1
    validation: float = 1.0
    test: float = 1.0


@dataclass(frozen=True)
class CheckedStudy:
    """What the check of a study has found out about its data and its metric.

    Attributes:
        tag: The metric that decides, with its split, such as `"test/accuracy"`.
        validation_tag: The same metric on the first validation split, which chooses learning rates.
        configuration: Name of the configuration that was checked.
        epochs: Of a run; infinity if only steps limit it.
        steps: Largest number of optimizer steps of a run; infinity if only epochs limit it.
        test_rows: SHA-256 of the rows on which configurations are compared.
        evaluations: How often a run validates, and on how much.
        device: The largest index of a GPU that a configuration asks for, as in `trainer.devices: [1]`; 0 for the first
            one, which is that of `devices: 1`, and without GPUs.
    """

    tag: str
    validation_tag: str
    configuration: str
    epochs: float
    steps: float
    test_rows: str
    evaluations: Evaluations = Evaluations()
    device: int = 0


def run_options(folder: StudyFolder, trial: Trial) -> dict[str, Any]:
    """Returns the options of `fit` that a trial adds to the base configs.

    Args:
        folder: The study's folder.
        trial: The trial.

    Returns:
        Values by dotted name.
    """
    logger = {
        "class_path": "TensorBoardLogger",
        "init_args": {
            "save_dir": str(folder.path.parent),
            "name": folder.path.name,
            "version": trial.id,
            "default_hp_metric": False,
        },
    }
    return {
        **trial.options,
        SEED_OPTION: trial.seed,
        "test_after_fit": trial.is_tested,
        "trainer.logger": logger,
        "trainer.enable_progress_bar": False,
    }


def base_configs(plan: StudyPlan) -> list[Path | Mapping[str, Any]]:
    """Returns the base configs of a study, as `train` takes them."""
    return list(plan.study.base)


def train_trial(plan: StudyPlan, folder: StudyFolder, trial: Trial, callbacks: Sequence[Callback]) -> RunRecord:
    """Trains and tests a trial, or resumes it.

    Args:
        plan: The study.
        folder: Its folder.
        trial: The trial.
        callbacks: Callbacks that measure it.

    Returns:
        The finished run.

    Raises:
        LoraLightningError: As `train` does.
        TrainingStopped: After a signal.
        KeyboardInterrupt: After Ctrl-C.
    """
    shown = FurtherSettings({"configuration": trial.configuration, **short_settings(plan, trial)})
    return train(base_configs(plan), run_options(folder, trial), resume=True, callbacks=[*callbacks, shown])


def check_configurations(
    plan: StudyPlan, folder: StudyFolder, progress: Callable[[Configuration], None] = lambda _: None
) -> CheckedStudy:
    """Checks the options, the data and the metric of every configuration before anything is trained.

    Args:
        plan: The study.
        folder: Its folder; nothing is written there.
        progress: Called before each configuration.

    Returns:
        The metric that decides, and the size of the data.

    Raises:
        LoraLightningError: If an option, the data or the metric of a configuration is wrong; names the configuration.
    """
    found: list[CheckedStudy] = []
    for configuration in plan.configurations:
        progress(configuration)
        for trial in _trials_to_check(plan, configuration):
            try:
                found.append(_check_run(plan, configuration.name, _read_run(plan, folder, trial)))
                if found[-1].test_rows != found[0].test_rows:
                    msg = f"its test rows are not those of {found[0].configuration!r}; compare them on the same ones"
                    raise DataError(msg)
            except LoraLightningError as error:
                msg = f"the configuration {trial.configuration!r} of the study cannot be trained: {error}"
                raise type(error)(msg) from error
    reference = next(each for each in found if each.configuration == plan.reference)
    return replace(reference, device=max(each.device for each in found))


def check_worker(
    plan: StudyPlan,
    folder: StudyFolder,
    configurations: Sequence[Configuration],
    progress: Callable[[Configuration], None] = lambda _: None,
) -> None:
    """Checks that this process can train, before it claims a trial: elsewhere, a relative path may lead to nothing.

    Another machine may also lack the package or the base model of one configuration, whose trials it would all fail.

    Args:
        plan: The study.
        folder: Its folder.
        configurations: Those of which trials are left.
        progress: Called before each configuration.

    Raises:
        LoraLightningError: If the options, the data or the base model of one of them do not fit here.
    """
    for configuration in configurations:
        progress(configuration)
        trial = _trials_to_check(plan, configuration)[0]
        try:
            _read_run(plan, folder, trial)
        except LoraLightningError as error:
            msg = f"this worker cannot train the configuration {trial.configuration!r} of the study: {error} It has "
            msg += "begun no trial; start it in the working directory of `study run`, on a machine that has the data, "
            msg += "the base models and the packages of all configurations"
            raise type(error)(msg) from error


def _read_run(plan: StudyPlan, folder: StudyFolder, trial: Trial) -> TrainingRun:
    """Reads the options and the data of a run."""
    arguments = [*config_arguments(base_configs(plan)), *option_arguments(run_options(folder, trial))]
    with explain_errors():
        run = TrainingRun(prepare_command("fit", arguments))
        run.check_settings_and_data()
    return run


def _trials_to_check(plan: StudyPlan, configuration: Configuration) -> list[Trial]:
    """One run of a configuration; of the reference one for each learning rate, or each end of what a search varies."""
    rates = plan.study.learning_rate
    if plan.study.search is not None:
        ends = search_ends(plan.study, configuration)
        return [make_trial(plan.study, each, plan.study.seeds[0]) for each in (configuration, *ends)]
    if rates is None:
        return [make_trial(plan.study, configuration, plan.study.seeds[0])]
    tried = rates.values if configuration.name == plan.reference else rates.values[:1]
    return [make_trial(plan.study, configuration, plan.study.seeds[0], {RATE_OPTION: rate}) for rate in tried]


def _check_run(plan: StudyPlan, configuration: str, run: TrainingRun) -> CheckedStudy:
    if run.is_fast_dev_run:
        msg = (
            "trainer.fast_dev_run writes no results; leave it out, and lower trainer.max_epochs or limit_train_batches"
        )
        raise ConfigurationError(msg)
    if run.trainer.world_size > 1:
        msg = f"it would train in {run.trainer.world_size} processes, but a study trains each run in one; "
        msg += "set trainer.devices to 1"
        raise ConfigurationError(msg)
    if configuration in plan.study.truncations:
        _check_can_be_truncated(run)
    tests = run.datamodule.split_names(TEST)
    if not tests:
        why = run.datamodule.without_test
        msg = f"{why}, but a study compares configurations on test rows; add test data with labels"
        if hasattr(run.datamodule, "test_share"):
            msg += ", or set data.test_share, such as 0.2, to hold out training rows for test"
        raise DataError(msg)
    _check_batch_limits(plan, run)
    if note := selection_on_test(run.datamodule.fingerprint):
        rank_zero_warn(note)
    tag = objective_tag(plan.study.objective, tests, run.task.metric_names())
    study_metric(plan, tag)
    limits = (run.trainer.max_epochs, run.trainer.max_steps)
    epochs, steps = (math.inf if limit is None or limit < 0 else limit for limit in limits)
    validation_tag = f"{run.datamodule.split_names(VALIDATION)[0]}/{tag.partition('/')[2]}"
    rows = run.datamodule.fingerprint[tag.partition("/")[0]]
    device = max(run.trainer.device_ids)
    return CheckedStudy(tag, validation_tag, configuration, epochs, steps, rows, _evaluations(run), device)


def _evaluations(run: TrainingRun) -> Evaluations:
    trainer, interval = run.trainer, run.options.trainer.val_check_interval
    return Evaluations(
        1.0 if interval is None else interval,
        trainer.check_val_every_n_epoch,
        trainer.limit_val_batches,
        trainer.limit_test_batches,
    )


def _check_batch_limits(plan: StudyPlan, run: TrainingRun) -> None:
    """Refuses to leave out all rows of a split that is needed: each run would fail, most of them after training."""
    for option in ("limit_train_batches", "max_epochs", "max_steps"):
        if getattr(run.trainer, option) == 0:
            msg = f"trainer.{option} is 0, so that no run would be trained; leave it out, or raise it"
            raise ConfigurationError(msg)
    choice = "a search" if plan.study.search is not None else "learning_rate" if plan.study.learning_rate else ""
    for option, stage, purpose in (
        ("limit_test_batches", TEST, "a study compares configurations on test rows"),
        ("limit_val_batches", "validate", f"{choice} chooses by the metric on validation rows" if choice else ""),
    ):
        limit = getattr(run.trainer, option)
        if limit == 0 and purpose:
            msg = f"trainer.{option} is 0, but {purpose}; leave it out"
            raise ConfigurationError(msg)
        if isinstance(limit, float) and 0 < limit < 1 and limit * (fewest := _fewest_batches(run, stage)) < 1:
            msg = f"trainer.{option} is {limit}, which is no batch of {fewest}; leave it out, or raise it"
            raise ConfigurationError(msg)


def _fewest_batches(run: TrainingRun, stage: str) -> int:
    """The batches of the smallest split of a stage."""
    run.datamodule.setup(stage)
    loaders = run.datamodule.test_dataloader() if stage == TEST else run.datamodule.val_dataloader()
    return min(map(len, loaders if isinstance(loaders, list) else [loaders]))


def _check_can_be_truncated(run: TrainingRun) -> None:
    """Refuses adapters whose dW is no product of A and B, or whose rank changes during training."""
    lora = run.task.lora
    if lora is None or lora.adalora is not None or lora.changes_base:
        msg = (
            "it is in truncations, but only LoRA and DoRA that start from a change of 0 can be truncated, and not full "
        )
        msg += "fine-tuning, AdaLoRA, PiSSA, OLoRA or LoftQ; leave it out there"
        raise ConfigurationError(msg)


def objective_tag(objective: str, tests: Sequence[str], names: Sequence[str]) -> str:
    """Finds the metric that decides among those that a run reports.

    Args:
        objective: As in the study, with or without a split.
        tests: Names of the test splits.
        names: Names of the task's metrics, without a split.

    Returns:
        The metric with its split, such as `"test/accuracy"`.

    Raises:
        ConfigurationError: If there is no such metric on a test split, or on several.
    """
    tags = [f"{split}/{name}" for split in tests for name in names]
    found = [tag for tag in tags if objective in {tag, tag.partition("/")[2]}]
    if not found:
        msg = f"the objective {objective!r} is not reported on a test split; {suggest_names(objective, tags)} "
        msg += "Correct it in the YAML, or give --objective."
        raise ConfigurationError(msg)
    if len(found) > 1:
        msg = f"the objective {objective!r} is reported on {len(tests)} test splits; name one of {', '.join(found)}"
        raise ConfigurationError(msg)
    return found[0]


def study_metric(plan: StudyPlan, tag: str) -> Metric:
    """Returns the metric that decides, with its margin and its direction.

    Args:
        plan: The study.
        tag: The metric with its split.

    Raises:
        ConfigurationError: If the direction or the margin is unknown.
    """
    name = tag.partition("/")[2]
    return choose_metric(name, choose_scale(name, []), plan.study.direction, plan.study.margin)
