"""Counts the runs that a study will train, for the plan of a dry run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lora_lightning.studies.journal import ENDED
from lora_lightning.studies.open_study import HOUR, open_study
from lora_lightning.studies.plan import StudyPlan
from lora_lightning.studies.repeated_trials import failed_trials, lost_trials
from lora_lightning.studies.study_folder import STUDY, StudyFolder, load_plan
from lora_lightning.studies.trials import Trial


@dataclass(frozen=True)
class RunsLeft:
    """The runs of a study that have not ended yet.

    Attributes:
        description: All runs, and how many of them have ended, in words.
        count: How many are left; `None` if only the budget limits them.
        more: How many there may be beside them, depending on what the others find.
    """

    description: str
    count: int | None
    more: int = 0

    def multiplied(self, amount: float, shown: Callable[[float], str]) -> str:
        """Says what the runs take together.

        Args:
            amount: What one takes.
            shown: Formats an amount.
        """
        if self.count is None:
            return f"about {shown(amount)} a run"
        more = f", and up to {shown(self.more * amount)} more" if self.more else ""
        return f"about {shown(self.count * amount)}{more}"


def count_runs(plan: StudyPlan, folder: StudyFolder, *, retry_failed: bool) -> RunsLeft:
    """Counts the runs of a study.

    Args:
        plan: The study, as its YAML describes it.
        folder: Its folder, which may not exist.
        retry_failed: Whether runs that failed count as left.

    Returns:
        What is left.

    Raises:
        LoraLightningError: If the study in the folder cannot be read.
    """
    ended, spent = _ended(folder, retry_failed=retry_failed)
    budget = plan.study.budget
    within = "" if budget is None else f", within {budget:g} hours"
    within += f" ({spent:.2g} of them are spent)" if budget is not None and spent else ""
    done = f"; {len(ended)} have ended" if ended else ""
    search, rates = plan.study.search, plan.study.learning_rate
    if search is not None and search.trials is None:
        tested = 2 * len(plan.study.seeds)
        return RunsLeft(f"{tested} tested runs, and as many of a search as the budget allows{within}{done}", None)
    further = [trial for trial in ended if rates is not None and trial.rate not in {None, *rates.values}]
    left = plan.size - len(ended) + len(further)
    if search is not None:
        own = f" ({plan.size - 2 * len(plan.study.seeds)} of the search)"
        return RunsLeft(f"{plan.size} runs{own}{within}{done}", max(0, left))
    if rates is None:
        return RunsLeft(f"{plan.size} runs{within}{done}", left)
    more = rates.extend * len(rates.seeds) * len(plan.configurations)
    tries = f" ({sum(not trial.is_tested for trial in plan.trials)} try learning rates)"
    beyond = f", and up to {more} that try further rates" if more else ""
    return RunsLeft(f"{plan.size} runs{tries}{beyond}{within}{done}", left, more - len(further))


def _ended(folder: StudyFolder, *, retry_failed: bool) -> tuple[Sequence[Trial], float]:
    """The runs in a folder that will not be trained again, and the hours of the budget that are spent."""
    if not (folder.path / STUDY).exists():
        return [], 0.0
    has_journal = folder.journal.exists() and folder.journal.stat().st_size > 0
    if load_plan(folder.path).study.storage is None and not has_journal:  # then the study starts again
        return [], 0.0
    study = open_study(folder.path)
    plan = study.plan
    statuses = study.journal.statuses(plan.trials)
    again = lost_trials(study)[0] + (failed_trials(study)[0] if retry_failed else [])
    ended = [trial for trial in plan.trials if statuses[trial.id].state in ENDED and trial not in again]
    return ended, sum(study.journal.spent_seconds()) / HOUR
