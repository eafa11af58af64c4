"""Where a run's folder is: `<save_dir>/<name>/version_<n>`, whichever loggers the run has."""

import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger

from lora_lightning.errors import ConfigurationError

LOGS = Path("lightning_logs")
FOLDER_LOGGERS = ("TensorBoardLogger", "CSVLogger")  # their files are in the run's folder, which they number
TENSORBOARD = "lightning.pytorch.loggers.TensorBoardLogger"
PACKAGES = {"MLFlowLogger": "mlflow", "WandbLogger": "wandb"}  # that the extra `loggers` has
UNNAMED = "lightning_logs"  # Lightning's default name, which says nothing
PLACE_OPTIONS = ("save_dir", "name", "version")  # of these loggers


@dataclass(frozen=True)
class RunPlace:
    """Where the runs of these settings are.

    Attributes:
        save_dir: The folder of all runs.
        name: The folder in it; empty for none.
        former: The folder in it that releases without default names used; `None` if the user chose the name.
        version: Number or name of the run's own folder, if the user chose it.
    """

    save_dir: Path
    name: str
    former: Path | None = None
    version: int | str | None = None

    @property
    def folder(self) -> Path:
        """The folder that contains the run folders."""
        return self.save_dir / self.name

    def run_folders(self) -> list[Path]:
        """Returns the run folders, newest first, those with the former name last; or the one that the user chose."""
        if self.version is not None:
            return [self.folder / (self.version if isinstance(self.version, str) else f"version_{self.version}")]
        places = [self.folder] if self.former is None else [self.folder, self.former]
        return [run for place in places for run in numbered_folders(place)]


def numbered_folders(place: Path) -> list[Path]:
    """Returns the folders `version_<n>` in a folder, newest first.

    Args:
        place: The folder.
    """
    runs = [path for path in place.glob("version_*") if path.name[8:].isdigit()]
    return sorted(runs, key=lambda path: int(path.name[8:]), reverse=True)


def next_folder(place: Path) -> Path:
    """Returns the folder for the next run.

    Args:
        place: The folder that contains the run folders.
    """
    newest = next(iter(numbered_folders(place)), None)
    return place / f"version_{0 if newest is None else int(newest.name[8:]) + 1}"


def logger_entries(trainer: Any) -> list[Any]:
    """Returns the options of the trainer's loggers: `class_path` and `init_args`; none for its default logger.

    Args:
        trainer: The trainer's options.
    """
    given = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    return [entry for entry in given if hasattr(entry, "class_path")]


def class_name(entry: Any) -> str:
    """Returns the name of a logger's class, without its module."""
    return str(entry.class_path).rpartition(".")[2]


def run_place(trainer: Any, default_name: str) -> RunPlace:
    """Finds out where the runs of these options are.

    Args:
        trainer: The trainer's options.
        default_name: The name of runs that the user has not named.

    Returns:
        The place: of the first logger that has a folder of its own, otherwise `<default_root_dir>/<default name>`.
    """
    for entry in logger_entries(trainer):
        if class_name(entry) in FOLDER_LOGGERS:
            save_dir, name = Path(entry.init_args.save_dir), entry.init_args.get("name")
            version = entry.init_args.get("version")
            if name == UNNAMED:
                return RunPlace(save_dir, default_name, save_dir / UNNAMED, version)
            return RunPlace(save_dir, name or "", None, version)
    root = trainer.default_root_dir
    for entry in logger_entries(trainer):
        name = entry.init_args.get("run_name") or entry.init_args.get("name")
        return RunPlace(Path(root or LOGS), name or default_name)
    return RunPlace(Path(root or LOGS), default_name, Path(root or Path.cwd()) / UNNAMED)


def without_place(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves out where loggers write the run folder: it has many spellings, and may have been moved.

    Args:
        settings: Plain values by dotted name.
    """
    logger = "trainer.logger"
    kept = dict(settings)
    if _is_of_run_folder(settings.get(f"{logger}.class_path")):
        for name in PLACE_OPTIONS:
            kept.pop(f"{logger}.init_args.{name}", None)
    if isinstance(entries := settings.get(logger), list):
        kept[logger] = [_entry_without_place(entry) for entry in entries]
    return kept


def _is_of_run_folder(class_path: object) -> bool:
    return str(class_path).rpartition(".")[2] in FOLDER_LOGGERS


def _entry_without_place(entry: Any) -> Any:
    if not isinstance(entry, dict) or not _is_of_run_folder(entry.get("class_path")):
        return entry
    options = entry.get("init_args") or {}
    return {**entry, "init_args": {name: value for name, value in options.items() if name not in PLACE_OPTIONS}}


def prepare_loggers(
    trainer: Any, default_name: str, place: RunPlace, run: Path | None = None, ids: Sequence[str | None] = ()
) -> None:
    """Sets the options of the loggers that depend on the run: its name, its folder, and its ids elsewhere.

    Args:
        trainer: The trainer's options, changed in place.
        default_name: The name of a run that the user has not named.
        place: Where the runs of these options are.
        run: The folder of the run that is resumed; `None` for a new run.
        ids: The id that each logger has given the run that is resumed; `None` for those without one.

    Raises:
        ConfigurationError: If a logger's package is not installed.
    """
    if trainer.logger is False:
        return
    if trainer.logger is None or trainer.logger is True:
        save_dir = run.parent.parent if run is not None else place.save_dir
        options = Namespace(save_dir=str(save_dir), name=UNNAMED, version=None)  # type: ignore[no-untyped-call]
        trainer.logger = Namespace(class_path=TENSORBOARD, init_args=options)  # type: ignore[no-untyped-call]
    entries = logger_entries(trainer)
    for entry, own_id in zip_longest(entries, ids[: len(entries)]):
        _name_run(entry, default_name, own_id)
    numbered = [entry.init_args for entry in entries if class_name(entry) in FOLDER_LOGGERS]
    if not numbered:
        trainer.default_root_dir = str(run or next_folder(place.folder))
        return
    together = [each for each in numbered if _folder_of(each) == _folder_of(numbered[0])]
    for options in together if run is not None or len(together) > 1 else ():
        if run is not None and place.version is None:  # it may have been moved
            options.save_dir, options.name = str(run.parent.parent), run.parent.name
        if options.get("version") is None:
            options.version = int((run or next_folder(place.folder)).name[8:])


def _folder_of(options: Any) -> Path:
    return Path(options.save_dir) / (options.get("name") or "")


def _name_run(entry: Any, name: str, own_id: str | None) -> None:
    options, kind = entry.init_args, class_name(entry)
    if (package := PACKAGES.get(kind)) is not None and find_spec(package) is None:
        msg = f'{kind} needs the package {package}; run `pip install "lora-lightning[loggers]"`, or use another logger.'
        raise ConfigurationError(msg)
    if kind in FOLDER_LOGGERS and options.get("name") == UNNAMED:
        options.name = name
    # Both send reports of their own about errors or use, also if the run itself stays offline.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if kind == "WandbLogger":
        options.name = options.get("name") or name
        # Its service keeps the working directory that it was started in, maybe by an earlier run.
        options.save_dir = str(Path(options.get("save_dir") or ".").absolute())
        if options.get("id") is None and options.get("version") is None:
            options.id = own_id or secrets.token_hex(4)
    if kind == "MLFlowLogger":
        options.run_name = options.get("run_name") or name
        options.run_id = options.get("run_id") or own_id


def ids_of(loggers: Sequence[Logger]) -> list[str | None]:
    """Returns the id of a run in each service that numbers runs itself.

    Args:
        loggers: Of the run, on the main process.

    Returns:
        An id per logger; `None` for those whose files are in the run's folder, and for kinds that are not known.
    """
    return [str(logger.version) if isinstance(logger, WandbLogger | MLFlowLogger) else None for logger in loggers]
