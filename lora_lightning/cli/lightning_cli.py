"""LightningCLI for this package: shared callbacks, one run folder, and a guard around checkpoints."""

import errno
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from lightning import Trainer
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.backbones import trust_remote_code
from lora_lightning.cli.summary import (
    announce_run,
    print_metrics,
    print_run_summary,
    write_metrics,
)
from lora_lightning.compat.lightning import keep_signal_handlers
from lora_lightning.configuration.null_values import check_nulls
from lora_lightning.configuration.parser import ArgumentParser
from lora_lightning.configuration.yaml_files import GROUPS, check_config_files
from lora_lightning.datamodules import AdaptationDataModule
from lora_lightning.errors import (
    CheckpointError,
    ConfigurationError,
    TrainingError,
    TrainingStopped,
    VerificationError,
)
from lora_lightning.metrics import LabelSpace
from lora_lightning.runs.checkpoint import check_resumable, read_checkpoint
from lora_lightning.runs.checkpoint_io import WholeCheckpointIO
from lora_lightning.runs.files import cannot_be_written
from lora_lightning.runs.layout import CONFIG, run_folder_of
from lora_lightning.runs.processes import ending_together, watch
from lora_lightning.runs.resume import Interrupted, bring_back, check_unused, find_interrupted, lock_run
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.hyperparameters import hyperparameter_conflicts
from lora_lightning.training.adapter_ranks import AdapterRanks
from lora_lightning.training.checkpointing import AdapterCheckpoint
from lora_lightning.training.confusion import ConfusionFigure
from lora_lightning.training.early_stopping import AdapterEarlyStopping
from lora_lightning.training.final_validation import FinalValidation
from lora_lightning.training.finite_loss import FiniteLoss
from lora_lightning.training.option_checks import (
    check_mode,
    check_monitors_once,
    check_reported,
    check_seed,
    check_steps,
    check_strategy,
    check_writable,
)
from lora_lightning.training.prediction_writer import PredictionWriter
from lora_lightning.training.refusals import as_refusal, own_error
from lora_lightning.training.saved_config import SaveRunConfig, dump_settings
from lora_lightning.training.step_boundary import StepBoundary
from lora_lightning.training.throughput import ThroughputMonitor

LOGS = Path("lightning_logs")
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO}


class LoraLightningCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` for any task and data module of this package."""

    datamodule: AdaptationDataModule
    model: AdaptationTask

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the callbacks that every run has, and shares values that must agree."""
        parser.add_lightning_class_args(AdapterCheckpoint, "checkpoint")
        parser.add_lightning_class_args(AdapterEarlyStopping, "early_stopping")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        # AdapterCheckpoint already refuses a metric that does not exist; without validation there is none.
        parser.set_defaults({"early_stopping.strict": False})
        # Before the validation's checkpoint is written: metrics are not restored from it.
        parser.set_defaults({"early_stopping.check_on_train_epoch_end": False})
        parser.add_argument(
            "--test_after_fit", type=bool, default=True, help="Test the best checkpoint when training ends."
        )
        parser.add_argument(
            "--resume",
            type=Literal["auto"] | None,
            default=None,
            help="Of fit. auto: go on with the newest run of the same settings, or the one whose config.yaml is given, "
            "in its folder, from its last whole checkpoint; begin a run where there is none, do nothing where it is "
            "finished. So the same command can be started again until it exits with 0.",
        )
        parser.add_argument(
            "--trust_remote_code",
            type=bool,
            default=False,
            help="Run the Python files in the repository of model.backbone, for an architecture that transformers "
            "lacks. They can do whatever you can: read them first. A checkpoint never sets this.",
        )
        parser.link_arguments("checkpoint.monitor", "early_stopping.monitor")
        parser.link_arguments("checkpoint.mode", "early_stopping.mode")
        parser.link_arguments("model.init_args.backbone", "data.init_args.backbone")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses, and refuses what the parser takes without a word and nothing can use."""
        super().parse_arguments(parser, args)
        for group in GROUPS:
            if not hasattr(found := self.options.get(group, {}), "items"):
                msg = f"{group} is {found!r}, but options by name are needed, such as --{group}.NAME VALUE."
                raise ConfigurationError(msg)
        check_nulls(self.options.as_dict(), {"checkpoint": AdapterCheckpoint, "early_stopping": AdapterEarlyStopping})
        check_seed(self.options.seed_everything)
        if self.config["subcommand"] == "fit" and self.options.get("ckpt_path") == "last":  # Lightning's word for it
            self.options.ckpt_path, self.options.resume = None, "auto"

    @property
    def options(self) -> Any:
        """The parsed options of the command that runs."""
        return self.config[self.config["subcommand"]]

    @property
    def run_folder(self) -> Path:
        """Where this command's results land: a training run's own folder."""
        if self.subcommand == "fit":
            return run_folder_of(self.trainer)
        folder = Path(self.options.ckpt_path).absolute().parent
        return folder.parent if folder.name == "checkpoints" else folder

    def _parse_ckpt_path(self) -> None:
        """Checks the checkpoint against what was asked; Lightning would silently prefer the checkpoint."""
        self.saved_labels: LabelSpace | None = None
        command = self.config["subcommand"]
        self.interrupted: Interrupted | None = None
        self.start: tuple[str, int] | None = None
        if self.options.resume is not None and command != "fit":
            msg = f"resume is an option of fit, and {command} has nothing to go on with; leave it out."
            raise ConfigurationError(msg)
        checkpoint: dict[str, Any] = {}
        if self.options.resume is not None and not self.options.trainer.get("fast_dev_run"):
            checkpoint = self._find_interrupted()
        path = self.options.get("ckpt_path")
        if path is None and command != "fit":
            msg = f"{command} needs --ckpt_path of a trained model, such as <run>/checkpoints/best.ckpt."
            raise CheckpointError(msg)
        if path is None:
            return
        checkpoint = checkpoint or read_checkpoint(path)
        self.start = (Path(path).name, checkpoint.get("global_step", 0))
        if command == "fit":
            check_resumable(checkpoint, path)
        saved = checkpoint["hyper_parameters"]
        asked = self.options.model.init_args.as_dict()
        unknown, lacking = sorted(saved.keys() - asked.keys()), sorted(asked.keys() - saved.keys())
        if unknown and lacking:  # one of both may be another release's
            msg = (
                f"the checkpoint {path} is of another task than {self.options.model.class_path.rpartition('.')[2]}: it "
                f"has {', '.join(unknown)} and no {', '.join(lacking)}. Use the config.yaml of the checkpoint's run."
            )
            raise CheckpointError(msg)
        found = hyperparameter_conflicts(saved, asked, structural_only=command != "fit")
        if found:
            msg = (
                f"the checkpoint {path} contradicts the options: {'; '.join(found)}. Use the config.yaml of the "
                "checkpoint's run, or leave --ckpt_path out to start anew."
            )
            raise CheckpointError(msg)
        if saved.get("label_space"):
            try:
                self.saved_labels = LabelSpace(**saved["label_space"])
            except TypeError as error:
                msg = f"the checkpoint {path} holds no labels as this program saves them ({error}); use another file."
                raise CheckpointError(msg) from error

    def _find_interrupted(self) -> dict[str, Any]:
        """Points the options to the run that goes on; what its checkpoint holds, empty where there is none."""
        found = find_interrupted(self.options, dump_settings(self._parser("fit"), self.options))
        if found is None:
            return {}
        self.interrupted, checkpoint = found
        text = (self.interrupted.folder / CONFIG).read_text(encoding="utf-8")
        self.save_config_kwargs = {**self.save_config_kwargs, "resumed": text}
        if self.interrupted.checkpoint is not None:
            self.options.ckpt_path = str(self.interrupted.checkpoint)
        return checkpoint

    def before_instantiate_classes(self) -> None:
        """Trusts the backbone's code where the options say so."""
        if self.options.trust_remote_code:
            backbone = self.options.model.init_args.backbone
            trust_remote_code(backbone)
            rank_zero_warn(
                f"trust_remote_code: Python files that come with {backbone} run here, and can do whatever you can."
            )

    def after_instantiate_classes(self) -> None:
        """Checks strategy and device. Prediction needs no training data: its labels come from the checkpoint."""
        check_strategy(self.trainer.strategy)
        watch(self.trainer)
        self.model.check_trainer(self.trainer)
        if self.subcommand == "predict" and self.saved_labels is not None:
            self.model.adopt_labels(self.saved_labels)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Adds the callbacks without options; evaluation logs to no logger and prints its own table."""
        extra: list[Callback] = [FiniteLoss(), FinalValidation()]
        trainer = self.options.trainer
        check_monitors_once([entry.class_path for entry in _as_list(trainer.callbacks)])
        if self.subcommand != "fit":
            kwargs["logger"] = False
        elif trainer.logger is not False:
            extra += [
                LearningRateMonitor(logging_interval="step"),
                ConfusionFigure(),
                ThroughputMonitor(),
                AdapterRanks(),
            ]
        elif trainer.default_root_dir is None:  # a folder of its own, though no logger makes one
            taken = [int(path.name[8:]) for path in LOGS.glob("version_*") if path.name[8:].isdigit()]
            kwargs["default_root_dir"] = str(LOGS / f"version_{max(taken, default=-1) + 1}")
        if self.subcommand == "predict" and trainer.devices == "auto":
            kwargs["devices"] = 1  # a few queries are not worth a second process, and standard input has one reader
        if trainer.enable_progress_bar is not False:
            extra.append(RichProgressBar(leave=False))
        self.trainer_defaults["callbacks"] = extra
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        """Leaves out the callbacks that a command has no use for."""
        wanted = {"fit": (AdapterCheckpoint, AdapterEarlyStopping), "predict": (PredictionWriter,)}.get(
            str(self.subcommand), ()
        )
        kept: list[Callback] = [callback for callback in callbacks if isinstance(callback, wanted)]
        if self.subcommand != "fit":
            config["enable_checkpointing"] = False
            own = _as_list(config.get("callbacks"))
            config["callbacks"] = [callback for callback in own if not isinstance(callback, ModelCheckpoint)]
        else:
            config["callbacks"] = [StepBoundary(self.start), *_as_list(config.get("callbacks"))]
            config["plugins"] = [*_as_list(config.get("plugins")), *_missing_plugins(config.get("plugins"))]
        return super()._instantiate_trainer(config, kept)

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the command; where several processes do, they end together."""
        again = "go on with the same command and --resume auto"
        with ending_together(self.trainer, again if subcommand == "fit" else "start the same command again"):
            super()._run_subcommand(subcommand)

    def _check_labels(self) -> None:
        """Compares the checkpoint's labels with the data's before any weights load."""
        space = self.datamodule.label_space
        if self.saved_labels is None or space is None:
            return
        data, saved = ({"label_space": asdict(labels)} for labels in (space, self.saved_labels))
        if found := hyperparameter_conflicts(saved, data, structural_only=True):
            msg = (
                f"the checkpoint {self.options.ckpt_path} knows other labels than the data: {'; '.join(found)}. Use "
                "data with its labels, or a checkpoint that was trained on these."
            )
            raise CheckpointError(msg)

    def before_validate(self) -> None:
        """Finds a checkpoint of other labels before its weights load."""
        self._check_labels()

    def before_test(self) -> None:
        """Finds a checkpoint of other labels before its weights load."""
        self._check_labels()

    def before_fit(self) -> None:
        """Finds out before there is a run folder whether data and settings fit and results can be written."""
        self.model.check_data(self.datamodule)
        if (space := self.datamodule.label_space) is not None:
            self.model.adopt_labels(space)
        self._check_labels()
        self.model.check_settings()
        self.model.resumes = self.options.get("ckpt_path") is not None
        check_mode(self.options.checkpoint.monitor, self.options.checkpoint.mode)
        self.datamodule.check_splits("fit")  # reads the data, and so checks it, where no labels did
        names = self.model.metric_names()
        check_reported(self.options.checkpoint.monitor, self.datamodule.split_names("val"), names)
        check_steps(self.options.trainer, self.options.early_stopping)
        if self.trainer.local_rank == 0:
            self.datamodule.prepare_data()  # the trainer's own call will find it done
        folder = self.run_folder
        if self.trainer.is_global_zero and not self.options.trainer.get("fast_dev_run"):
            with self._saying_how_to_go_on():
                self._begin(folder)

    def _begin(self, folder: Path) -> None:
        """Takes the run's folder, and brings it back to the checkpoint where a run goes on."""
        check_writable(folder)
        self._lock = lock_run(folder)
        if self.interrupted is not None:
            bring_back(self.interrupted)
        else:
            check_unused(folder)
        next(c for c in self.trainer.callbacks if isinstance(c, SaveRunConfig)).begin(folder)  # type: ignore[attr-defined]
        announce_run(folder, self.trainer, self.interrupted.checkpoint if self.interrupted else None)

    def fit(self, **kwargs: Any) -> None:
        """Trains.

        Raises:
            TrainingStopped: After a signal, with how to go on; the step is finished and saved.
            TrainingError: If the disk is full, or the run's folder has vanished.
            KeyboardInterrupt: After a Ctrl-C that stops at once, with how to go on; Lightning has cleaned up.
        """
        self.failed_check: VerificationError | None = None
        keep_signal_handlers(self.trainer)
        try:
            with self._saying_how_to_go_on():
                self.trainer.fit(**{**kwargs, "weights_only": True})
        except VerificationError as error:
            if not self._checkpoint_callback().best_model_path:
                raise
            self.failed_check = error  # training is over and saved: first the test and the summary

    @contextmanager
    def _saying_how_to_go_on(self) -> Iterator[None]:
        try:
            yield
        except TrainingStopped as stop:
            stop.how_to_go_on = self._how_to_go_on()
            raise
        except SystemExit:  # Lightning's end of a Ctrl-C
            if not self.trainer.interrupted:
                raise
            raise KeyboardInterrupt(self._how_to_go_on()) from None
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise cannot_be_written(Path(error.filename or self.run_folder), error) from error
            gone = isinstance(error, FileNotFoundError) and _is_in(self.run_folder, error.filename)
            if not self.trainer.is_global_zero or (self.run_folder.exists() and not gone):
                raise  # other processes do not know the folder
            msg = (
                f"the run folder {self.run_folder} vanished while it was written ({error.strerror}); when it is back, "
                "go on with the same command and --resume auto, from what was saved since, or else anew."
            )
            raise TrainingError(msg) from error

    def _how_to_go_on(self) -> str:
        if not self.trainer.is_global_zero:
            return ""  # the main process says it, and knows the folder
        if not (config := self.run_folder / CONFIG).exists():
            return "nothing was saved, so start again"
        return f"go on with: {shlex.join(['lora-lightning', 'fit', '--config', str(config), '--resume', 'auto'])}"

    def _checkpoint_callback(self) -> AdapterCheckpoint:
        return next(c for c in self.trainer.callbacks if isinstance(c, AdapterCheckpoint))  # type: ignore[attr-defined]

    def after_fit(self) -> None:
        """Tests the best checkpoint and prints what came out.

        Raises:
            VerificationError: If a callback's check of the trained model failed.
        """
        if self.options.trainer.get("fast_dev_run"):
            return
        checkpoint = self._checkpoint_callback()
        metrics = dict(checkpoint.best_metrics)
        if self.options.test_after_fit and not self.datamodule.split_names("test"):
            if self.trainer.is_global_zero:
                print(f"not tested: {self.datamodule.without_test}")
        elif self.options.test_after_fit and checkpoint.best_model_path:
            read_checkpoint(checkpoint.best_model_path)  # a resumed run's may lie anywhere
            with self._saying_how_to_go_on():
                self.trainer.test(
                    self.model, self.datamodule, ckpt_path=checkpoint.best_model_path, verbose=False, weights_only=True
                )
            metrics |= {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        if self.trainer.is_global_zero:
            self._announce_early_stop()
            print_run_summary(self.run_folder, self.model, metrics, checkpoint, self.failed_check)
        if self.failed_check is not None:
            raise self.failed_check

    def _announce_early_stop(self) -> None:
        stopping = next(c for c in self.trainer.callbacks if isinstance(c, AdapterEarlyStopping))  # type: ignore[attr-defined]
        if stopping.stopped_epoch:
            print(
                f"stopped after epoch {stopping.stopped_epoch + 1}: no better {stopping.monitor} in "
                f"{stopping.patience} epochs (early_stopping.patience)"
            )

    def validate(self, **kwargs: Any) -> None:
        """Scores the validation split."""
        self._evaluate("validate", kwargs)

    def test(self, **kwargs: Any) -> None:
        """Scores the test split with the threshold that validation chose."""
        self._evaluate("test", kwargs)

    def _evaluate(self, command: str, kwargs: dict[str, Any]) -> None:
        getattr(self.trainer, command)(**{**kwargs, "verbose": False, "weights_only": True})
        if self.trainer.is_global_zero:
            metrics = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
            print_metrics(metrics)
            write_metrics(metrics, self.run_folder / f"{command}_metrics.json")

    def before_predict(self) -> None:
        """Puts the predictions beside the run unless told otherwise, and finds a wrong place before the work."""
        writer = next(c for c in self.trainer.callbacks if isinstance(c, PredictionWriter))  # type: ignore[attr-defined]
        writer.file = writer.file or str(self.run_folder / self.datamodule.predictions_name)
        self.datamodule.check_predictions_file(Path(writer.file))
        check_writable(Path(writer.file).parent, "--predictions.file to a file in a folder")
        if self.datamodule.predict_file == "-" and self.trainer.world_size > 1:
            msg = (
                f"standard input has one reader, but this is {self.trainer.world_size} processes; write the queries to "
                "a file, or set --trainer.devices 1."
            )
            raise ConfigurationError(msg)

    def predict(self, **kwargs: Any) -> None:
        """Predicts every row; they go to the file, not into memory twice."""
        self.trainer.predict(**{**kwargs, "return_predictions": False, "weights_only": True})

    def after_predict(self) -> None:
        """Says where the predictions are."""
        if self.trainer.is_global_zero:
            writer = next(c for c in self.trainer.callbacks if isinstance(c, PredictionWriter))  # type: ignore[attr-defined]
            print(f"{writer.rows_written} predictions are in {writer.file}")


def _is_in(folder: Path, filename: Any) -> bool:
    """Whether an error names a file in a folder, as text or, as TensorBoard does, as bytes."""
    return isinstance(filename, str | bytes) and folder.absolute() in Path(os.fsdecode(filename)).absolute().parents


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _missing_plugins(asked: Any) -> list[Any]:
    """What training needs beside the plugins asked for."""
    plugins: list[Any] = []
    if not any(isinstance(plugin, CheckpointIO) for plugin in _as_list(asked)):
        plugins.append(WholeCheckpointIO())
    if SLURMEnvironment.detect() and not any(isinstance(plugin, ClusterEnvironment) for plugin in _as_list(asked)):
        plugins.append(SLURMEnvironment(auto_requeue=False))  # StepBoundary saves whole steps instead
    return plugins


def quiet() -> None:
    """Silences what other packages say at each start and a user can't act on."""
    # The last misses a kernel that would reorder 4-bit weights, which `keep_4bit_weights_in_order` prevents.
    for name in ("lightning.pytorch", "lightning.fabric", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=r".*is_gradient_checkpointing.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=r".*Checkpoint directory .* exists and is not empty.*")
    # CSVLogger's: the folder holds the run's config by then, and a former table stays.
    warnings.filterwarnings("ignore", message=r"Experiment logs directory .* exists and is not empty.*")
    warnings.filterwarnings("ignore", message=r".*number of training batches .* is smaller than the logging.*")
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=r".*your dataloader is not resumable.*")  # the data module is
    warnings.filterwarnings("ignore", message=r"Be aware that when using `ckpt_path`, callbacks used to create.*")
    warnings.filterwarnings("ignore", message=r"Metric .* will save all targets and predictions in the buffer.*")
    warnings.filterwarnings("ignore", message=r".*Couldn't infer the batch indices.*")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def run(arguments: Sequence[str]) -> LoraLightningCLI:
    """Runs one command.

    Args:
        arguments: The command and its options.

    Returns:
        The command line, with the trainer, task and data module it ran.

    Raises:
        LoraLightningError: If the input is wrong.
    """
    quiet()
    for word in arguments:
        if word.startswith(("--data.backbone", "--data.init_args.backbone")):
            msg = "data.backbone always follows the model's; set --model.backbone instead."
            raise ConfigurationError(msg)
    check_config_files(arguments)
    sys.argv[1:] = list(arguments)  # Lightning relaunches the program from it under DDP
    try:
        return LoraLightningCLI(
            AdaptationTask,
            AdaptationDataModule,
            save_config_callback=SaveRunConfig,
            trainer_defaults={"enable_model_summary": False, "use_distributed_sampler": False},
            seed_everything_default=0,
            parser_class=ArgumentParser,
            parser_kwargs={"allow_abbrev": False},  # a typo is never taken for another option
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=None,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except SystemExit as error:
        # Lightning's graceful end of a Ctrl-C: it ignores further ones and exits with 1.
        if error.code == 1 and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            raise KeyboardInterrupt from None
        raise
    except MisconfigurationException as error:
        raise (own_error(error) or ConfigurationError(" ".join(str(error).split()))) from error
    except Exception as error:  # noqa: BLE001  # raised again below
        # jsonargparse wraps what a class raises while it is made.
        raise as_refusal(error) or error from None
