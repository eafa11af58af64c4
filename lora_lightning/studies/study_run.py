"""Opens a study, runs it, and reports on it: what `study run`, `study status` and `study report` do."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_warn
from optuna.trial import TrialState

from lora_lightning.errors import ConfigurationError
from lora_lightning.runs.files import write_error, write_text_atomically
from lora_lightning.runs.layout import CONFIG
from lora_lightning.statistics.analysis import analyze_study
from lora_lightning.statistics.recommendation import recommend_winner
from lora_lightning.studies.audit import StudyAudit
from lora_lightning.studies.estimate import estimate_study
from lora_lightning.studies.journal import ENDED, Claim, StudyJournal, TrialStatus
from lora_lightning.studies.learning_rates import chosen_rates, notes_on_rates
from lora_lightning.studies.plan import Configuration, StudyPlan, Trial
from lora_lightning.studies.search import (
    SearchRun,
    Suggestion,
    is_exhausted,
    next_suggestion,
    notes_on_search,
    search_trial,
    winning_values,
)
from lora_lightning.studies.study_folder import RECOMMENDED, StudyFolder, base_contents, load_plan, load_tags
from lora_lightning.studies.trial_results import collect_results
from lora_lightning.studies.trial_runs import CheckedStudy, check_configurations, study_metric

__all__ = [
    "OpenStudy",
    "check_study",
    "estimate_study",
    "judge_study",
    "open_study",
    "start_study",
    "write_recommendation",
]

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

    @property
    def plan(self) -> StudyPlan:
        """The study with what is chosen so far: learning rates, or suggestions of its search and their winner."""
        if self.planned.study.search is None:
            return self.planned.with_rates(self.rates())
        runs = self.journal.search_runs()
        suggested = [Suggestion(run.suggestion, run.values, run.seed) for run in runs]
        tried = [search_trial(self.planned.study, each) for each in suggested]
        is_over = self.is_search_over(runs)
        return self.planned.with_search(tried, self.winner(runs) if is_over else None, is_over=is_over)

    @property
    def higher_is_better(self) -> bool:
        """Whether larger values of the metric that decides are better."""
        return study_metric(self.planned, self.tag).higher_is_better

    def rates(self) -> dict[str, float]:
        """The chosen learning rates by configuration; empty for a study that chooses none."""
        if self.planned.study.learning_rate is None:
            return {}
        statuses = self.journal.statuses(self.planned.trials)
        return chosen_rates(self.planned, statuses, higher_is_better=self.higher_is_better)

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
        return self.journal.statuses(self.plan.trials)

    def is_alone(self, trial: Trial, since: float = math.inf) -> bool:
        """Whether no other trial is running, or has ended since a time, in seconds since 1970."""
        others = (status for name, status in self.statuses().items() if name != trial.id)
        return all(status.state != "running" and (status.ended_at or 0.0) <= since for status in others)

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
    def is_complete(self) -> bool:
        """Whether nothing is left to run, or, beyond the budget, nothing is running."""
        plan = self.plan
        states = list(self.journal.statuses(plan.trials).values())
        if self.is_over_budget and not any(status.state == "running" for status in states):
            return True
        return plan.further == 0 and self.plan.trials == plan.trials and all(status.state in ENDED for status in states)

    @property
    def is_over_budget(self) -> bool:
        """Whether the budget is spent, so that no further run is started."""
        budget = self.planned.study.budget
        return budget is not None and sum(self.journal.spent_seconds()) >= budget * HOUR

    def _known_trials(self) -> tuple[Trial, ...]:
        """The trials that can run now; the journal has them afterwards."""
        trials = self.plan.trials
        if self.planned.study.learning_rate is not None or self.planned.study.search is not None:
            with self.folder.locked():
                self.journal.add_trials(trials)
        return trials

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
        tested = 2 * len(self.planned.study.seeds)
        return sum(spent) + (tested + 1) * sum(spent) / len(spent) <= budget * HOUR


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
        folder.save(plan, checked.tag, checked.validation_tag)
        better = study_metric(plan, checked.tag).higher_is_better
        study = OpenStudy(
            plan,
            folder,
            StudyJournal(folder, plan.study.storage, higher_is_better=better),
            checked.tag,
            checked.validation_tag,
        )
        study.journal.add_trials(plan.trials)
        study.journal.add_lost(study.plan.trials)
        if retry_failed:
            study.journal.add_again(study.plan.trials)
    return study


def open_study(path: Path) -> OpenStudy:
    """Opens a study in its folder, without its YAML.

    Args:
        path: The folder.

    Returns:
        The study.

    Raises:
        ConfigurationError: If it is not the folder of a study.
        TrainingError: If its journal is damaged.
    """
    plan = load_plan(path)
    folder = StudyFolder(path)
    return OpenStudy(plan, folder, StudyJournal(folder, plan.study.storage), *load_tags(path))


def check_study(
    plan: StudyPlan, folder: StudyFolder, progress: Callable[[Configuration], None] = lambda _: None
) -> CheckedStudy:
    """Checks a study before anything is trained; first against the study that its folder has.

    Args:
        plan: The study.
        folder: Its folder, which may not exist.
        progress: Called before each configuration.

    Returns:
        What the check found.

    Raises:
        LoraLightningError: If an option, the data, or the folder does not fit.
    """
    folder.check(plan)
    warn_about_loggers(plan)
    return check_configurations(plan, folder, progress)


def warn_about_loggers(plan: StudyPlan) -> None:
    """Warns of loggers of the base configs that a study replaces by its own.

    Args:
        plan: The study.
    """
    loggers = [(config.get("trainer") or {}).get("logger") for config in base_contents(plan.study)]
    entries = [entry for logger in loggers for entry in (logger if isinstance(logger, list) else [logger])]
    names = {str(entry["class_path"]).rpartition(".")[2] for entry in entries if isinstance(entry, dict)}
    if replaced := sorted(names - {"TensorBoardLogger"}):
        rank_zero_warn(
            f"the base config logs with {', '.join(replaced)}, but a study logs each run with TensorBoardLogger in its "
            "folder; nothing is sent elsewhere"
        )


def judge_study(study: OpenStudy) -> StudyAudit:
    """Analyzes the finished trials of a study.

    Args:
        study: The study.

    Returns:
        The verdicts, and what was left out.

    Raises:
        ConfigurationError: If no trial is finished.
        LoraLightningError: If a run folder is damaged.
    """
    plan, statuses = study.plan, study.statuses()
    if not any(statuses[trial.id].state == "finished" for trial in plan.tested):
        msg = f"none of the {plan.size} trials of {study.folder.path} is finished and tested; run the study first"
        raise ConfigurationError(msg)
    found = collect_results(plan, study.folder, study.tag, statuses)
    notes = (found.results.unfinished, budget_note(study), *found.notes, *notes_on_rates(plan, study.rates()))
    notes = (*notes, *_search_notes(study))
    analysis = analyze_study(found.results)
    if plan.study.search is not None:
        analysis = replace(analysis, recommendation=recommend_winner(found.results, analysis))
    return StudyAudit(found.results, analysis, tuple(note for note in notes if note))


def budget_note(study: OpenStudy) -> str:
    """Says that the budget left something out; empty if it did not."""
    budget, plan = study.planned.study.budget, study.plan
    ended = sum(status.state in ENDED for status in study.statuses().values())
    if budget is None or not study.is_over_budget or ended == plan.size:
        return ""
    return f"The budget of {budget:g} hours is spent, so that {plan.size - ended} of {plan.size} runs were not started."


def _search_notes(study: OpenStudy) -> list[str]:
    search = study.planned.study.search
    if search is None:
        return []
    return notes_on_search(
        study.planned.study, study.journal.search_runs(), study.validation_tag, study.higher_is_better
    )


def write_recommendation(study: OpenStudy, audit: StudyAudit) -> Path | None:
    """Writes the config of the recommended configuration, which `fit` trains as it is.

    Args:
        study: The study.
        audit: Its verdicts.

    Returns:
        The file; `None` if nothing is recommended, or the recommended configuration has no finished run.

    Raises:
        TrainingError: If the file cannot be written.
    """
    name = audit.analysis.recommendation.name
    if name is None:
        return None
    trials = [trial for trial in study.plan.tested if trial.configuration == name]
    finished = [trial for trial in trials if trial.seed in audit.results.configuration(name).values]
    if not finished:
        return None
    text = (study.folder.run(finished[0]) / CONFIG).read_text(encoding="utf-8")
    config = _as_own_run(yaml.safe_load(text), study.plan.study.name)
    head = f"# {name}: recommended by the study {study.plan.study.name}\n"
    path = study.folder.path / RECOMMENDED
    try:
        write_text_atomically(path, head + yaml.safe_dump(config, sort_keys=False))
    except OSError as error:
        raise write_error(path, error) from error
    return path


def _as_own_run(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Moves the config of a trial out of the study's folder."""
    trainer = {key: value for key, value in config["trainer"].items() if key != "enable_progress_bar"}
    logger = trainer["logger"] if isinstance(trainer["logger"], dict) else trainer["logger"][0]
    own = {"save_dir": "lightning_logs", "name": f"{name}_recommended", "version": None}
    trainer["logger"] = {**logger, "init_args": {**logger["init_args"], **own}}
    return {**config, "trainer": trainer}
