"""A study in its folder: which trials it has, which one is next, and what is chosen so far."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn
from optuna.trial import TrialState

from lora_lightning.errors import ConfigurationError, few_names
from lora_lightning.studies.added_later import AddedLater, additions
from lora_lightning.studies.journal import ENDED, Claim, StudyJournal, TrialStatus
from lora_lightning.studies.learning_rates import Statuses, chosen_rates, configurations_without_rate, further_trials
from lora_lightning.studies.plan import StudyPlan
from lora_lightning.studies.repeated_trials import add_lost_trials, retry_failed_trials
from lora_lightning.studies.search import (
    SearchRun,
    Suggestion,
    is_exhausted,
    next_suggestion,
    runs_left_out,
    search_trial,
    winning_values,
)
from lora_lightning.studies.study_folder import STUDY, StudyFolder, load_plan, load_tags
from lora_lightning.studies.trial_runs import CheckedStudy, study_metric
from lora_lightning.studies.trials import Configuration, Trial

HOUR = 3600.0


@dataclass(frozen=True)
class OpenStudy:
    """A study whose folder and journal have all its trials.

    Attributes:
        planned: The study, as its YAML describes it.
        folder: Its folder.
        journal: Its journal.
        tag: The metric that decides, with its split.
        validation_tag: The metric that chooses learning rates, with its split.
    """

    planned: StudyPlan
    folder: StudyFolder
    journal: StudyJournal
    tag: str
    validation_tag: str

    def refreshed(self) -> "OpenStudy":
        """The study as its folder has it now: another `study run` may have added seeds, values or trials to it."""
        return replace(self, planned=load_plan(self.folder.path))

    @property
    def plan(self) -> StudyPlan:
        """The study with what is chosen so far: learning rates, or suggestions of its search and their winner."""
        if self.planned.study.search is None:
            return self._with_rates()
        runs = self.journal.search_runs()
        suggested = [Suggestion(run.suggestion, run.values, run.seed) for run in runs]
        tried = [search_trial(self.planned.study, each) for each in suggested]
        is_over = self.is_search_over(runs)
        return self.planned.with_search(tried, self.winner(runs) if is_over else None, is_over=is_over)

    @property
    def has_winner(self) -> bool:
        """Whether a search has chosen the configuration that is tested beside the reference."""
        runs = self.journal.search_runs() if self.planned.study.search is not None else []
        return bool(runs) and self.is_search_over(runs) and self.winner(runs) is not None

    @property
    def higher_is_better(self) -> bool:
        """Whether larger values of the metric that decides are better."""
        return study_metric(self.planned, self.tag).higher_is_better

    def rates(self) -> dict[str, float]:
        """The chosen learning rates by configuration; empty for a study that chooses none."""
        if self.planned.study.learning_rate is None:
            return {}
        statuses_of = self.journal.snapshot()
        plan = self._with_further_rates(statuses_of)
        return chosen_rates(plan, statuses_of(plan.trials), higher_is_better=self.higher_is_better)

    def _with_further_rates(self, statuses_of: Statuses) -> StudyPlan:
        """The study with the runs that try learning rates beyond its own."""
        further = further_trials(self.planned, statuses_of, higher_is_better=self.higher_is_better)
        return self.planned.with_further_rates(further)

    def _with_rates(self) -> StudyPlan:
        """The study with the tested runs of the configurations whose learning rate is chosen.

        One look at the journal decides both whether a configuration tries further rates and which one it gets: a run
        that ends in between could otherwise make a rate the best one before those beyond it are tried.
        """
        if self.planned.study.learning_rate is None:
            return self.planned
        statuses_of = self.journal.snapshot()
        plan = self._with_further_rates(statuses_of)
        statuses = statuses_of(plan.trials)
        rates = chosen_rates(plan, statuses, higher_is_better=self.higher_is_better)
        return plan.with_rates(rates, configurations_without_rate(plan, statuses))

    def is_search_over(self, runs: Sequence[SearchRun]) -> bool:
        """Whether all runs of a search have ended, and no other one will be suggested."""
        if any(run.state == TrialState.RUNNING for run in runs):
            return False
        return not self._may_suggest(runs)

    def winner(self, runs: Sequence[SearchRun]) -> Mapping[str, Any] | None:
        """The values of the best configuration so far; `None` if none was trained to its end."""
        return winning_values(self.planned.study, runs, higher_is_better=self.higher_is_better)

    def statuses(self) -> dict[str, TrialStatus]:
        """The state of each known trial, by id."""
        return {trial.id: status for trial, status in self.known_trials()}

    def known_trials(self) -> list[tuple[Trial, TrialStatus]]:
        """Each known trial with its state."""
        trials = self.plan.trials  # once: other workers may add some
        statuses = self.journal.statuses(trials)
        return [(trial, statuses[trial.id]) for trial in trials]

    def is_alone(self, trial: Trial, since: float = math.inf) -> bool:
        """Whether no other trial is running, or has ended since a time, in seconds since 1970."""
        others = (status for name, status in self.statuses().items() if name != trial.id)
        if any(status.state == "running" or (status.ended_at or 0.0) > since for status in others):
            return False
        # A trial that was stopped or killed meanwhile has not ended, but it has written how far it was.
        return not any(time > since for name, time in self.folder.progress_times().items() if name != trial.id)

    def claim_next(self) -> Claim | None:
        """Claims the next trial: runs that help to choose first, then those that are tested.

        Returns:
            The claim; `None` if no trial can run now.
        """
        trials = self._known_trials()
        only_interrupted = self.is_over_budget
        claim = self.journal.claim_next(
            [trial for trial in trials if not trial.is_tested], only_interrupted=only_interrupted
        )
        if claim is None and (suggested := self._suggest()) is not None:
            claim = self.journal.claim_next([suggested])
        tested = [trial for trial in trials if trial.is_tested]
        return claim or self.journal.claim_next(tested, only_interrupted=only_interrupted)

    @property
    def configurations_left(self) -> list[Configuration]:
        """The configurations of which not all known trials have ended; all, if a search or a rate may add some."""
        plan, open_ended = self.planned, self.planned.study.search is not None or self.planned.study.learning_rate
        left = {trial.configuration for trial, status in self.known_trials() if status.state not in ENDED}
        return [each for each in plan.configurations if open_ended or each.name in left]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to run, or, beyond the budget, nothing is running."""
        plan = self.plan
        states = list(self.journal.statuses(plan.trials).values())
        if self.is_over_budget and not any(status.state == "running" for status in states):
            return True
        return plan.further == 0 and self.plan.trials == plan.trials and all(status.state in ENDED for status in states)

    @property
    def runs_not_tried(self) -> int:
        """Number of runs that a search would have tried beside those of `plan`, had its budget not ended it."""
        if self.planned.study.search is None:
            return 0
        runs = self.journal.search_runs()
        return runs_left_out(self.planned.study, runs) if self.is_search_over(runs) else 0

    @property
    def is_over_budget(self) -> bool:
        """Whether the budget is spent, so that no further run is started."""
        budget = self.planned.study.budget
        return budget is not None and sum(self.journal.spent_seconds()) >= budget * HOUR

    def _known_trials(self) -> tuple[Trial, ...]:
        """The trials that can run now; the journal has them afterwards."""
        if self.planned.study.learning_rate is None and self.planned.study.search is None:
            return self.plan.trials
        with self.folder.locked():
            self._end_search_by_budget()
            trials = self.plan.trials
            self.journal.add_trials(trials)
        return trials

    def _end_search_by_budget(self) -> None:
        """Records that the budget ends the search: tested runs that are short or fail do not continue it."""
        budget = self.planned.study.budget
        if self.planned.study.search is None or budget is None or self.journal.search_budget >= budget:
            return
        runs = self.journal.search_runs()
        if self.is_search_over(runs) and not is_exhausted(self.planned.study, runs):
            self.journal.end_search(budget)

    def _suggest(self) -> Trial | None:
        """Adds the next run of a search to the journal."""
        if self.planned.study.search is None:
            return None
        with self.folder.locked():
            runs = self.journal.search_runs()
            if not self._may_suggest(runs):
                return None
            suggestion = next_suggestion(self.planned.study, runs, higher_is_better=self.higher_is_better)
            if suggestion is None:
                return None
            trial = search_trial(self.planned.study, suggestion)
            self.journal.add_suggestion(trial, suggestion.values, self.planned.study)
            return trial

    def _may_suggest(self, runs: Sequence[SearchRun]) -> bool:
        """Whether something is left to try, and the budget lasts for it beside the runs that are tested."""
        if is_exhausted(self.planned.study, runs):
            return False
        budget = self.planned.study.budget
        spent = self.journal.spent_seconds()
        if budget is None or not runs or not spent:
            return True
        if self.journal.search_budget >= budget:
            return False
        complete = self.journal.spent_seconds(only_complete=True) or spent  # those ended early are shorter
        reference = self.journal.statuses(self.planned.tested).values()
        tested = 2 * len(self.planned.study.seeds) - sum(status.state in ENDED for status in reference)
        running = sum(run.state == TrialState.RUNNING for run in runs)
        expected = (running + 1 + tested) * sum(complete) / len(complete)
        return sum(spent) + expected <= budget * HOUR


def start_study(
    plan: StudyPlan, folder: StudyFolder, checked: CheckedStudy, *, retry_failed: bool = False
) -> OpenStudy:
    """Creates a study in its folder, or adds what it has gained since.

    Args:
        plan: The study, whose configurations are checked.
        folder: Its folder.
        checked: What the check found.
        retry_failed: Whether to run failed trials once more.

    Returns:
        The study.

    Raises:
        ConfigurationError: If the folder has another study.
        TrainingError: If a file cannot be written.
    """
    with folder.locked():
        check_additions(plan, folder)
        better = study_metric(plan, checked.tag).higher_is_better
        # First, since what the folder's study says cannot be changed any more, and a storage may refuse.
        journal = StudyJournal(folder, plan.study.name, plan.study.storage, higher_is_better=better)
        journal.add_trials(plan.trials)
        study = OpenStudy(plan, folder, journal, checked.tag, checked.validation_tag)
        folder.save(plan, checked.tag, checked.validation_tag, _added_after_results(study))
        study = study.refreshed()  # with the content of the base configs, whose files may change while it runs
        add_lost_trials(study)
        if retry_failed:
            retry_failed_trials(study)
    return study


def check_additions(plan: StudyPlan, folder: StudyFolder) -> None:
    """Checks a study against the one that its folder has, if it has one.

    Args:
        plan: The study.
        folder: Its folder.

    Raises:
        ConfigurationError: If the folder belongs to another study, the study has lost or changed something, or a value
            that it gains could change the learning rate of runs that are tested.
    """
    folder.check(plan)
    rates = plan.study.learning_rate
    if rates is None or not rates.shared or not (folder.path / STUDY).exists():
        return
    former = {each.name for each in load_plan(folder.path).configurations}
    gained = [each.name for each in plan.configurations if each.name not in former]
    if gained and _has_started_tests(open_study(folder.path)):
        msg = f"the folder {folder.path} has a study whose configurations share one learning rate, with which runs are "
        msg += f"tested already; {few_names(gained)} would choose it again after results were seen. Leave out what is "
        msg += "new, or give the study another name"
        raise ConfigurationError(msg)


def _has_started_tests(study: OpenStudy) -> bool:
    return any(trial.is_tested and status.state != "waiting" for trial, status in study.known_trials())


def _added_after_results(study: OpenStudy) -> AddedLater:
    """What a study gains beside what its folder has, if a tested run of that has finished. The folder is locked."""
    if not (study.folder.path / STUDY).exists():
        return AddedLater()
    former = study.refreshed()
    plan = former.plan
    statuses = study.journal.statuses(plan.tested)
    finished = {trial.configuration for trial in plan.tested if statuses[trial.id].state == "finished"}
    if not finished:
        return AddedLater()
    winner = plan.configurations[-1].name if former.has_winner else ""
    search = former.planned.study.search is not None
    added = additions(
        former.planned,
        study.planned,
        winner if winner in finished else "",
        may_try_more=search and not is_exhausted(former.planned.study, study.journal.search_runs()),
    )
    if added.note:
        rank_zero_warn(added.note)
    return added


def open_study(path: Path) -> OpenStudy:
    """Opens a study in its folder, without its YAML.

    Args:
        path: The folder.

    Returns:
        The study.

    Raises:
        ConfigurationError: If it is not the folder of a study.
        TrainingError: If its journal is damaged or gone.
    """
    plan = load_plan(path)
    folder = StudyFolder(path if path.name else path.resolve())  # a run's folder is named by its parent and its name
    journal = StudyJournal(folder, plan.study.name, plan.study.storage, create=False)
    return OpenStudy(plan, folder, journal, *load_tags(path))
