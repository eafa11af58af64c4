"""What a command starts from: the checkpoint in `ckpt_path`, a run to resume, or the pretrained weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.backbones.base_identity import BaseIdentity, identify_base
from lora_lightning.backbones.saved_base import BASE_MODEL, check_base
from lora_lightning.errors import CheckpointError, ConfigurationError
from lora_lightning.metrics import LabelSpace
from lora_lightning.runs.checkpoint import check_resumable, read_checkpoint
from lora_lightning.runs.place import RunPlace
from lora_lightning.runs.resume import InterruptedRun, find_interrupted_run
from lora_lightning.tasks.hyperparameters import hyperparameter_conflicts, with_later_options
from lora_lightning.training.earlier_run import EarlierRun


@dataclass(frozen=True)
class StartingPoint:
    """The checkpoint or run that a command starts from.

    Attributes:
        interrupted: The run that is resumed; `None` for a new run.
        place: File name and number of optimizer steps of the checkpoint; `None` without a checkpoint.
        labels: Labels of the checkpoint; `None` if it has none.
        base: The base model's content, if it was compared with the checkpoint's; large weights are hashed once.
        earlier: The run that `--ckpt_path` names a checkpoint of; `None` unless a new run starts from it.
    """

    interrupted: InterruptedRun | None = None
    place: tuple[str, int] | None = None
    labels: LabelSpace | None = None
    base: BaseIdentity | None = None
    earlier: EarlierRun | None = None

    @property
    def config(self) -> str:
        """The text of the resumed run's `config.yaml`; empty for a new run."""
        return "" if self.interrupted is None else self.interrupted.config


def find_starting_point(
    command: str, options: Any, settings: str, fill_defaults: Callable[[str], Mapping[str, Any]], runs: RunPlace
) -> StartingPoint:
    """Finds and checks the checkpoint that a command starts from; Lightning would silently prefer its settings.

    Args:
        command: `fit`, `validate`, `test` or `predict`.
        options: Options of the command. If a run is resumed, its `ckpt_path` is set.
        settings: The same options as YAML.
        fill_defaults: As in `find_interrupted_run`.
        runs: Where the runs of these options are.

    Returns:
        The starting point.

    Raises:
        CheckpointError: If the command needs a checkpoint but has none, or if the checkpoint contradicts the options.
        ConfigurationError: If `resume` is not possible.
    """
    if options.resume is not None and command != "fit":
        msg = f"resume is {options.resume}, but only fit can resume a run; leave it out for {command}."
        raise ConfigurationError(msg)
    interrupted = None
    if options.resume is not None and not options.trainer.get("fast_dev_run"):
        if options.trainer.logger is False:
            msg = "trainer.logger is false, but --resume auto needs a logger, which numbers the runs; leave it out."
            raise ConfigurationError(msg)
        given = [Path(file.absolute) for file in options.get("config") or [] if file is not None]
        interrupted = find_interrupted_run(runs, settings, given, fill_defaults)
        if interrupted is not None and interrupted.checkpoint is not None:
            options.ckpt_path = str(interrupted.checkpoint)
    path = options.ckpt_path
    if path is None and command != "fit":
        msg = f"{command} needs a trained model; set --ckpt_path to a file such as <run>/checkpoints/best.ckpt."
        raise CheckpointError(msg)
    if path is None:
        return StartingPoint(interrupted)
    checkpoint = read_checkpoint(path) if interrupted is None else interrupted.content
    if command == "fit":
        check_resumable(checkpoint, path)
    saved = checkpoint["hyper_parameters"]
    base = _same_base(checkpoint, options, path)
    known = base is not None or options.allow_other_base
    check_same_model(saved, options.model, path, structural_only=command != "fit", compare_base=not known)
    place = Path(path).name, int(checkpoint.get("global_step", 0))
    is_new = command == "fit" and (interrupted is None or interrupted.checkpoint is None)
    earlier = EarlierRun.of(path, checkpoint) if is_new else None
    return StartingPoint(interrupted, place, _labels(saved, path), base, earlier)


def _same_base(checkpoint: Mapping[str, Any], options: Any, path: str) -> BaseIdentity | None:
    """The base model, whose content is that of the checkpoint's; warns of a checkpoint that does not know its base."""
    asked = options.model.init_args.as_dict()
    if "backbone" not in asked or options.allow_other_base:
        return None
    if BASE_MODEL not in checkpoint:
        rank_zero_warn(
            f"the checkpoint {path} was written by a release that did not record the content of the base model, so it "
            "is not known whether the base is still the same."
        )
        return None
    is_frozen = asked.get("lora") is not None or bool(asked.get("freeze_backbone"))
    base = identify_base(str(asked["backbone"]))
    known = check_base(checkpoint, base, f"the checkpoint {path}", is_frozen=is_frozen, allowed=False)
    return base if known else None


def check_same_model(
    saved: Mapping[str, Any], model: Any, path: str, *, structural_only: bool, compare_base: bool = True
) -> None:
    """Refuses a checkpoint of another model than the one that the options describe.

    Args:
        saved: Its hyperparameters.
        model: The options: `class_path` and `init_args`.
        path: How to call the checkpoint.
        structural_only: Compare only what decides which weights it holds.
        compare_base: Whether the name of the backbone counts; it does not if its content was compared.

    Raises:
        CheckpointError: If they differ; the message names both values.
    """
    asked = model.init_args.as_dict()
    module, _, task_class = model.class_path.rpartition(".")
    unknown, lacking = sorted(saved.keys() - asked.keys()), sorted(asked.keys() - saved.keys())
    if unknown and lacking:  # either alone may come from another release
        msg = (
            f"the checkpoint {path} does not belong to {task_class}: it has "
            f"{', '.join(unknown)}, but no {', '.join(lacking)}. Use the config.yaml of the checkpoint's run."
        )
        raise CheckpointError(msg)
    saved = with_later_options(saved, asked, getattr(import_module(module), task_class))
    if found := hyperparameter_conflicts(saved, asked, structural_only, compare_base):
        msg = (
            f"the checkpoint {path} contradicts the options: {'; '.join(found)}. Use the config.yaml of the "
            "checkpoint's run, or leave --ckpt_path out to start from scratch."
        )
        raise CheckpointError(msg)


def _labels(saved: Mapping[str, Any], path: str) -> LabelSpace | None:
    if not saved.get("label_space"):
        return None
    try:
        return LabelSpace(**saved["label_space"])
    except TypeError as error:
        msg = f"the labels in the checkpoint {path} are malformed ({error}); use another file of the run."
        raise CheckpointError(msg) from error
