"""Finds the run that `--resume auto` resumes, and resets its folder to the state of its checkpoint."""

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from lora_lightning.errors import CheckpointError, ConfigurationError, RunFinished, UnreadableError, VerificationError
from lora_lightning.runs.checkpoint import read_checkpoint
from lora_lightning.runs.files import remove_drafts
from lora_lightning.runs.layout import (
    BEST,
    CHECKPOINTS,
    COMPLETE_STEP,
    CONFIG,
    EVENT_SIZES,
    FAILED_CHECK,
    LAST,
    PREVIOUS,
    RUN,
    SUMMARY,
    truncate_event_files,
)
from lora_lightning.runs.place import RunPlace, numbered_folders, without_place
from lora_lightning.runs.settings import list_differences, settings_identity, settings_in, text_fingerprint

SETTINGS = "settings"  # in a checkpoint: the fingerprint of its run's config.yaml
NEWEST_FIRST = (LAST, PREVIOUS, f"{BEST}.ckpt")
MOST_LISTED = 3  # differences between two runs

FillDefaults = Callable[[str], Mapping[str, Any]]
Settings = Mapping[str, Any]  # plain values by dotted name


@dataclass(frozen=True)
class InterruptedRun:
    """A run to resume.

    Attributes:
        folder: The run folder.
        config: The text of its `config.yaml`.
        checkpoint: The newest intact checkpoint; `None` if the run was interrupted before the first one.
        content: The content of the checkpoint; empty without a checkpoint.
        event_sizes: Sizes of the event files when the checkpoint was written, as in `layout.event_sizes`; `None` if
            unknown.
        ending: What to raise, once base model and data are known to be the same, if the run is finished: there is
            nothing to resume then. `None` for a run that is not finished.
    """

    folder: Path
    config: str
    checkpoint: Path | None
    content: Mapping[str, Any]
    event_sizes: Mapping[str, int] | None
    ending: RunFinished | VerificationError | None = None


def find_interrupted_run(
    place: RunPlace, config: str, given: Iterable[Path], fill_defaults: FillDefaults
) -> InterruptedRun | None:
    """Finds the run with these settings that `--resume auto` resumes.

    Args:
        place: Where the runs of these settings are.
        config: The options of `fit` as YAML.
        given: Config files that the user named. If one of them is the `config.yaml` of a run, that run is resumed.
        fill_defaults: Parses the text of a run's `config.yaml`, and returns the value of every option by dotted name.
            Options that the file does not contain have their defaults.

    Returns:
        The newest run with the same settings; `None` if there is none, so that a new run starts.

    Raises:
        ConfigurationError: If the folder of this run contains a run with other settings.
        CheckpointError: If all checkpoints of the run are damaged.
    """
    runs = place.run_folders()
    own = [(path if path.parent.name else path.resolve()).parent for path in given if _is_of_numbered_run(path)]
    # The run of a given folder is found by what it trains: its folder may have been moved, or be spelled otherwise.
    compared = dict if place.version is None else without_place
    run = find_run(own, config, fill_defaults) or find_run(runs, config, fill_defaults, compared=compared)
    if run is None:
        explain_new_run(runs, config, version_given=place.version is not None)
        if place.version is None:
            _name_elsewhere(place, config, fill_defaults)
        return None
    text = (run / CONFIG).read_text(encoding="utf-8")
    if (ending := how_it_finished(run)) is not None:
        return InterruptedRun(run, text, None, {}, {}, ending)
    path, checkpoint = newest_intact_checkpoint(run, text)
    return InterruptedRun(run, text, path, checkpoint, checkpoint.get(EVENT_SIZES) if path is not None else {})


def _is_of_numbered_run(config: Path) -> bool:
    """Whether this is the `config.yaml` of a run, wherever its folder has been moved to."""
    run = config.resolve().parent
    return config.name == CONFIG and run in numbered_folders(run.parent) and (run / RUN).is_file()


def explain_new_run(runs: Sequence[Path], config: str, version_given: bool) -> None:
    """Prints why none of the existing runs is resumed.

    Args:
        runs: The run folders, newest first.
        config: The settings as YAML. No run has the same settings.
        version_given: Whether the logger's version requires that the run is in the first folder.

    Raises:
        ConfigurationError: If it does, and that folder contains another run.
    """
    run, text = None, ""
    for folder in runs:
        try:
            text, run = (folder / CONFIG).read_text(encoding="utf-8", errors="replace"), folder
            break
        except (FileNotFoundError, NotADirectoryError):  # no run
            continue
        except OSError as error:  # such as another user's
            if version_given:
                raise
            _print_once(f"a run in {folder} cannot be resumed, because it is not readable ({error.strerror})")
    if run is None:
        return
    if text_fingerprint(text) == text_fingerprint(config):  # another process has just started this run
        return
    found = list_differences(settings_in(config), settings_in(text), "there") or ["its config.yaml was edited"]
    listed = "; ".join(found[:MOST_LISTED]) + (f"; and {len(found) - MOST_LISTED} more" * (len(found) > MOST_LISTED))
    if version_given:
        msg = (
            f"the run folder {run} contains a run with other settings: {listed}. Use its config.yaml, or another "
            "version."
        )
        raise ConfigurationError(msg)
    _print_once(f"starting a new run, because the newest run, {run}, has other settings: {listed}")


def _name_elsewhere(place: RunPlace, config: str, fill_defaults: FillDefaults) -> None:
    """Names an unfinished run that differs in its logger alone; shipped configs had names of their own before."""
    folders = sorted(path for path in place.save_dir.glob("*") if path.is_dir() and path != place.folder)
    others = [run for folder in folders for run in numbered_folders(folder) if not (run / SUMMARY).is_file()]
    if (run := find_run(others, config, fill_defaults, compared=_without_loggers)) is not None:
        _print_once(
            f"the unfinished run {run} differs only in its logger or its name; to resume it, give its own config: "
            f"--config {run / CONFIG} --resume auto"
        )


@rank_zero_only
def _print_once(text: str) -> None:
    """Prints on the main process only, although every process looks for the run."""
    print(text)


def how_it_finished(run: Path) -> RunFinished | VerificationError | None:
    """Says that a run with a complete summary has nothing to resume.

    Args:
        run: The run folder.

    Returns:
        What to raise: `VerificationError` if the trained model failed a check; `None` if the run is not finished.
    """
    try:
        summary = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # a truncated file will be written again
        return None
    if isinstance(summary, dict) and FAILED_CHECK in summary:
        msg = f"the run {run} is finished, but the trained model failed a check: {summary[FAILED_CHECK]}"
        return VerificationError(msg)
    return RunFinished(f"the run {run} is finished: there is nothing to resume", run)


def _without_loggers(settings: Settings) -> Settings:
    return {name: value for name, value in settings.items() if not name.startswith("trainer.logger")}


def find_run(
    runs: Iterable[Path], config: str, fill_defaults: FillDefaults, *, compared: Callable[[Settings], Settings] = dict
) -> Path | None:
    """Returns the first run with the given settings.

    Args:
        runs: Run folders.
        config: All settings as YAML.
        fill_defaults: As in `find_interrupted_run`.
        compared: Returns which of the settings have to be the same; by default all.

    Returns:
        The run folder; `None` if no run has the same settings.
    """
    settings = settings_in(config)
    for run in runs:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            text = (run / CONFIG).read_text(encoding="utf-8")
            if text_fingerprint(text) == text_fingerprint(config):
                return run
            if _have_same_settings(text, settings, fill_defaults, compared):
                return run
    return None


def _have_same_settings(
    text: str, settings: Settings, fill_defaults: FillDefaults, compared: Callable[[Settings], Settings]
) -> bool:
    """Returns whether a run's config is equal to these settings once today's defaults are filled in."""
    found, settings = compared(settings_in(text)), compared(settings)
    changed = [name for name in found.keys() & settings.keys() if found[name] != settings[name]]
    if not found or [name for name in changed if not name.endswith("class_path")]:
        return False  # defaults cannot make them equal, so the text need not be parsed
    try:
        return settings_identity(compared(fill_defaults(text))) == settings_identity(settings)
    except ConfigurationError:  # written by a release with options that no longer exist
        return False


def newest_intact_checkpoint(run: Path, config: str) -> tuple[Path | None, dict[str, Any]]:
    """Returns the newest checkpoint that is intact and belongs to the run, and warns about the others.

    Args:
        run: The run folder.
        config: The text of its `config.yaml`.

    Returns:
        The file and its content; `None` and an empty dictionary if there is no checkpoint yet.

    Raises:
        CheckpointError: If all checkpoints are damaged or belong to other runs, or if one cannot be read at the moment.
    """
    skipped = []
    for path in (run / CHECKPOINTS / name for name in NEWEST_FIRST if (run / CHECKPOINTS / name).is_file()):
        try:
            checkpoint = read_checkpoint(path)
        except UnreadableError:  # it may be intact, so an older one must not replace it
            raise
        except CheckpointError as error:
            skipped.append(str(error))
            continue
        if checkpoint.get(SETTINGS) != text_fingerprint(config):
            skipped.append(f"{path} belongs to another run.")
        elif not are_event_sizes(checkpoint.get(EVENT_SIZES)):
            skipped.append(f"{path} has malformed sizes of event files.")
        elif checkpoint.get(COMPLETE_STEP):
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


def are_event_sizes(found: Any) -> bool:
    """Returns whether a value in a checkpoint is a valid mapping of event file sizes, or `None` (older releases)."""
    if found is None:
        return True
    return isinstance(found, Mapping) and all(type(size) is int and size >= 0 for size in found.values())


def check_not_started(place: RunPlace, config: str, fill_defaults: FillDefaults) -> None:
    """Refuses to start a run that another process started after this one had looked for it.

    Args:
        place: Where the runs of these settings are; its folder is locked by `lock_starts`.
        config: The settings as YAML.
        fill_defaults: As in `find_interrupted_run`.

    Raises:
        ConfigurationError: If there is a run of these settings by now.
    """
    if (run := find_run(place.run_folders(), config, fill_defaults)) is not None:
        msg = (
            f"another process has just started the run {run} with the same settings; wait for it or stop it, then "
            "start the same command again."
        )
        raise ConfigurationError(msg)


def check_folder_is_unused(folder: Path) -> None:
    """Refuses to write a new run over another one.

    Args:
        folder: The folder of the new run.

    Raises:
        ConfigurationError: If the folder contains a run.
    """
    if (folder / CONFIG).exists():
        msg = (
            f"the run folder {folder} already contains a run; choose another trainer.logger.init_args.name or version, "
            "or move the folder away."
        )
        raise ConfigurationError(msg)


def rewind_run_folder(run: InterruptedRun) -> None:
    """Resets a run folder to the state of its checkpoint. Only the process that holds the lock may call this.

    Everything that was logged after the checkpoint is removed from TensorBoard's files, because it will be logged
    again. The table of `CSVLogger` is renamed, because `CSVLogger` would delete it. Damaged checkpoints that were
    skipped are renamed, too, so that they cannot replace an intact one. Incomplete drafts are deleted.

    Args:
        run: The result of `find_interrupted_run`.
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
    if run.event_sizes is not None:  # older releases did not save them
        truncate_event_files(run.folder, run.event_sizes)
