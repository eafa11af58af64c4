"""From a command's words to a trainer, a task and a data module; what they then do is in `fitting` and `evaluation`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning import Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.backbones import trust_remote_code
from lora_lightning.configuration.null_values import check_nulls
from lora_lightning.configuration.parser import ArgumentParser
from lora_lightning.configuration.yaml_files import GROUPS
from lora_lightning.datamodules import AdaptationDataModule
from lora_lightning.errors import ConfigurationError
from lora_lightning.runs.checkpoint_io import WholeCheckpointIO
from lora_lightning.runs.processes import watch_processes
from lora_lightning.runs.settings import settings_in
from lora_lightning.tasks import AdaptationTask
from lora_lightning.training.adapter_ranks import AdapterRanks
from lora_lightning.training.checkpointing import AdapterCheckpoint
from lora_lightning.training.confusion import ConfusionFigure
from lora_lightning.training.early_stopping import AdapterEarlyStopping
from lora_lightning.training.final_validation import FinalValidation
from lora_lightning.training.finite_loss import FiniteLoss
from lora_lightning.training.option_checks import check_monitors_once, check_seed, check_strategy
from lora_lightning.training.prediction_writer import PredictionWriter
from lora_lightning.training.saved_config import RunConfigFile
from lora_lightning.training.starting_point import StartingPoint, find_starting_point
from lora_lightning.training.step_boundary import StepBoundary
from lora_lightning.training.throughput import ThroughputMonitor

LOGS = Path("lightning_logs")
ALLOWANCES = ("allow_other_base", "allow_changed_data")  # for one command, never in a run's config.yaml
Command = Literal["fit", "validate", "test", "predict"]
GROUPED = {"checkpoint": AdapterCheckpoint, "early_stopping": AdapterEarlyStopping, "predictions": PredictionWriter}


class LoraLightningCLI(LightningCLI):
    """Parses a command's words, checks them, and makes what the command needs; runs nothing.

    Args:
        command: Which.
        words: Its options, as on a command line.

    Raises:
        LoraLightningError: If an option, a file or a checkpoint is wrong.
    """

    datamodule: AdaptationDataModule
    model: AdaptationTask
    start: StartingPoint

    def __init__(self, command: Command, words: Sequence[str]) -> None:
        self.command = command
        super().__init__(
            AdaptationTask,
            AdaptationDataModule,
            save_config_callback=None,
            trainer_defaults={"enable_model_summary": False, "use_distributed_sampler": False},
            seed_everything_default=0,
            parser_class=ArgumentParser,
            # A typo is never taken for the beginning of another option.
            parser_kwargs={"prog": f"lora-lightning {command}", "description": None, "allow_abbrev": False},
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=list(words),
            run=False,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the callbacks that every run has, and shares values that must agree."""
        for group, made_by in GROUPED.items():
            parser.add_lightning_class_args(made_by, group)
        # AdapterCheckpoint already refuses a metric that does not exist; without validation there is none.
        parser.set_defaults({"early_stopping.strict": False})
        # Before the validation's checkpoint is written: metrics are not restored from it.
        parser.set_defaults({"early_stopping.check_on_train_epoch_end": False})
        add_run_arguments(parser)
        parser.link_arguments("checkpoint.monitor", "early_stopping.monitor")
        parser.link_arguments("checkpoint.mode", "early_stopping.mode")
        parser.link_arguments("model.init_args.backbone", "data.init_args.backbone")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, refuses what the parser accepts silently and nothing can use, and finds the weights to start from."""
        self.config = parser.parse_args(args)
        for group in GROUPS:
            if not hasattr(found := self.options.get(group, {}), "items"):
                msg = f"{group} is {found!r}, but options by name are needed, such as --{group}.NAME VALUE."
                raise ConfigurationError(msg)
        groups = {name: made_by for name, made_by in GROUPED.items() if name != "predictions"}
        check_nulls(self.options.as_dict(), groups)
        check_seed(self.options.seed_everything)
        if self.command == "fit" and self.options.ckpt_path == "last":  # Lightning's word for it
            self.options.ckpt_path, self.options.resume = None, "auto"
        self.start = find_starting_point(self.command, self.options, self.settings_text(), self.fill_defaults)

    @property
    def options(self) -> Any:
        """The parsed options."""
        return self.config

    def settings_text(self) -> str:
        """The options of `fit` as YAML that repeats the run: without those that say how a command starts."""
        config = self.config.clone()
        config.resume = None
        for name in ALLOWANCES:
            config.pop(name)
        text: str = self.parser.dump(config, skip_none=False)
        return text

    def fill_defaults(self, config: str) -> Mapping[str, Any]:
        """Reads another run's `config.yaml` as if it were given to this command.

        Args:
            config: Its text, perhaps of an older release, which lacks options of today.

        Returns:
            Every option by dotted name.

        Raises:
            ConfigurationError: If it has an option that is no longer there.
        """
        return settings_in(self.parser.dump(self.parser.parse_string(config), skip_none=False))

    def before_instantiate_classes(self) -> None:
        """Allows the backbone's own code if the options do."""
        if self.options.trust_remote_code:
            backbone = self.options.model.init_args.backbone
            trust_remote_code(backbone)
            rank_zero_warn(
                f"trust_remote_code: Python files that come with {backbone} run here, and can do whatever you can."
            )

    def after_instantiate_classes(self) -> None:
        """Checks strategy and device. Prediction needs no training data: its labels come from the checkpoint."""
        check_strategy(self.trainer.strategy)
        watch_processes(self.trainer)
        self.model.check_trainer(self.trainer)
        self.model.allows_other_base = self.options.allow_other_base
        if self.command == "predict" and self.start.labels is not None:
            self.model.adopt_labels(self.start.labels)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Makes the trainer with the callbacks that the command needs.

        Args:
            kwargs: Options of the trainer that replace the user's.

        Returns:
            The trainer.
        """
        options: dict[str, Any] = {**self.config_init["trainer"], **kwargs}
        check_monitors_once([entry.class_path for entry in as_list(self.options.trainer.callbacks)])
        options = self._for_training(options) if self.command == "fit" else self._for_evaluation(options)
        if options.get("enable_progress_bar") is not False:
            options["callbacks"].append(RichProgressBar(leave=False))
        return Trainer(**options)

    def _for_training(self, options: dict[str, Any]) -> dict[str, Any]:
        callbacks: list[Callback] = [StepBoundary(self.start.place), *as_list(options.get("callbacks"))]
        # A loss or metric that is not finite is an error before early stopping or a checkpoint sees it.
        callbacks += [
            FiniteLoss(),
            FinalValidation(),
            self.config_init["checkpoint"],
            self.config_init["early_stopping"],
        ]
        if options.get("logger") is not False:
            callbacks += [LearningRateMonitor("step"), ConfusionFigure(), ThroughputMonitor(), AdapterRanks()]
        elif options.get("default_root_dir") is None:
            options["default_root_dir"] = str(next_unused_folder())
        if not options.get("fast_dev_run"):
            callbacks.append(RunConfigFile(self.start.config or self.settings_text()))
        plugins = as_list(options.get("plugins"))
        return {**options, "callbacks": callbacks, "plugins": plugins + missing_plugins(plugins)}

    def _for_evaluation(self, options: dict[str, Any]) -> dict[str, Any]:
        """Logs to no logger, for the command prints a table, and saves nothing."""
        callbacks = [own for own in as_list(options.get("callbacks")) if not isinstance(own, ModelCheckpoint)]
        if self.command == "predict":
            callbacks.append(self.config_init["predictions"])
            if options["devices"] == "auto":
                options["devices"] = 1  # a few queries do not need a second process, and standard input has one reader
        callbacks.append(FinalValidation())
        return {**options, "callbacks": callbacks, "logger": False, "enable_checkpointing": False}


def add_run_arguments(parser: LightningArgumentParser) -> None:
    """Adds the options that say where weights come from and what happens after training.

    Args:
        parser: Of any command; all commands read one `config.yaml`.
    """
    parser.add_argument(
        "--test_after_fit", type=bool, default=True, help="Test the best checkpoint when training ends."
    )
    parser.add_argument(
        "--resume",
        type=Literal["auto"] | None,
        default=None,
        help="Of fit. auto: resume the newest run of the same settings, or the one whose config.yaml is given, in its "
        "folder, from its newest intact checkpoint; start a run if there is none, do nothing if it is finished. So the "
        "same command can be repeated until it exits with 0.",
    )
    parser.add_argument(
        "--trust_remote_code",
        type=bool,
        default=False,
        help="Run the Python files in the repository of model.backbone, for an architecture that transformers lacks. "
        "They can do whatever you can: read them first. A checkpoint never sets this.",
    )
    parser.add_argument(
        "--allow_other_base",
        type=bool,
        default=False,
        help="Use a checkpoint although the weights, the configuration or the tokenizer of the base model are others "
        "than those that it was trained on.",
    )
    parser.add_argument(
        "--allow_changed_data",
        type=bool,
        default=False,
        help="Of fit. Resume a run although its data has changed since it started.",
    )
    parser.add_argument(
        "--ckpt_path",
        type=str | None,
        default=None,
        help="A checkpoint, such as RUN/checkpoints/best.ckpt: what validate, test and predict evaluate; fit starts a "
        "new run from its weights and optimizer.",
    )
    parser.add_argument(
        "--weights_only", type=bool | None, default=None, help="Ignored: checkpoints never run code when they load."
    )


def as_list(value: Any) -> list[Any]:
    """A list of what may be nothing, one thing, or a list."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def next_unused_folder() -> Path:
    """A folder for a run that has no logger to make one."""
    taken = [int(path.name[8:]) for path in LOGS.glob("version_*") if path.name[8:].isdigit()]
    return LOGS / f"version_{max(taken, default=-1) + 1}"


def missing_plugins(asked: Sequence[Any]) -> list[Any]:
    """What training needs beside the plugins asked for."""
    plugins: list[Any] = []
    if not any(isinstance(plugin, CheckpointIO) for plugin in asked):
        plugins.append(WholeCheckpointIO())
    if SLURMEnvironment.detect() and not any(isinstance(plugin, ClusterEnvironment) for plugin in asked):
        plugins.append(SLURMEnvironment(auto_requeue=False))  # StepBoundary saves whole steps instead
    return plugins
