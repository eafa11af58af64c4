"""Finding an interrupted run again, and bringing its folder back to where its checkpoint is."""

import contextlib
import errno
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml
from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.compat.lightning import process_rank
from lora_lightning.errors import CheckpointError, ConfigurationError, RunFinished, UnreadableError, VerificationError
from lora_lightning.runs.checkpoint import read_checkpoint
from lora_lightning.runs.files import DRAFT, cannot_be_written
from lora_lightning.runs.layout import (
    BEST,
    CONFIG,
    EVENT_SIZES,
    FAILED_CHECK,
    LAST,
    LOCK,
    PREVIOUS,
    SUMMARY,
    WHOLE_STEP,
    cut_events,
)
from lora_lightning.runs.settings import differences, flatten

SETTINGS = "settings"  # in a checkpoint: the fingerprint of its run's config
NEWEST_FIRST = (LAST, PREVIOUS, f"{BEST}.ckpt")
MOST_LISTED = 3  # differences between two runs
RUN_LOGGERS = ("TensorBoardLogger", "CSVLogger")  # whose runs are folders <save_dir>/<name>/<version>


@dataclass(frozen=True)
class Interrupted:
    """A run to go on with.

    Attributes:
        folder: The run's.
        checkpoint: The newest that is whole; `None` where the run was interrupted before the first.
        event_sizes: How far its curves go, as in `run_folder.event_sizes`; `None` where that is not known.
    """

    folder: Path
    checkpoint: Path | None
    event_sizes: Mapping[str, int] | None


def find_interrupted(options: Any, config: str) -> tuple[Interrupted, dict[str, Any]] | None:
    """Finds the run of these settings that `--resume auto` goes on with, and points the options to it.

    Args:
        options: Of `fit`; the first logger's version becomes that of the run found.
        config: The same options as YAML.

    Returns:
        The newest run of the same settings and what its checkpoint holds; `None` where there is none, so that one
        begins.

    Raises:
        ConfigurationError: If the logger keeps runs where they cannot be found, or a run of other settings is where
            the run would be.
        CheckpointError: If the run has checkpoints, and all are damaged.
        RunFinished: If that run is finished.
        VerificationError: If it is finished, and failed a check of what it trained.
    """
    entry = first_logger(options.trainer)
    name = entry.class_path.rpartition(".")[2]
    if name not in RUN_LOGGERS:
        msg = f"--resume auto does not know where {name} keeps runs; let the first logger be one of {RUN_LOGGERS}."
        raise ConfigurationError(msg)
    place = Path(entry.init_args.save_dir) / str(entry.init_args.get("name") or "")
    asked = entry.init_args.get("version")
    if asked is not None:
        runs = [place / (asked if isinstance(asked, str) else f"version_{asked}")]
    else:
        runs = [path for path in place.glob("version_*") if path.name[8:].isdigit()]
        runs.sort(key=lambda path: int(path.name[8:]), reverse=True)
    given = {Path(file.absolute).resolve() for file in options.get("config") or [] if file is not None}
    own = [run for run in runs if (run / CONFIG).resolve() in given]  # whoever gives a run's config.yaml means that run
    run = find_run([*own, *runs], config)
    if run is None:
        say_what_differs(runs, config, asked=asked is not None)
        return None
    check_unfinished(run)
    if asked is None:
        entry.init_args.version = int(run.name[8:])
        if not isinstance(options.trainer.logger, list):
            options.trainer.logger = entry
    path, checkpoint = last_good(run, config)
    return Interrupted(run, path, checkpoint.get(EVENT_SIZES) if path is not None else {}), checkpoint


def say_what_differs(runs: Sequence[Path], config: str, asked: bool) -> None:
    """Says why none of the runs that are there goes on.

    Args:
        runs: The folders, the newest first.
        config: The settings as YAML, which no run has.
        asked: Whether the run was to be in the first of the folders.

    Raises:
        ConfigurationError: If it was, and that one holds a run.
    """
    run = next((run for run in runs if (run / CONFIG).is_file()), None)
    text = "" if run is None else (run / CONFIG).read_text(encoding="utf-8", errors="replace")
    if run is None or fingerprint(text) == fingerprint(config):  # another process has just begun it
        return
    here, there = settings_in(config), settings_in(text)
    found = differences(here, there, "there") or ["its config.yaml was edited"]
    listed = "; ".join(found[:MOST_LISTED]) + (f"; and {len(found) - MOST_LISTED} more" * (len(found) > MOST_LISTED))
    if asked:
        msg = f"the run folder {run} holds a run of other settings: {listed}. Use its config.yaml, or another version."
        raise ConfigurationError(msg)
    if process_rank() in {None, 0}:  # once, though every process looks for its run
        print(f"begins a new run, for the newest, {run}, has other settings: {listed}")


def settings_in(config: str) -> dict[str, Any]:
    """A run's settings by dotted name.

    Args:
        config: YAML.

    Returns:
        Plain values without `resume`; empty where the text is no YAML.
    """
    try:
        settings = flatten(yaml.safe_load(config) or {})
    except (yaml.YAMLError, ValueError):  # such as a date that does not exist
        return {}
    settings.pop("resume", None)
    return settings


def check_unfinished(run: Path) -> None:
    """Refuses to go on with a run that has a whole summary.

    Args:
        run: The folder.

    Raises:
        RunFinished: If the run is finished.
        VerificationError: If it is finished, and failed a check of what it trained.
    """
    try:
        summary = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a file that is cut off is written again
        return
    if isinstance(summary, dict) and FAILED_CHECK in summary:
        msg = f"the run {run} is finished and failed its check: {summary[FAILED_CHECK]}"
        raise VerificationError(msg)
    msg = f"the run {run} is finished: there is nothing to go on with"
    raise RunFinished(msg)


def first_logger(trainer: Any) -> Any:
    """The entry of the trainer's first logger.

    Args:
        trainer: The trainer's options.

    Returns:
        Its `class_path` and `init_args`; those of Lightning's default where none is named.

    Raises:
        ConfigurationError: If there is no logger.
    """
    if trainer.logger is False:
        msg = "--resume auto needs a logger, which gives each run its folder; leave trainer.logger=false out."
        raise ConfigurationError(msg)
    if trainer.logger is None or trainer.logger is True:
        init_args = {"save_dir": str(trainer.default_root_dir or Path.cwd()), "name": "lightning_logs", "version": None}
        return Namespace(class_path="lightning.pytorch.loggers.TensorBoardLogger", init_args=Namespace(init_args))  # type: ignore[no-untyped-call]
    return trainer.logger[0] if isinstance(trainer.logger, list) else trainer.logger


def find_run(runs: Iterable[Path], config: str) -> Path | None:
    """The first run of some settings.

    Args:
        runs: Folders.
        config: The settings as YAML.

    Returns:
        The run's folder; `None` where no run's `config.yaml` says the same.
    """
    for run in runs:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if fingerprint((run / CONFIG).read_text(encoding="utf-8")) == fingerprint(config):
                return run
    return None


def fingerprint(config: str) -> str:
    """A short text that is the same for the same settings.

    Args:
        config: The settings as YAML; how the command started and the release that wrote them do not count.

    Returns:
        Hexadecimal digits.
    """
    lines = [line for line in config.splitlines() if not line.startswith(("#", "resume:"))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def last_good(run: Path, config: str) -> tuple[Path | None, dict[str, Any]]:
    """The newest checkpoint of a run that is whole and its own; names those that are not.

    Args:
        run: The run's folder.
        config: Its settings as YAML.

    Returns:
        The file and what it holds; `None` and nothing where there is none yet.

    Raises:
        CheckpointError: If there are some, and all are damaged or foreign, or one cannot be read at the moment.
    """
    skipped = []
    for path in (run / "checkpoints" / name for name in NEWEST_FIRST if (run / "checkpoints" / name).is_file()):
        try:
            checkpoint = read_checkpoint(path)
        except UnreadableError:  # it may be whole: nothing older takes its place
            raise
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        if checkpoint.get(SETTINGS) != fingerprint(config):
            skipped.append(f"{path} is another run's checkpoint.")
        elif not are_sizes(checkpoint.get(EVENT_SIZES)):
            skipped.append(f"{path} does not say how far the curves go.")
        elif checkpoint.get(WHOLE_STEP):
            for reason in skipped:
                rank_zero_warn(f"{reason} It is skipped.")
            return path, checkpoint
    if skipped:
        msg = f"the run {run} has no checkpoint to go on from: {' '.join(skipped)} Move the folder away to start anew."
        raise CheckpointError(msg)
    return None, {}


def are_sizes(found: Any) -> bool:
    """Whether a checkpoint says how far the curves go, as this program writes it, or says nothing, as older ones do."""
    if found is None:
        return True
    return isinstance(found, Mapping) and all(type(size) is int and size >= 0 for size in found.values())


def check_unused(folder: Path) -> None:
    """Refuses to write a new run over another one.

    Args:
        folder: Where the new one's would be.

    Raises:
        ConfigurationError: If there is one.
    """
    if (folder / CONFIG).exists():
        msg = (
            f"the run folder {folder} already holds a run; choose another trainer.logger.init_args.name or version, or "
            "move the folder away."
        )
        raise ConfigurationError(msg)


def bring_back(run: Interrupted) -> None:
    """Brings a run's folder back to where its checkpoint is; once per run, by the process that holds the lock.

    What was logged since is taken out of TensorBoard's files, for it will be logged again. `CSVLogger` would delete its
    file, which is renamed. So are damaged checkpoints that were skipped: none of them takes a good one's place. Files
    that were never finished are deleted.

    Args:
        run: What `find_interrupted` returned.
    """
    for draft in run.folder.rglob(f".*{DRAFT}"):  # of a file that was being written
        draft.unlink()
    table = run.folder / "metrics.csv"
    if table.is_file():
        table.rename(table.with_name(f"metrics.{len(list(run.folder.glob('metrics.*csv')))}.csv"))
    if run.checkpoint is not None:
        for name in NEWEST_FIRST[: NEWEST_FIRST.index(run.checkpoint.name)]:
            path = run.checkpoint.with_name(name)
            if path.is_file():
                path.replace(path.with_name(f"{name}.damaged"))
    if run.event_sizes is not None:  # older releases did not note them
        cut_events(run.folder, run.event_sizes)


def lock_run(run: Path) -> TextIO | None:
    """Keeps other processes out of a run's folder for as long as the result is open, at most until this process ends.

    Args:
        run: The folder.

    Returns:
        The open lock; `None` where the system or the file system has no locks.

    Raises:
        ConfigurationError: If another process holds it.
        TrainingError: If it cannot be written.
    """
    try:
        import fcntl  # noqa: PLC0415  # not on Windows
    except ImportError:
        return None
    try:
        file = (run / LOCK).open("a+", encoding="utf-8")
    except OSError as error:
        raise cannot_be_written(run / LOCK, error) from error
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        if error.errno not in {errno.EACCES, errno.EAGAIN}:
            return None
        msg = (
            f"another process ({holder}) trains in the run folder {run}; wait for it or stop it, or choose another "
            "trainer.logger.init_args.name or version."
        )
        raise ConfigurationError(msg) from error
    file.truncate(0)
    file.write(f"{os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
