"""What has happened to each trial of a study: an Optuna study in a journal file or a database, and claims of workers.

A trial is alive while its worker holds its claim, a lock that the system releases when the worker is killed; Optuna's
journal files have no heartbeat. A worker takes the claim first, then the trial, so that no trial has two workers.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from filelock import FileLock, Timeout
from optuna.pruners import MedianPruner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from lora_lightning.errors import TrainingError
from lora_lightning.runs.files import write_error
from lora_lightning.runs.lock import is_lock_held
from lora_lightning.studies.search import SearchRun, search_distributions
from lora_lightning.studies.specification import Study
from lora_lightning.studies.storage import check_shared_folder, open_storage, shown_url, storage_errors
from lora_lightning.studies.study_folder import StudyFolder
from lora_lightning.studies.trials import Trial

ID, CONFIGURATION, SEED, OPTIONS, ERROR = "id", "configuration", "seed", "options", "error"
SUGGESTION, SECONDS = "suggestion", "seconds"
SECONDS_BEFORE = "seconds_before_stop"  # of earlier workers, which were stopped; the next one resumes the trial
SPENT = (SECONDS_BEFORE, SECONDS)
ENDED_AT = "ended_at"  # in seconds since 1970; Optuna's own times lack the time zone of the worker that wrote them
SEARCH_BUDGET = "search_ended_by_budget"  # an attribute of the study
State = Literal["waiting", "running", "interrupted", "finished", "pruned", "failed"]
ENDED = frozenset({"finished", "pruned", "failed"})  # the states that no worker changes any more


@dataclass
class Claim:
    """A trial that this process may run.

    Attributes:
        trial: The trial.
        lock: Held until the claim is released.
    """

    trial: Trial
    lock: FileLock


@dataclass(frozen=True)
class TrialStatus:
    """What the journal knows about a trial.

    Attributes:
        state: `interrupted` if its worker was stopped or killed; the next worker resumes it. `pruned` if the search
            ended it early.
        value: The metric that decides; `None` until it is finished.
        error: Why it failed; empty otherwise.
        seconds: From its start to its end; `None` until it has ended.
        ended_at: When it ended, in seconds since 1970; `None` until then.
    """

    state: State
    value: float | None = None
    error: str = ""
    seconds: float | None = None
    ended_at: float | None = None


class StudyJournal:
    """The trials of a study.

    Args:
        folder: The study's folder, which exists.
        name: Name of the study.
        storage: URL of a database that has the trials instead of the journal file.
        higher_is_better: Whether larger values of the metric are better; counts when the journal is created.
        create: Whether to create the journal if there is none. Otherwise, opening it writes nothing.

    Raises:
        ConfigurationError: If the database does not answer, or has a study of this name with another folder.
        TrainingError: If the journal cannot be read or written, or is gone.
    """

    def __init__(
        self,
        folder: StudyFolder,
        name: str,
        storage: str | None = None,
        *,
        higher_is_better: bool = True,
        create: bool = True,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder = folder
        is_gone = not create and storage is None and not folder.journal.exists()
        if not is_gone:
            self._storage = open_storage(folder, storage, writes=create)
        direction = StudyDirection.MAXIMIZE if higher_is_better else StudyDirection.MINIMIZE
        with storage_errors(folder):
            if is_gone or (not create and name not in optuna.get_all_study_names(self._storage)):
                place = folder.journal if storage is None else shown_url(storage)
                msg = f"the trials of the study {name} are gone from {place}; restore it, or run the study again with "
                msg += "`study run`"
                raise TrainingError(msg)
            if create:
                self._study = optuna.create_study(
                    storage=self._storage, study_name=name, load_if_exists=True, direction=direction
                )
            else:  # which writes no line
                self._study = optuna.load_study(study_name=name, storage=self._storage)
        if storage is not None:
            check_shared_folder(self._study, folder, storage)

    def add_trials(self, trials: Iterable[Trial]) -> None:
        """Adds the trials that the journal lacks. To be called while the folder is locked.

        Args:
            trials: The trials.

        Raises:
            TrainingError: If a run of a search is lacking: only `add_suggestion` knows its parameters, without which
                nothing could read the search any more.
        """
        known = self._newest()
        for trial in trials:
            if trial.id not in known and trial.suggestion is not None:
                msg = f"the run {trial.title!r} in the journal of {self.folder.path} has other settings than the study "
                msg += "there gives it now; restore the study's file, or give the study another name"
                raise TrainingError(msg)
            if trial.id not in known:
                self._add(trial)

    def lost(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials that have finished, and whose run folders are gone."""
        known, ended = self._newest(), {TrialState.COMPLETE, TrialState.PRUNED}
        finished = [trial for trial in trials if trial.id in known and known[trial.id].state in ended]
        return [trial for trial in finished if not self.folder.run(trial).exists()]

    def add_again(self, trials: Iterable[Trial]) -> None:
        """Adds trials that have ended once more. To be called while the folder is locked."""
        known = self._newest()
        for trial in trials:
            if trial.id in known and known[trial.id].state.is_finished():
                self._add(trial, known[trial.id].params, known[trial.id].distributions)

    def add_suggestion(self, trial: Trial, values: Mapping[str, Any], study: Study) -> None:
        """Adds a run of a search with its parameters. To be called while the folder is locked.

        Args:
            trial: The trial.
            values: By axis: the label of a value, or a number for a range.
            study: The study, with the axes.
        """
        self._add(trial, values, search_distributions(study))

    def _add(
        self, trial: Trial, values: Mapping[str, Any] | None = None, distributions: Mapping[str, Any] | None = None
    ) -> None:
        facts = {ID: trial.id, CONFIGURATION: trial.configuration, SEED: trial.seed, OPTIONS: dict(trial.options)}
        facts |= {} if trial.suggestion is None else {SUGGESTION: trial.suggestion}
        added = create_trial(
            state=TrialState.WAITING,
            user_attrs=facts,
            params=dict(values or {}),
            distributions=dict(distributions or {}),
        )
        with storage_errors(self.folder):
            self._study.add_trial(added)

    def search_runs(self) -> list[SearchRun]:
        """Reads the runs of a search, in the order in which they were suggested."""
        return [_search_run(found) for found in self._newest().values() if SUGGESTION in found.user_attrs]

    def spent_seconds(self, *, only_complete: bool = False) -> list[float]:
        """Reads the seconds of each attempt that has ended or was stopped, also of trials that were repeated later.

        Args:
            only_complete: Whether to leave out attempts that failed, were ended early, or are to be resumed.
        """
        attempts = [each for each in self._attempts() if not only_complete or each.state == TrialState.COMPLETE]
        parts = [[float(each.user_attrs[key]) for key in SPENT if key in each.user_attrs] for each in attempts]
        return [sum(own) for own in parts if own]

    @property
    def search_budget(self) -> float:
        """The budget in hours that has ended the search, so that a winner was chosen; 0 if none has."""
        with storage_errors(self.folder):
            return float(self._study.user_attrs.get(SEARCH_BUDGET, 0.0))

    def end_search(self, budget: float) -> None:
        """Records that a budget has ended the search. To be called while the folder is locked.

        Args:
            budget: In hours; a larger one continues the search.
        """
        with storage_errors(self.folder):
            self._study.set_user_attr(SEARCH_BUDGET, budget)

    def claim_next(self, trials: Sequence[Trial], *, only_interrupted: bool = False) -> Claim | None:
        """Claims the first trial that is waiting or was interrupted.

        Args:
            trials: The trials of the study, in order.
            only_interrupted: Whether to start none that is waiting.

        Returns:
            The claim; `None` if all trials are finished, failed, or claimed by other workers.
        """
        known = self._newest()
        for trial in trials:
            if trial.id not in known or known[trial.id].state.is_finished():
                continue
            if only_interrupted and known[trial.id].state == TrialState.WAITING:
                continue
            if claim := self._claim(trial):
                return claim
        return None

    def _claim(self, trial: Trial) -> Claim | None:
        lock = FileLock(self.folder.claim(trial))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        except OSError as error:
            raise write_error(self.folder.claim(trial), error) from error
        found = self._newest()[trial.id]  # another worker may have finished it before the claim
        if found.state.is_finished():
            lock.release()
            return None
        if found.state == TrialState.WAITING:
            self._set_state(found, TrialState.RUNNING)
        return Claim(trial, lock)

    def report(self, claim: Claim, step: int, value: float) -> bool:
        """Records the metric of a run of a search after a validation.

        Args:
            claim: The claim.
            step: Number of optimizer steps.
            value: The metric.

        Returns:
            Whether the run is worse than the median of the others at this step, and should end.
        """
        found = self._newest()[claim.trial.id]
        with storage_errors(self.folder):
            self._storage.set_trial_intermediate_value(self._id(found), step, value)
            reported = self._storage.get_trial(self._id(found))
            memory = optuna.create_study(direction=self._study.direction)
        # Of a run that was repeated only the newest attempt counts, and tested runs do not: their seeds are others.
        search = [run for run in self._newest().values() if SUGGESTION in run.user_attrs]
        memory.add_trials([run for run in search if run.state == TrialState.COMPLETE])
        return MedianPruner().prune(memory, reported)

    def finish(self, claim: Claim, value: float, seconds: float = 0.0, *, pruned: bool = False) -> None:
        """Records the result of a trial, and releases its claim.

        Args:
            claim: The claim.
            value: The metric that decides.
            seconds: That this worker spent on it.
            pruned: Whether the search ended it early.
        """
        self._end(claim, TrialState.PRUNED if pruned else TrialState.COMPLETE, {SECONDS: seconds}, [value])

    def fail(self, claim: Claim, error: str, seconds: float = 0.0) -> None:
        """Records why a trial failed, and releases its claim.

        Args:
            claim: The claim.
            error: A sentence.
            seconds: That this worker spent on it.
        """
        self._end(claim, TrialState.FAIL, {ERROR: error, SECONDS: seconds})

    def stop(self, claim: Claim, seconds: float) -> None:
        """Records the time of a worker that stops before its trial has ended, since it counts for the budget.

        Args:
            claim: The claim, which stays.
            seconds: That this worker spent on it.
        """
        found = self._newest()[claim.trial.id]
        total = float(found.user_attrs.get(SECONDS_BEFORE, 0.0)) + seconds
        with storage_errors(self.folder):
            self._storage.set_trial_user_attr(self._id(found), SECONDS_BEFORE, total)

    def _end(
        self, claim: Claim, state: TrialState, facts: Mapping[str, Any], values: Sequence[float] | None = None
    ) -> None:
        found = self._newest()[claim.trial.id]
        with storage_errors(self.folder):
            for name, fact in {**facts, ENDED_AT: time.time()}.items():
                self._storage.set_trial_user_attr(self._id(found), name, fact)
        self._set_state(found, state, values)
        claim.lock.release()

    def statuses(self, trials: Sequence[Trial]) -> dict[str, TrialStatus]:
        """Reads the state of each trial.

        Args:
            trials: The trials of the study.

        Returns:
            By id; `waiting` for a trial that is not in the journal yet.
        """
        return self._statuses(trials, self._newest())

    def snapshot(self) -> Callable[[Sequence[Trial]], dict[str, TrialStatus]]:
        """Reads the journal once, for decisions that depend on several trials.

        Returns:
            A function like `statuses`, of the trials as they were at one moment.
        """
        known = self._newest()
        return lambda trials: self._statuses(trials, known)

    def _statuses(self, trials: Sequence[Trial], known: Mapping[str, FrozenTrial]) -> dict[str, TrialStatus]:
        return {
            trial.id: self._status(trial, known[trial.id]) if trial.id in known else TrialStatus("waiting")
            for trial in trials
        }

    def _status(self, trial: Trial, found: FrozenTrial) -> TrialStatus:
        seconds = None if found.duration is None else found.duration.total_seconds()
        ended_at = found.user_attrs.get(ENDED_AT)
        if ended_at is None and found.datetime_complete is not None:  # of an earlier release
            ended_at = found.datetime_complete.timestamp()
        if found.state == TrialState.COMPLETE:
            return TrialStatus("finished", found.value, seconds=seconds, ended_at=ended_at)
        if found.state == TrialState.FAIL:
            return TrialStatus("failed", error=str(found.user_attrs.get(ERROR, "")), seconds=seconds, ended_at=ended_at)
        if found.state == TrialState.PRUNED:
            return TrialStatus("pruned", found.value, seconds=seconds, ended_at=ended_at)
        if found.state == TrialState.WAITING:
            return TrialStatus("waiting")
        return TrialStatus("running" if is_lock_held(self.folder.claim(trial), if_unknown=True) else "interrupted")

    def _newest(self) -> Mapping[str, FrozenTrial]:
        """The newest attempt of each trial, by id."""
        return {trial.user_attrs[ID]: trial for trial in self._attempts()}

    def _attempts(self) -> Sequence[FrozenTrial]:
        """All attempts of all trials, oldest first."""
        with storage_errors(self.folder):
            return self._study.get_trials(deepcopy=False)

    def _set_state(self, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None = None) -> None:
        with storage_errors(self.folder):
            self._storage.set_trial_state_values(self._id(trial), state, values)

    def _id(self, trial: FrozenTrial) -> int:
        study = self._storage.get_study_id_from_name(self._study.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, trial.number)


def _search_run(found: FrozenTrial) -> SearchRun:
    return SearchRun(
        suggestion=int(found.user_attrs[SUGGESTION]),
        values=found.params,
        seed=int(found.user_attrs[SEED]),
        state=found.state if found.state.is_finished() else TrialState.RUNNING,
        value=found.value if found.state == TrialState.COMPLETE else None,
        reports=found.intermediate_values,
    )
