"""Chooses learning rates from runs that try them, by the mean of the validation metric over their seeds."""

from collections.abc import Mapping

import numpy as np

from lora_lightning.studies.journal import ENDED, TrialStatus
from lora_lightning.studies.plan import StudyPlan

Scores = Mapping[float, float]


def chosen_rates(plan: StudyPlan, statuses: Mapping[str, TrialStatus], *, higher_is_better: bool) -> dict[str, float]:
    """Chooses a learning rate for each configuration whose runs have ended.

    Args:
        plan: The study.
        statuses: The state of each trial, by id.
        higher_is_better: Whether larger values of the metric are better.

    Returns:
        Learning rate by configuration. A rate with a failed run, for example because the loss diverged, is not chosen;
        a configuration without another one is left out.
    """
    rates = plan.study.learning_rate
    if rates is None:
        return {}
    sign = 1.0 if higher_is_better else -1.0
    scores = {each.name: _scores(plan, each.name, statuses, sign) for each in plan.configurations}
    if not rates.shared:
        return {name: _best(found) for name, found in scores.items() if found}
    if any(found is None for found in scores.values()):
        return {}
    usable = [rate for rate in rates.values if all(found and rate in found for found in scores.values())]
    if not usable:
        return {}
    means = {rate: float(np.mean([found[rate] for found in scores.values() if found])) for rate in usable}
    return dict.fromkeys(scores, _best(means))


def configurations_without_rate(plan: StudyPlan, statuses: Mapping[str, TrialStatus]) -> tuple[str, ...]:
    """Finds configurations whose runs have ended, and for which no learning rate can be chosen.

    Args:
        plan: The study.
        statuses: The state of each trial, by id.

    Returns:
        Their names. With a shared learning rate all of them, if each rate has failed for one of them.
    """
    rates = plan.study.learning_rate
    if rates is None:
        return ()
    scores = {each.name: _scores(plan, each.name, statuses, sign=1.0) for each in plan.configurations}
    if not rates.shared:
        return tuple(name for name, found in scores.items() if found == {})
    is_open = any(found is None for found in scores.values())
    is_usable = any(all(found and rate in found for found in scores.values()) for rate in rates.values)
    return () if is_open or is_usable else tuple(scores)


def notes_on_rates(plan: StudyPlan, rates: Mapping[str, float]) -> list[str]:
    """Says which learning rates were chosen, and which of them lie at the edge of those that were tried.

    Args:
        plan: The study, with what is chosen so far.
        rates: Learning rate by configuration.

    Returns:
        Sentences; empty for a study that chooses none.
    """
    tried = plan.study.learning_rate
    without = _notes_on_failed_rates(plan)
    if tried is None or not rates:
        return without
    chosen = ", ".join(f"{rate:g} for {name}" for name, rate in rates.items())
    notes = [f"Learning rates, chosen on validation with other seeds ({len(tried.seeds)}): {chosen}.", *without]
    edges = {min(tried.values), max(tried.values)} if len(tried.values) > 1 else set()
    if at_edge := [name for name, rate in rates.items() if rate in edges]:
        notes.append(
            f"The learning rate of {', '.join(at_edge)} is the smallest or the largest one that was tried, so that a "
            "better one may lie beyond; add values to learning_rate in a study with another name."
        )
    return notes


def _notes_on_failed_rates(plan: StudyPlan) -> list[str]:
    if not plan.without_rate:
        return []
    note = f"{', '.join(plan.without_rate)}: each learning rate has a failed run, so that none is chosen, and nothing "
    return [f"{note}is tested. Give smaller learning rates in a study with another name."]


def _scores(plan: StudyPlan, name: str, statuses: Mapping[str, TrialStatus], sign: float) -> dict[float, float] | None:
    """The mean of the metric by rate, larger is better; `None` while a run has not ended."""
    trials = [trial for trial in plan.trials if trial.rate is not None and trial.configuration == name]
    found = [(trial.rate, statuses[trial.id]) for trial in trials]
    if any(status.state not in ENDED for _, status in found):
        return None
    values: dict[float, list[float]] = {}
    failed = {rate for rate, status in found if status.value is None}
    for rate, status in found:
        if rate is not None and rate not in failed and status.value is not None:
            values.setdefault(rate, []).append(sign * status.value)
    return {rate: float(np.mean(numbers)) for rate, numbers in values.items()}


def _best(scores: Scores) -> float:
    """The best rate; of equally good ones the smallest."""
    return min(scores, key=lambda rate: (-scores[rate], rate))
