"""Parses a command's arguments and creates trainer, task and data module; `fitting` and `evaluation` use them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning import Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.backbones import trust_remote_code
from lora_lightning.backbones.base_model_id import check_hub_id
from lora_lightning.compat.lightning import leave_hyperparameters_to_us
from lora_lightning.configuration.null_values import check_nulls
from lora_lightning.configuration.parser import ArgumentParser
from lora_lightning.configuration.yaml_files import GROUPS
from lora_lightning.datamodules import AdaptationDataModule
from lora_lightning.errors import ConfigurationError, LoraLightningError
from lora_lightning.loggers.tensorboard import log_curves_alone
from lora_lightning.runs.checkpoint_io import AtomicCheckpointIO
from lora_lightning.runs.history import read_json
from lora_lightning.runs.layout import RUN
from lora_lightning.runs.place import LOGS, RunPlace, next_folder, prepare_loggers, run_place
from lora_lightning.runs.processes import watch_processes
from lora_lightning.runs.settings import settings_in
from lora_lightning.tasks import AdaptationTask
from lora_lightning.training.adapter_ranks import AdapterRanks
from lora_lightning.training.adapter_settings import adopt_adapter_settings
from lora_lightning.training.checkpointing import AdapterCheckpoint
from lora_lightning.training.confusion import ConfusionFigure
from lora_lightning.training.early_stopping import AdapterEarlyStopping
from lora_lightning.training.final_validation import FinalValidation
from lora_lightning.training.finite_loss import FiniteLoss
from lora_lightning.training.label_results import LabelResults
from lora_lightning.training.logged_settings import LoggedSettings
from lora_lightning.training.option_checks import (
    check_no_repeated_monitors,
    check_no_rows_are_left_out,
    check_seed,
    check_strategy,
    without_repeated_monitors,
)
from lora_lightning.training.prediction_writer import PredictionWriter
from lora_lightning.training.progress_bar import MetricsProgressBar
from lora_lightning.training.run_names import run_name
from lora_lightning.training.saved_config import RunConfigFile
from lora_lightning.training.scaling_note import scaling_note
from lora_lightning.training.starting_point import StartingPoint, find_starting_point
from lora_lightning.training.step_boundary import StepBoundary
from lora_lightning.training.throughput import ThroughputMonitor
from lora_lightning.training.unused_adapters import UnusedAdapters

ALLOWANCES = ("allow_other_base", "allow_changed_data")  # for one command, never in a run's config.yaml
Command = Literal["fit", "validate", "test", "predict"]
TRAINER_DEFAULTS = {"enable_model_summary": False, "use_distributed_sampler": False}
GROUPED = {"checkpoint": AdapterCheckpoint, "early_stopping": AdapterEarlyStopping, "predictions": PredictionWriter}


class LoraLightningCLI(LightningCLI):
    """Parses and checks the arguments of a command, and creates what the command needs. Runs nothing.

    Args:
        command: The name of the command.
        arguments: Its options, as on a command line.

    Raises:
        LoraLightningError: If an option, a file or a checkpoint is wrong.
    """

    datamodule: AdaptationDataModule
    model: AdaptationTask
    start: StartingPoint
    scaling_note: str
    place: RunPlace

    def __init__(self, command: Command, arguments: Sequence[str]) -> None:
        self.command = command
        super().__init__(
            AdaptationTask,
            AdaptationDataModule,
            save_config_callback=None,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            parser_class=ArgumentParser,
            # A typo must not be accepted as the abbreviation of another option.
            parser_kwargs={"prog": f"lora-lightning {command}", "description": None, "allow_abbrev": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=list(arguments),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the options of the callbacks that every run has, and links options that must be equal."""
        add_group_arguments(parser)
        add_run_arguments(parser)
        parser.link_arguments("checkpoint.monitor", "early_stopping.monitor")
        parser.link_arguments("checkpoint.mode", "early_stopping.mode")
        parser.link_arguments("model.init_args.backbone", "data.init_args.backbone")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, refuses useless values that the parser accepts silently, and finds the checkpoint to start from."""
        self.config = parser.parse_args(args)
        for group in GROUPS:
            if not hasattr(found := self.options.get(group, {}), "items"):
                msg = f"{group} is {found!r}, but named options are needed, such as --{group}.NAME VALUE."
                raise ConfigurationError(msg)
        groups = {name: made_by for name, made_by in GROUPED.items() if name != "predictions"}
        check_nulls(self.options.as_dict(), groups)
        check_seed(self.options.seed_everything)
        if self.command != "fit":
            check_no_rows_are_left_out(self.command, self.options.trainer, args)
        if self.command == "fit" and self.options.base_model_id is not None:
            check_hub_id(self.options.base_model_id)
        self.scaling_note = scaling_note(self.options, args, parser.parse_args) if self.command == "fit" else ""
        if self.command == "fit" and self.options.ckpt_path == "last":  # Lightning's name for --resume auto
            self.options.ckpt_path, self.options.resume = None, "auto"
        problem = self._adopt_adapter(args)
        if (entries := as_list(self.options.trainer.callbacks)) and self.command == "fit":
            self.options.trainer.callbacks = without_repeated_monitors(entries)
        self._settings = self._as_yaml()
        name = run_name(settings_in(self._settings))
        self.place = run_place(self.options.trainer, name)
        self.start = find_starting_point(
            self.command, self.options, self.settings_text(), self.fill_defaults, self.place
        )
        if problem is not None and self.options.ckpt_path is None:
            raise problem
        if self.command == "fit":
            run = None if self.start.interrupted is None else self.start.interrupted.folder
            ids = [] if run is None else read_json(run / RUN).get("loggers", [])
            prepare_loggers(self.options.trainer, name, self.place, run, ids)
            log_curves_alone(self.options.trainer)
        else:  # no logger, which need not be installed here, and would write into the current folder
            self.options.trainer.logger = False

    def _adopt_adapter(self, words: Sequence[str]) -> LoraLightningError | None:
        """Takes the settings of the adapter in `model.adapter`; returns why it cannot, since a checkpoint has them."""
        if self.command != "fit" or self.options.model.init_args.get("adapter") is None:
            return None
        try:
            adopt_adapter_settings(self.options, words, self.parser.parse_args)
        except LoraLightningError as error:
            return error
        return None

    @property
    def options(self) -> Any:
        """The parsed options."""
        return self.config

    def settings_text(self) -> str:
        """The options of `fit` as YAML that repeats the run: without those that say how a command starts."""
        return self._settings

    def _as_yaml(self) -> str:
        config = self.config.clone()
        config.resume = None
        for name in ALLOWANCES:
            config.pop(name)
        text: str = self.parser.dump(config, skip_none=False)
        return text

    def fill_defaults(self, config: str) -> Mapping[str, Any]:
        """Parses another run's `config.yaml` like a config of this command, and fills in the defaults.

        Args:
            config: The text of the file. An older release may have written it, without today's newer options.

        Returns:
            The value of every option by dotted name.

        Raises:
            ConfigurationError: If it contains an option that no longer exists.
        """
        return settings_in(self.parser.dump(self.parser.parse_string(config), skip_none=False))

    def before_instantiate_classes(self) -> None:
        """Allows the backbone's own code to run if `trust_remote_code` is true."""
        if self.options.trust_remote_code:
            backbone = self.options.model.init_args.backbone
            trust_remote_code(backbone)
            rank_zero_warn(
                f"trust_remote_code is true: Python files in {backbone} are executed with all of your permissions."
            )

    def after_instantiate_classes(self) -> None:
        """Checks strategy and device. `predict` needs no training data: the labels come from the checkpoint."""
        check_strategy(self.trainer.strategy)
        watch_processes(self.trainer)
        self.model.check_trainer(self.trainer)
        self.model.allows_other_base = self.options.allow_other_base
        leave_hyperparameters_to_us(self.model)
        if self.start.base is not None:
            self.model.base_identity = self.start.base
        if self.command == "predict" and self.start.labels is not None:
            self.model.adopt_labels(self.start.labels)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Creates the trainer with the callbacks that the command needs.

        Args:
            kwargs: Trainer options that override those of the user.

        Returns:
            The trainer.
        """
        options: dict[str, Any] = {**self.config_init["trainer"], **kwargs}
        check_no_repeated_monitors([entry.class_path for entry in as_list(self.options.trainer.callbacks)])
        options = self._training_options(options) if self.command == "fit" else self._evaluation_options(options)
        if options.get("enable_progress_bar") is not False:
            options["callbacks"].append(MetricsProgressBar())
        return Trainer(**options)

    def _training_options(self, options: dict[str, Any]) -> dict[str, Any]:
        callbacks: list[Callback] = [StepBoundary(self.start.place), *as_list(options.get("callbacks"))]
        # FiniteLoss comes before early stopping and checkpoints, which must not see a NaN.
        callbacks += [
            FiniteLoss(),
            UnusedAdapters(),
            FinalValidation(),
            self.config_init["checkpoint"],
            self.config_init["early_stopping"],
            LabelResults(),
        ]
        if options.get("logger") is not False:
            callbacks += [LearningRateMonitor("step"), ConfusionFigure(), ThroughputMonitor(), AdapterRanks()]
        elif options.get("default_root_dir") is None:
            options["default_root_dir"] = str(next_folder(LOGS))
        if not options.get("fast_dev_run"):
            config = self.start.config or self.settings_text()
            callbacks += [RunConfigFile(config), LoggedSettings(self.settings_text())]
        plugins = as_list(options.get("plugins"))
        return {**options, "callbacks": callbacks, "plugins": plugins + missing_plugins(plugins)}

    def _evaluation_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """Removes loggers and checkpoints: the command prints a table and writes its own files."""
        callbacks = [own for own in as_list(options.get("callbacks")) if not isinstance(own, ModelCheckpoint)]
        if self.command == "predict":
            callbacks.append(self.config_init["predictions"])
            options["limit_predict_batches"] = 1.0  # that of a run's config.yaml is no wish of this command
            if options["devices"] == "auto":
                options["devices"] = 1  # enough for a few queries, and only one process can read standard input
        callbacks += [FinalValidation(), LabelResults()]
        return {**options, "callbacks": callbacks, "logger": False, "enable_checkpointing": False}


def add_group_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options of the callbacks that every run has.

    Args:
        parser: The parser of any command.
    """
    for group, made_by in GROUPED.items():
        parser.add_lightning_class_args(made_by, group)
    # AdapterCheckpoint refuses unknown metrics, and a run without validation has none.
    parser.set_defaults({"early_stopping.strict": False})
    # After validation, not at the end of the epoch: a resumed run does not have the metrics any more.
    parser.set_defaults({"early_stopping.check_on_train_epoch_end": False})


def add_run_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options about checkpoints, trusted code and the test after training.

    Args:
        parser: The parser of any command. All commands accept the same `config.yaml`.
    """
    parser.add_argument(
        "--test_after_fit", type=bool, default=True, help="Whether to test the best checkpoint after training."
    )
    parser.add_argument(
        "--resume",
        type=Literal["auto"] | None,
        default=None,
        help="For fit only. auto: resume the newest run with the same settings, or the run whose config.yaml is given, "
        "from its newest intact checkpoint and in its folder. Starts a new run if there is none, and does nothing if "
        "the run is finished, so the same command can be repeated until it exits with 0.",
    )
    parser.add_argument(
        "--trust_remote_code",
        type=bool,
        default=False,
        help="Whether to run the Python files in the repository of model.backbone, for architectures that are not part "
        "of transformers. The files run with all of your permissions, so read them first. A checkpoint cannot set this "
        "option.",
    )
    parser.add_argument(
        "--allow_other_base",
        type=bool,
        default=False,
        help="Use a checkpoint even if the base model's weights, configuration or tokenizer differ from those that it "
        "was trained with.",
    )
    parser.add_argument(
        "--allow_changed_data",
        type=bool,
        default=False,
        help="Resume a run even if its data has changed since it started; score rows with validate and test even if "
        "they are held out from training data that has changed, so that the run may have been trained on some.",
    )
    parser.add_argument(
        "--base_model_id",
        "--base-model-id",
        type=str | None,
        default=None,
        help="For fit only. The base model's id on the hub, such as org/name, which the exported adapter names in "
        "place of a folder of this machine. If the hub's cache has that model, its weights must be the same, unless "
        "allow_other_base is true. It is no part of the run's settings: `lora-lightning export` can write it later.",
    )
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        default=None,
        help="Path of a checkpoint, such as RUN/checkpoints/best.ckpt. validate, test and predict evaluate it; fit "
        "starts a new run from its weights and optimizer state. For fit, `last` means --resume auto.",
    )
    parser.add_argument(
        "--weights_only", type=bool | None, default=None, help="Ignored. Loading a checkpoint never executes code."
    )


def as_list(value: Any) -> list[Any]:
    """Returns a list from `None`, one object, or a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def missing_plugins(given: Sequence[Any]) -> list[Any]:
    """Returns the plugins that training needs in addition to the given ones."""
    plugins: list[Any] = []
    if not any(isinstance(plugin, CheckpointIO) for plugin in given):
        plugins.append(AtomicCheckpointIO())
    if SLURMEnvironment.detect() and not any(isinstance(plugin, ClusterEnvironment) for plugin in given):
        plugins.append(SLURMEnvironment(auto_requeue=False))  # StepBoundary saves complete steps instead
    return plugins
