"""Finding an interrupted run again, and bringing its folder back to where its checkpoint is."""

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lora_lightning.errors import CheckpointError, ConfigurationError, RunFinished, UnreadableError, VerificationError
from lora_lightning.runs.checkpoint import read_checkpoint
from lora_lightning.runs.files import remove_drafts
from lora_lightning.runs.layout import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    EVENT_SIZES,
    FAILED_CHECK,
    LAST,
    PREVIOUS,
    SUMMARY,
    WHOLE_STEP,
    cut_events,
)
from lora_lightning.runs.settings import differences, identity, settings_in, text_fingerprint

SETTINGS = "settings"  # in a checkpoint: the fingerprint of its run's config.yaml
NEWEST_FIRST = (LAST, PREVIOUS, f"{BEST}.ckpt")
MOST_LISTED = 3  # differences between two runs
RUN_LOGGERS = ("TensorBoardLogger", "CSVLogger")  # whose runs are folders <save_dir>/<name>/<version>

FillDefaults = Callable[[str], Mapping[str, Any]]


@dataclass(frozen=True)
class InterruptedRun:
    """A run to resume.

    Attributes:
        folder: The run's.
        config: The text of its `config.yaml`.
        checkpoint: The newest intact one; `None` if the run was interrupted before the first.
        content: What the checkpoint holds; empty without one.
        event_sizes: How far its curves go, as in `layout.event_sizes`; `None` if that is not known.
    """

    folder: Path
    config: str
    checkpoint: Path | None
    content: Mapping[str, Any]
    event_sizes: Mapping[str, int] | None


def find_interrupted_run(
    options: Any, config: str, given: Iterable[Path], fill_defaults: FillDefaults
) -> InterruptedRun | None:
    """Finds the run of these settings that `--resume auto` continues, and points the options to it.

    Args:
        options: Of `fit`; the first logger's version becomes that of the run found.
        config: The same options as YAML.
        given: Files that were given as configs; whoever gives a run's `config.yaml` means that run.
        fill_defaults: Reads the text of a run's `config.yaml` as `fit` would today: every option by dotted name, those
            with their defaults that the release which wrote it did not have.

    Returns:
        The newest run of the same settings; `None` if there is none, so that a new one starts.

    Raises:
        ConfigurationError: If the logger keeps runs where they cannot be found, or a run of other settings is where
            this run would be.
        CheckpointError: If the run has checkpoints, and all are damaged.
        RunFinished: If that run is finished.
        VerificationError: If it is finished, and failed a check of what it trained.
    """
    entry = first_logger(options.trainer)
    name = entry.class_path.rpartition(".")[2]
    if name not in RUN_LOGGERS:
        msg = (
            f"--resume auto does not know where {name} keeps runs; let the first logger be one of "
            f"{', '.join(RUN_LOGGERS)}."
        )
        raise ConfigurationError(msg)
    place = Path(entry.init_args.save_dir) / str(entry.init_args.get("name") or "")
    asked = entry.init_args.get("version")
    runs = run_folders(place) if asked is None else [place / (asked if isinstance(asked, str) else f"version_{asked}")]
    chosen = {path.resolve() for path in given}
    own = [run for run in runs if (run / CONFIG).resolve() in chosen]
    run = find_run([*own, *runs], config, fill_defaults)
    if run is None:
        report_differences(runs, config, asked=asked is not None)
        return None
    check_unfinished(run)
    if asked is None:
        entry.init_args.version = int(run.name[8:])
        if not isinstance(options.trainer.logger, list):
            options.trainer.logger = entry
    text = (run / CONFIG).read_text(encoding="utf-8")
    path, checkpoint = newest_intact_checkpoint(run, text)
    return InterruptedRun(run, text, path, checkpoint, checkpoint.get(EVENT_SIZES) if path is not None else {})


def run_folders(place: Path) -> list[Path]:
    """The runs that a logger has numbered.

    Args:
        place: `<save_dir>/<name>`.

    Returns:
        Folders `version_<n>`, the newest first.
    """
    runs = [path for path in place.glob("version_*") if path.name[8:].isdigit()]
    return sorted(runs, key=lambda path: int(path.name[8:]), reverse=True)


def report_differences(runs: Sequence[Path], config: str, asked: bool) -> None:
    """Says why none of the existing runs is resumed.

    Args:
        runs: The folders, the newest first.
        config: The settings as YAML, which no run has.
        asked: Whether the run was to be in the first of the folders.

    Raises:
        ConfigurationError: If it was, and that folder holds a run.
    """
    run, text = None, ""
    for folder in runs:
        try:
            text, run = (folder / CONFIG).read_text(encoding="utf-8", errors="replace"), folder
            break
        except (FileNotFoundError, NotADirectoryError):  # no run
            continue
        except OSError as error:  # such as another user's
            if asked:
                raise
            _print_once(f"cannot look into {folder} ({error.strerror}), so a run in it is not resumed")
    if run is None:
        return
    if text_fingerprint(text) == text_fingerprint(config):  # another process has just started it
        return
    found = differences(settings_in(config), settings_in(text), "there") or ["its config.yaml was edited"]
    listed = "; ".join(found[:MOST_LISTED]) + (f"; and {len(found) - MOST_LISTED} more" * (len(found) > MOST_LISTED))
    if asked:
        msg = f"the run folder {run} holds a run of other settings: {listed}. Use its config.yaml, or another version."
        raise ConfigurationError(msg)
    _print_once(f"starts a new run, because the newest, {run}, has other settings: {listed}")


@rank_zero_only
def _print_once(text: str) -> None:
    """Though every process looks for its run."""
    print(text)


def check_unfinished(run: Path) -> None:
    """Refuses to resume a run that has a complete summary.

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
    msg = f"the run {run} is finished: there is nothing to resume"
    raise RunFinished(msg, run)


def first_logger(trainer: Any) -> Any:
    """The entry of the trainer's first logger.

    Args:
        trainer: The trainer's options.

    Returns:
        Its `class_path` and `init_args`; those of Lightning's default if none is named.

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


def find_run(runs: Iterable[Path], config: str, fill_defaults: FillDefaults) -> Path | None:
    """The first run of some settings.

    Args:
        runs: Folders.
        config: The settings as YAML, complete.
        fill_defaults: As in `find_interrupted_run`.

    Returns:
        The run's folder; `None` if no run's `config.yaml` means the same.
    """
    settings = settings_in(config)
    for run in runs:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = (run / CONFIG).read_text(encoding="utf-8")
            if text_fingerprint(text) == text_fingerprint(config) or _mean_the_same(text, settings, fill_defaults):
                return run
    return None


def _mean_the_same(text: str, settings: Mapping[str, Any], fill_defaults: FillDefaults) -> bool:
    """Whether a run's config amounts to these settings once today's defaults are filled in."""
    found = settings_in(text)
    changed = [name for name in found.keys() & settings.keys() if found[name] != settings[name]]
    if not found or [name for name in changed if not name.endswith("class_path")]:
        return False  # no default will make them equal, so the text need not be parsed
    try:
        return identity(fill_defaults(text)) == identity(settings)
    except ConfigurationError:  # of a release whose options are no longer there
        return False


def newest_intact_checkpoint(run: Path, config: str) -> tuple[Path | None, dict[str, Any]]:
    """The newest checkpoint of a run that is intact and its own; warns of those that are not.

    Args:
        run: The run's folder.
        config: The text of its `config.yaml`.

    Returns:
        The file and what it holds; `None` and nothing if there is none yet.

    Raises:
        CheckpointError: If there are some, and all are damaged or foreign, or one cannot be read at the moment.
    """
    skipped = []
    for path in (run / CHECKPOINTS / name for name in NEWEST_FIRST if (run / CHECKPOINTS / name).is_file()):
        try:
            checkpoint = read_checkpoint(path)
        except UnreadableError:  # it may be intact: nothing older takes its place
            raise
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        if checkpoint.get(SETTINGS) != text_fingerprint(config):
            skipped.append(f"{path} is another run's checkpoint.")
        elif not are_sizes(checkpoint.get(EVENT_SIZES)):
            skipped.append(f"{path} does not say how far the curves go.")
        elif checkpoint.get(WHOLE_STEP):
            for reason in skipped:
                rank_zero_warn(f"{reason} It is skipped.")
            return path, checkpoint
    if skipped:
        msg = (
            f"the run {run} has no checkpoint to resume from: {' '.join(skipped)} Move the folder away to start from "
            "scratch."
        )
        raise CheckpointError(msg)
    return None, {}


def are_sizes(found: Any) -> bool:
    """Whether a checkpoint says how far the curves go, as this program writes it, or says nothing, as older ones do."""
    if found is None:
        return True
    return isinstance(found, Mapping) and all(type(size) is int and size >= 0 for size in found.values())


def check_not_started(place: Path, config: str, fill_defaults: FillDefaults) -> None:
    """Refuses to start a run that another process started after this one had looked for it.

    Args:
        place: The folder of the logger's runs, locked by `lock_starts`.
        config: The settings as YAML.
        fill_defaults: As in `find_interrupted_run`.

    Raises:
        ConfigurationError: If there is a run of these settings by now.
    """
    if (run := find_run(run_folders(place), config, fill_defaults)) is not None:
        msg = (
            f"another process has just started the run {run} with the same settings; wait for it or stop it, then "
            "start the same command again."
        )
        raise ConfigurationError(msg)


def check_unused(folder: Path) -> None:
    """Refuses to write a new run over another one.

    Args:
        folder: Where the new run would be.

    Raises:
        ConfigurationError: If there is a run.
    """
    if (folder / CONFIG).exists():
        msg = (
            f"the run folder {folder} already holds a run; choose another trainer.logger.init_args.name or version, or "
            "move the folder away."
        )
        raise ConfigurationError(msg)


def return_to_checkpoint(run: InterruptedRun) -> None:
    """Brings a run's folder back to where its checkpoint is; once per run, by the process that holds the lock.

    What was logged since is taken out of TensorBoard's files, for it will be logged again. `CSVLogger` would delete its
    file, which is renamed. So are damaged checkpoints that were skipped: none of them may replace an intact one.
    Drafts that were never finished are deleted.

    Args:
        run: What `find_interrupted_run` returned.
    """
    remove_drafts(run.folder)
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
