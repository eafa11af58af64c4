"""Trials that are trained once more: those that failed, and those whose run folders are gone.

What helps to choose a learning rate or a winner is not repeated while what it chose is tested: it could change the
choice after its test results are known.
"""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.errors import few_names
from lora_lightning.studies.plan import StudyPlan
from lora_lightning.studies.trials import Trial

if TYPE_CHECKING:
    from lora_lightning.studies.open_study import OpenStudy


def lost_trials(study: "OpenStudy") -> tuple[list[Trial], list[Trial]]:
    """Finds finished trials whose run folders are gone.

    Args:
        study: The study.

    Returns:
        Those to train again, and those that would choose again what is tested already.
    """
    plan = study.plan
    lost = study.journal.lost(plan.trials)
    started = _started_tests(study, plan, without=lost)
    chosen = [trial for trial in lost if not trial.is_tested and _is_chosen(study, plan, trial, started)]
    return [trial for trial in lost if trial not in chosen], chosen


def add_lost_trials(study: "OpenStudy") -> None:
    """Adds finished trials whose run folders are gone once more, like `retry_failed_trials`. The folder is locked.

    Args:
        study: The study. A warning names the trials that are not repeated.
    """
    again, chosen = lost_trials(study)
    study.journal.add_again(again)
    if chosen:
        named = few_names([trial.title for trial in chosen])
        rank_zero_warn(
            f"{len(chosen)} runs whose folders are gone are not trained again, because what they helped to choose is "
            f"tested already: {named}; to train them again, delete the folders of those tested runs, too"
        )


def _started_tests(study: "OpenStudy", plan: StudyPlan, without: Sequence[Trial] = ()) -> set[str]:
    """Names of the configurations of which a tested run has started; some runs do not count."""
    tested = [trial for trial in plan.tested if trial not in without]
    statuses = study.journal.statuses(tested)
    return {trial.configuration for trial in tested if statuses[trial.id].state != "waiting"}


def failed_trials(study: "OpenStudy") -> tuple[list[Trial], list[Trial]]:
    """Finds failed trials.

    Args:
        study: The study.

    Returns:
        Those to train again with `--retry_failed`, and those that could choose again what is tested already.
    """
    plan = study.plan
    statuses = study.journal.statuses(plan.trials)
    failed = [trial for trial in plan.trials if statuses[trial.id].state == "failed"]
    started = _started_tests(study, plan)
    chosen = [trial for trial in failed if not trial.is_tested and _is_chosen(study, plan, trial, started)]
    return [trial for trial in failed if trial not in chosen], chosen


def retry_failed_trials(study: "OpenStudy") -> None:
    """Adds the failed trials once more, unless they would choose again what is tested already. The folder is locked.

    Args:
        study: The study. A warning names the trials that are not repeated.
    """
    again, chosen = failed_trials(study)
    study.journal.add_again(again)
    if chosen:
        named = few_names([trial.title for trial in chosen])
        rank_zero_warn(
            f"{len(chosen)} failed runs are not repeated, because what they helped to choose is tested already, and "
            f"they could change the choice after its test results are known: {named}; to repeat them, give the study "
            "another name"
        )


def _is_chosen(study: "OpenStudy", plan: StudyPlan, trial: Trial, started: Collection[str]) -> bool:
    """Whether tests have started that depend on what a run helps to choose: its rate, or the winner of a search."""
    if trial.suggestion is not None:
        return study.has_winner and plan.configurations[-1].name in started  # the winner
    rates = plan.study.learning_rate
    return bool(started) if rates is not None and rates.shared else trial.configuration in started
