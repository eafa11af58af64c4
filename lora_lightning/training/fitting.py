"""One training run, from the first checks to the results: what `fit` and `lora_lightning.train` do."""

import errno
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.backbones.adapter_config import ADAPTER_CONFIG
from lora_lightning.backbones.base_model_id import name_base, write_base_name
from lora_lightning.backbones.saved_base import BASE_MODEL, check_base
from lora_lightning.compat.lightning import keep_signal_handlers
from lora_lightning.datamodules.base import TEST, VALIDATION
from lora_lightning.errors import (
    CheckpointError,
    ConfigurationError,
    DataError,
    LoraLightningError,
    TrainingError,
    TrainingStopped,
    VerificationError,
)
from lora_lightning.metrics import LabelSpace
from lora_lightning.runs.checkpoint import read_checkpoint
from lora_lightning.runs.files import write_error
from lora_lightning.runs.history import DATA, DATA_ROWS, RunHistory, read_json, write_summary
from lora_lightning.runs.layout import ADAPTER_FOLDER, CONFIG, FAILED_CHECK, run_folder_of
from lora_lightning.runs.lock import lock_run_folder, lock_starts
from lora_lightning.runs.place import ids_of
from lora_lightning.runs.processes import end_processes_together
from lora_lightning.runs.provenance import git_state, package_versions
from lora_lightning.runs.record import RunRecord
from lora_lightning.runs.resources import device_name
from lora_lightning.runs.resume import check_folder_is_unused, check_not_started, rewind_run_folder
from lora_lightning.runs.status_line import show_status
from lora_lightning.tasks.hyperparameters import hyperparameter_conflicts
from lora_lightning.tasks.optimization import count_trainable_parameters
from lora_lightning.training.announcements import announce_run, announce_skipped_test
from lora_lightning.training.checkpointing import AdapterCheckpoint
from lora_lightning.training.ending import (
    check_at_least_one_step,
    early_end_reason,
    no_best_reason,
    unvalidated_steps,
)
from lora_lightning.training.finite_loss import check_finite_losses
from lora_lightning.training.label_results import results_of_last_splits, write_label_scores
from lora_lightning.training.lightning_cli import LoraLightningCLI
from lora_lightning.training.logged_settings import LoggedSettings
from lora_lightning.training.option_checks import (
    check_monitor_is_reported,
    check_monitor_mode,
    check_step_options,
    check_writable,
)
from lora_lightning.training.run_card import complete_card
from lora_lightning.training.same_data import recorded_and_current
from lora_lightning.training.saved_config import RunConfigFile
from lora_lightning.training.scored_rows import SCORED_ROWS, in_words, scored_rows
from lora_lightning.training.step_boundary import StepBoundary
from lora_lightning.training.user_errors import explain_run_error
from lora_lightning.training.validation_schedule import check_validation_options

DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class TrainingRun:
    """Trains, tests the best checkpoint and writes the results. An object is used once.

    Args:
        cli: The parsed `fit` command with its trainer, task and data module.
    """

    def __init__(self, cli: LoraLightningCLI) -> None:
        self.cli, self.options, self.start = cli, cli.options, cli.start
        self.trainer, self.task, self.datamodule = cli.trainer, cli.model, cli.datamodule
        self.folder = run_folder_of(self.trainer)
        self.history: RunHistory | None = None
        self.failed_check: VerificationError | None = None
        self.seconds: dict[str, float] = {}
        self.metrics: dict[str, float] = {}  # of the best checkpoint, once it is tested
        self._notes = [f"note: {cli.scaling_note}"] if cli.scaling_note else []  # to print before training
        self._resources = ExitStack()  # the lock

    @property
    def is_fast_dev_run(self) -> bool:
        """Whether this is Lightning's trial run of a few batches, which writes nothing."""
        return bool(self.options.trainer.get("fast_dev_run"))

    def execute(self) -> RunRecord | None:
        """Runs all steps: checks, training, test, results.

        Returns:
            The finished run on the main process; `None` on other processes and after `fast_dev_run`.

        Raises:
            LoraLightningError: If options, data and model do not match, or training fails.
            RunFinished: If the run to resume is finished.
            VerificationError: If a check of the trained model failed. The results are written nevertheless.
            TrainingStopped: After a signal. The current step is finished and saved.
            KeyboardInterrupt: After a second Ctrl-C, which stops immediately.
        """
        self.check_finished_run()
        with self._resources, end_processes_together(self.trainer, "resume with the same command and --resume auto"):
            self.check_settings_and_data()
            self.prepare_folder()
            with self._record_ending():
                self.fit()
                self.metrics = self.test()
                self.write_results(self.metrics)
        if self.failed_check is not None:
            raise self.failed_check
        return None if self.is_fast_dev_run or not self.trainer.is_global_zero else RunRecord.load(self.folder)

    def check_settings_and_data(self) -> None:
        """Checks settings and data before a run folder is created."""
        show_status("reading data")
        self.task.check_data(self.datamodule)
        if (space := self.datamodule.label_space) is not None:
            self.task.adopt_labels(space)
        check_same_labels(self.start.labels, space, self.options.ckpt_path)
        self.task.check_settings()
        self.task.resumes = self.options.ckpt_path is not None
        self._name_base()
        if not self.task.resumes:
            self.task.check_adapter()
        check_monitor_mode(self.options.checkpoint.monitor, self.options.checkpoint.mode)
        self.datamodule.check_splits("fit")  # reads and checks the data, unless reading the labels has done so
        self._check_same_data()
        if self.start.interrupted is not None and self.task.resumes:
            self._check_same_adapter(self.start.interrupted.folder)
        names = self.task.metric_names()
        check_monitor_is_reported(self.options.checkpoint.monitor, self.datamodule.split_names("val"), names)
        check_step_options(self.options.trainer, self.options.early_stopping)
        check_validation_options(self.options.trainer)
        if self.options.trainer.limit_val_batches == 0:
            self._check_unchosen_threshold()
        self._compare_with_earlier_run()
        if self.trainer.local_rank == 0:
            self.datamodule.prepare_data()  # nothing is left to do when the trainer calls it

    def _check_unchosen_threshold(self) -> None:
        """Refuses a threshold that was asked for if nothing will choose it; warns of one that a task always has.

        Raises:
            ConfigurationError: If `model.decision_threshold` cannot be chosen.
        """
        if self.task.threshold_name == "label_threshold":
            msg = (
                "model.decision_threshold is best_f1, which validation chooses, but trainer.limit_val_batches is 0; "
                "validate, or leave model.decision_threshold out."
            )
            raise ConfigurationError(msg)
        if self.task.threshold_name is not None:
            infinite = "infinite: no query is out of scope, no question is left unanswered. Validate to choose it"
            kept = infinite if self.start.earlier is None else f"that of {self.start.earlier.checkpoint}"
            name = self.task.threshold_name
            rank_zero_warn(f"trainer.limit_val_batches is 0, so no validation chooses the {name}; it stays {kept}.")

    def _compare_with_earlier_run(self) -> None:
        """Keeps the scores of the run that `--ckpt_path` starts from, if they say something about this one."""
        if (earlier := self.start.earlier) is None:
            return
        why = earlier.why_not_comparable(self.cli.settings_text(), self.datamodule)
        boundary = self._callback(StepBoundary)
        boundary.starts_from_another_run, boundary.keeps_scores = True, not why
        self.checkpoint.earlier, self.checkpoint.keeps_score = earlier, not why
        self._notes.append(f"starting from {earlier.checkpoint} (step {earlier.steps})")
        if why:
            self._notes.append(
                f"note: the best checkpoint is chosen among the validations of this run alone, and early stopping "
                f"begins anew: the scores of the earlier run cannot be compared, because {why}"
            )
        elif earlier.best is None:
            self._notes.append("note: the earlier run has no best checkpoint here, so that of this run is its own")

    def _name_base(self) -> None:
        name, base = self.options.base_model_id, self.task.base_identity
        if name is None:
            return
        if base is None or self.task.lora is None:
            why = "the task makes its base model itself" if base is None else "a fully trained model needs no base"
            msg = f"base_model_id is {name!r}, but {why}; leave it out."
            raise ConfigurationError(msg)
        # A resumed run was allowed to name another base, or the hub's cache has got that only now: a warning says so.
        allowed = self.options.allow_other_base or self.task.resumes
        self.checkpoint.named_base = name_base(name, base, allowed=allowed, permission="--allow_other_base true")

    def check_finished_run(self) -> None:
        """Ends a resumption of a finished run, unless its results are those of another base, adapter or other data.

        Raises:
            CheckpointError: If the base model is another one, or the adapter that the run continued.
            DataError: If the data has changed.
            RunFinished: If there is nothing to resume.
            VerificationError: If there is nothing to resume, and the trained model failed a check.
        """
        interrupted = self.start.interrupted
        if interrupted is None or interrupted.ending is None:
            return
        self._check_same_data()
        saved = {BASE_MODEL: RunRecord.load(interrupted.folder).base_model}
        task, allowed = self.task, self.options.allow_other_base
        check_base(
            saved, task.base_identity, f"the run {interrupted.folder}", is_frozen=task.base_is_frozen, allowed=allowed
        )
        self._check_same_adapter(interrupted.folder)
        self._check_finished_name(interrupted.folder)
        raise interrupted.ending

    def _check_same_adapter(self, folder: Path) -> None:
        """Refuses to resume a run that continued other weights than `model.adapter` has now; they may be gone."""
        saved = (RunRecord.load(folder).continued_from or {}).get("weights")
        try:
            adapter = self.task.continued_adapter
        except LoraLightningError:  # what was trained so far needs it no more
            return
        if saved is None or adapter is None or (now := adapter.provenance()["weights"]) == saved:
            return
        msg = (
            f"the run {folder} continued the adapter {adapter.source}, whose weights have changed since (SHA-256 "
            f"{saved} then, {now} now). Restore the adapter, or start a new run without --resume."
        )
        raise CheckpointError(msg)

    def _check_finished_name(self, folder: Path) -> None:
        """Refuses to give a base another name in a run that is finished, rather than to ignore the option."""
        name, path = self.options.base_model_id, folder / ADAPTER_FOLDER / ADAPTER_CONFIG
        if name is None or not path.is_file():
            return
        if (named := read_json(path).get("base_model_name_or_path")) != name:
            msg = (
                f"the run {folder} is finished, and its adapter names {named!r} as its base; write a copy with "
                f"lora-lightning export {folder} --output DIR --base_model_id {name}"
            )
            raise ConfigurationError(msg)

    def _check_same_data(self) -> None:
        """Refuses to resume a run on other rows than it has seen so far."""
        interrupted = self.start.interrupted
        if interrupted is None or self.options.allow_changed_data:
            return
        record = RunRecord.load(interrupted.folder)
        saved, now = recorded_and_current(record, self.datamodule)
        if not saved:
            rank_zero_warn(
                f"the run {interrupted.folder} was started by a release that did not record the content of its data, "
                "so it is not known whether the data is still the same."
            )
            return
        if changed := [split for split in {**saved, **now} if saved.get(split) != now.get(split)]:
            doubt = ", or an earlier release read the same files otherwise" if record.has_former_hashes else ""
            msg = (
                f"the data of the run {interrupted.folder} has changed since it started: other rows in the split "
                f"{', '.join(changed)}{doubt}. Restore the data, start a new run without --resume, or set "
                "--allow_changed_data true."
            )
            raise DataError(msg)

    def prepare_folder(self) -> None:
        """Takes the run's folder, and brings it back to the checkpoint of a run that is resumed."""
        if not self.trainer.is_global_zero or self.is_fast_dev_run:
            return
        with self._add_resume_hint():
            check_writable(self.folder)
            if self.start.interrupted is None:
                self._start_run()
            else:
                self._lock_folder()
                rewind_run_folder(self.start.interrupted)
            self.history = RunHistory(self.folder)
            self.history.start(self._session_facts())
        interrupted = self.start.interrupted
        checkpoint = None if interrupted is None else interrupted.checkpoint
        announce_run(self.folder, self.trainer, self.datamodule.split_sizes(), checkpoint, self._notes)
        if (named := self.checkpoint.named_base) is not None and named.comparison != "same":
            rank_zero_warn(named.sentence)

    def _start_run(self) -> None:
        """Takes a new folder; `config.yaml` shows from then on whose it is."""
        place, names_itself = self.cli.place, self.options.resume is not None and self.cli.place.version is None
        with lock_starts(self.folder.parent) if names_itself else nullcontext():
            if names_itself:
                check_not_started(place, self.cli.settings_text(), self.cli.fill_defaults)
            self._lock_folder()
            check_folder_is_unused(self.folder)
            self._callback(RunConfigFile).write(self.folder)

    def _lock_folder(self) -> None:
        self._resources.callback(lock_run_folder(self.folder).release)

    def _session_facts(self) -> dict[str, Any]:
        device = self.trainer.strategy.root_device
        return {
            "continued_from": self._continued_from(),
            "versions": package_versions(),
            "git": git_state(Path.cwd()),
            DATA: self.datamodule.former_fingerprint,
            DATA_ROWS: self.datamodule.fingerprint,
            BASE_MODEL: None if self.task.base_identity is None else self.task.base_identity.as_dict(),
            "device": str(device.type),
            "device_name": device_name(device),
            "processes": self.trainer.world_size,
            "loggers": ids_of(self.trainer.loggers),
        }

    def _continued_from(self) -> Mapping[str, str | None] | None:
        """Which adapter the run started from; a resumed run's adapter may be gone or may have changed since."""
        if self.start.interrupted is not None and self.task.resumes:
            return RunRecord.load(self.folder).continued_from
        return None if self.task.continued_adapter is None else self.task.continued_adapter.provenance()

    def fit(self) -> None:
        """Trains. If a check of the trained model fails, the error is kept until the results are written.

        Raises:
            TrainingStopped: After a signal; the message says how to resume. The current step is finished and saved.
            TrainingError: If the disk is full, the run folder has disappeared, or no step was taken.
            KeyboardInterrupt: After a second Ctrl-C; the message says how to resume. Lightning has cleaned up.
        """
        show_status("loading weights")
        keep_signal_handlers(self.trainer)
        try:
            with self._add_resume_hint(), self._measure_seconds("fit_seconds"):
                self.trainer.fit(self.task, self.datamodule, ckpt_path=self.options.ckpt_path, weights_only=True)
        except VerificationError as error:
            if not self.checkpoint.exported_path:
                raise
            self.failed_check = error
        check_at_least_one_step(self.trainer, self.start.earlier)

    def test(self) -> dict[str, float]:
        """Tests the exported weights unless the options or the data say otherwise.

        Returns:
            The validation metrics of the best epoch and the test metrics, by tag.
        """
        metrics = dict(self.checkpoint.best_metrics)
        chosen = self.checkpoint.exported_path
        if self.is_fast_dev_run or not self.options.test_after_fit or not chosen:
            return metrics
        if not self.datamodule.split_names("test"):
            share = "; --data.test_share 0.2 would test on a fifth of the training rows"
            remedy = share if hasattr(self.datamodule, "test_share") else ""
            announce_skipped_test(self.trainer, self.datamodule.without_test + remedy)
            return metrics
        read_checkpoint(chosen)  # a resumed run's may lie anywhere
        with self._add_resume_hint(), self._measure_seconds("test_seconds"):
            self.trainer.test(self.task, self.datamodule, ckpt_path=chosen, verbose=False, weights_only=True)
        tested = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        check_finite_losses(tested, chosen)
        if self.trainer.is_global_zero:
            for split, found in results_of_last_splits(self.trainer).items():
                write_label_scores(self.folder, split, found.scores)
        return metrics | tested

    def write_results(self, metrics: dict[str, float]) -> None:
        """Writes `summary.json`, which marks the run as finished.

        Args:
            metrics: Values by tag.

        Raises:
            TrainingError: If the file cannot be written.
        """
        if self.is_fast_dev_run or not self.trainer.is_global_zero:
            return
        trained, total = count_trainable_parameters(self.task)
        summary: dict[str, Any] = {
            "metrics": metrics,
            "trained_parameters": trained,
            "total_parameters": total,
            "steps": self.trainer.global_step,
            "monitor": None,
        }
        if best := self.checkpoint.best_model_path:
            summary |= {"monitor": self.checkpoint.monitor, "best_checkpoint": _relative_to(self.folder, best)}
            summary |= {"best_of_earlier_run": str(adopted)} if (adopted := self.checkpoint.adopted) else {}
        else:
            summary["no_best_checkpoint"] = self.no_best_reason
        if self.not_validated:
            summary["not_validated"] = self.not_validated
        if rows := self.limited_rows(metrics):
            summary[SCORED_ROWS] = rows
        if self.ended_early:
            summary["ended_early"] = self.ended_early
        if self.failed_check is not None:
            summary[FAILED_CHECK] = str(self.failed_check)
        self._complete_card(metrics)  # before the summary, which marks the run as finished
        write_summary(self.folder, summary)

    def _complete_card(self, metrics: Mapping[str, float]) -> None:
        folder = self.checkpoint.adapter_folder
        if folder is None:
            return
        record, rows = RunRecord.load(self.folder), self.datamodule.split_sizes()
        last = f"These are the weights of the last step: {self.no_best_reason}."
        chosen_by = last if self.no_best_reason else f"The checkpoint was chosen by `{self.checkpoint.monitor}`."
        if self.checkpoint.adopted is not None:
            chosen_by += " It is that of the run from which this one started: no later validation was better."
        more = [sentence for sentence in (self.not_validated, in_words(self.limited_rows(metrics))) if sentence]
        chosen_by += "".join(f" {sentence[0].upper()}{sentence[1:]}." for sentence in more)
        if self.failed_check is not None:
            chosen_by += f" A check of the trained model FAILED: {self.failed_check}"
        rows_a_step = self.datamodule.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches
        try:
            if (named := self.checkpoint.named_base) is not None:
                write_base_name(folder, named)  # an earlier session may have exported it under another name
            complete_card(record, folder, metrics, rows, self.datamodule.hub_dataset, chosen_by, rows_a_step)
        except OSError as error:
            raise write_error(self.folder, error) from error

    @property
    def ended_early(self) -> str:
        """The reason why training ended before its last step; empty if it did not."""
        return early_end_reason(self.trainer)

    @property
    def not_validated(self) -> str:
        """That training went on after its last validation; empty if it did not."""
        return unvalidated_steps(self.trainer, self.checkpoint)

    def limited_rows(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """How many rows the metrics are of, by split, where a limit of batches left some out.

        Args:
            metrics: Values by tag.
        """
        kinds = [kind for kind in (VALIDATION, TEST) if any(tag.startswith(kind) for tag in metrics)]
        counted = [scored_rows(self.trainer, self.datamodule, kind) for kind in kinds]
        return {name: text for rows in counted for name, text in rows.items()}

    @property
    def no_best_reason(self) -> str:
        """Why no validation decided which checkpoint is the best; empty if one did."""
        return "" if self.checkpoint.best_model_path else no_best_reason(self.trainer, self.checkpoint)

    @property
    def checkpoint(self) -> AdapterCheckpoint:
        """The callback that saves the best checkpoint."""
        return cast("AdapterCheckpoint", self._callback(AdapterCheckpoint))

    def _callback(self, kind: Any) -> Any:
        return next(found for found in self.trainer.callbacks if isinstance(found, kind))  # type: ignore[attr-defined]

    @contextmanager
    def _measure_seconds(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(time.monotonic() - start, 3)

    @contextmanager
    def _record_ending(self) -> Iterator[None]:
        """Records in `run.json` how the session ended, including failures."""
        try:
            yield
        except (TrainingStopped, KeyboardInterrupt) as stop:
            self._end_session("interrupted", _name_of_signal(stop))
            raise
        except Exception as error:
            told = explain_run_error(error) or error
            self._end_session("failed", " ".join(str(told).split()) or type(error).__name__)
            raise
        self._end_session("failed" if self.failed_check else "finished", str(self.failed_check or ""))

    def _end_session(self, ending: Any, reason: str) -> None:
        if self.history is None or not self.folder.is_dir():
            return
        try:
            self.history.end(ending, reason, steps=self.trainer.global_step, **self.seconds)
        except LoraLightningError:  # such as a full disk; the first failure is the one to report
            if ending == "finished":
                raise
        metrics = self.metrics or self.checkpoint.best_metrics
        try:
            self._callback(LoggedSettings).end(self.trainer, ending, metrics)
        except Exception as error:
            if ending == "finished":
                raise explain_run_error(error) or error from error

    @contextmanager
    def _add_resume_hint(self) -> Iterator[None]:
        try:
            yield
        except TrainingStopped as stop:
            stop.resume_hint = self._resume_hint()
            raise
        except SystemExit:  # how Lightning ends after Ctrl-C
            if not self.trainer.interrupted:
                raise
            raise KeyboardInterrupt(self._resume_hint()) from None
        except OSError as error:
            if error.errno in DISK_ERRORS:
                raise write_error(Path(error.filename or self.folder), error) from error
            gone = isinstance(error, FileNotFoundError) and _is_path_in(self.folder, error.filename)
            if not self.trainer.is_global_zero or (self.folder.exists() and not gone):
                raise  # other processes do not know the folder
            msg = (
                f"the run folder {self.folder} disappeared while a file in it was being written ({error.strerror}); "
                "run the same command with --resume auto, which resumes from what has been saved since, or starts from "
                "scratch."
            )
            raise TrainingError(msg) from error

    def _resume_hint(self) -> str:
        if not self.trainer.is_global_zero:
            return ""  # only the main process knows the folder, and it prints the hint
        if not (config := self.folder / CONFIG).exists():
            return "nothing was saved, so start again"
        return f"resume with: {shlex.join(['lora-lightning', 'fit', '--config', str(config), '--resume', 'auto'])}"


def check_same_labels(saved: LabelSpace | None, space: LabelSpace | None, path: str | None) -> None:
    """Compares the labels of a checkpoint with those of the data before any weights load.

    Args:
        saved: Labels of the checkpoint.
        space: Labels of the data.
        path: Name of the checkpoint for the message.

    Raises:
        CheckpointError: If they differ.
    """
    if saved is None or space is None:
        return
    here, there = ({"label_space": asdict(labels)} for labels in (space, saved))
    if found := hyperparameter_conflicts(there, here, structural_only=True):
        msg = (
            f"the labels of the checkpoint {path} differ from those of the data: {'; '.join(found)}. Use data with the "
            "checkpoint's labels, or a checkpoint that was trained on this data."
        )
        raise CheckpointError(msg)


def _name_of_signal(stop: BaseException) -> str:
    return stop.received.name if isinstance(stop, TrainingStopped) else "SIGINT"


def _relative_to(folder: Path, path: str) -> str:
    """Returns a path relative to the run folder, which may then be moved; unchanged if it is outside the folder."""
    found = Path(path).absolute()
    return str(found.relative_to(folder.absolute())) if folder.absolute() in found.parents else path


def _is_path_in(folder: Path, filename: Any) -> bool:
    """Returns whether the file name in an error, text or bytes (TensorBoard), is inside a folder."""
    return isinstance(filename, str | bytes) and folder.absolute() in Path(os.fsdecode(filename)).absolute().parents
