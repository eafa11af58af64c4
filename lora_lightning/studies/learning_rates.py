"""Chooses learning rates from runs that try them, by the mean of the validation metric over their seeds."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lora_lightning.errors import few_names
from lora_lightning.studies.journal import ENDED, TrialStatus
from lora_lightning.studies.plan import StudyPlan
from lora_lightning.studies.specification import RATE_OPTION, LearningRates
from lora_lightning.studies.trials import Configuration, Trial, make_trial

Scores = Mapping[float, float]
Statuses = Callable[[Sequence[Trial]], Mapping[str, TrialStatus]]


def rate_trials(plan: StudyPlan, configuration: Configuration, rate: float) -> list[Trial]:
    """Makes the runs that try a learning rate.

    Args:
        plan: A study that chooses learning rates.
        configuration: The configuration.
        rate: The learning rate.

    Returns:
        A run for each of the seeds that try learning rates.
    """
    seeds = plan.study.learning_rate.seeds if plan.study.learning_rate is not None else ()
    return [make_trial(plan.study, configuration, seed, {RATE_OPTION: rate}, rate) for seed in seeds]


def further_trials(plan: StudyPlan, statuses_of: Statuses, *, higher_is_better: bool) -> tuple[Trial, ...]:
    """Makes the runs that try learning rates beyond an end of the study's, while the best one lies there.

    The next rate is as far away as the two at that end are from each other.

    Args:
        plan: The study.
        statuses_of: Returns the state of trials, by id.
        higher_is_better: Whether larger values of the metric are better.

    Returns:
        The runs, also those that have ended; empty unless the study's `learning_rate` has `extend`.
    """
    rates = plan.study.learning_rate
    if rates is None or not rates.extend:
        return ()
    sign = 1.0 if higher_is_better else -1.0
    return tuple(
        trial
        for configuration in plan.configurations
        for trial in _further_of(plan, configuration, rates, statuses_of, sign)
    )


def _further_of(
    plan: StudyPlan, configuration: Configuration, rates: LearningRates, statuses_of: Statuses, sign: float
) -> list[Trial]:
    """The further runs of a configuration: those that were started before, and what follows from all of them."""
    tried = [trial for trial in plan.trials if trial.configuration == configuration.name]
    beyond = [rate for ratios in _rates_beyond_ends(rates) for rate in ratios]
    runs = {rate: rate_trials(plan, configuration, rate) for rate in beyond}
    statuses = statuses_of([*tried, *(trial for trials in runs.values() for trial in trials)])
    own = [rate for rate, trials in runs.items() if any(statuses[trial.id].state != "waiting" for trial in trials)]
    while len(own) < rates.extend:
        known = [*tried, *(trial for rate in own for trial in runs[rate])]
        further = _rate_beyond(
            {trial.rate for trial in known if trial.rate is not None}, _scores(known, statuses, sign), beyond
        )
        if further is None:
            break
        own.append(further)
    return [trial for rate in own for trial in runs[rate]]


def _rates_beyond_ends(rates: LearningRates) -> tuple[list[float], list[float]]:
    """The rates below the smallest, and above the largest, each as far from the next as the two at that end."""
    ordered = sorted(rates.values)
    down, up = ordered[0] / ordered[1], ordered[-1] / ordered[-2]
    steps = range(1, rates.extend + 1)
    return (
        [float(f"{ordered[0] * down**step:.6g}") for step in steps],
        [float(f"{ordered[-1] * up**step:.6g}") for step in steps],
    )


def _rate_beyond(tried: set[float], scores: Scores | None, beyond: Sequence[float]) -> float | None:
    """The next rate beyond the best one, if that is the smallest or the largest; otherwise `None`."""
    if not scores:
        return None  # runs are missing, or all have failed
    best = _best(scores)
    if best == min(tried):
        return max((rate for rate in beyond if rate < best), default=None)
    return min((rate for rate in beyond if rate > best), default=None) if best == max(tried) else None


def tried_rates(plan: StudyPlan, name: str, statuses: Mapping[str, TrialStatus]) -> dict[float, dict[int, float]]:
    """Collects the validation metric of the runs of a configuration that tried learning rates.

    Args:
        plan: The study.
        name: The configuration.
        statuses: The state of each trial, by id.

    Returns:
        Values by learning rate and seed, without those of runs that failed; empty until all runs have ended.
    """
    trials = [trial for trial in plan.trials if trial.rate is not None and trial.configuration == name]
    if any(statuses[trial.id].state not in ENDED for trial in trials):
        return {}
    found: dict[float, dict[int, float]] = {}
    for trial in trials:
        values = found.setdefault(float(trial.rate or 0), {})
        if (value := statuses[trial.id].value) is not None:
            values[trial.seed] = value
    return found


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
    scores = _scores_by_name(plan, statuses, sign)
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
    scores = _scores_by_name(plan, statuses, sign=1.0)
    if not rates.shared:
        return tuple(name for name, found in scores.items() if found == {})
    is_open = any(found is None for found in scores.values())
    is_usable = any(all(found and rate in found for found in scores.values()) for rate in rates.values)
    return () if is_open or is_usable else tuple(scores)


def notes_on_rates(plan: StudyPlan, rates: Mapping[str, float], statuses: Mapping[str, TrialStatus]) -> list[str]:
    """Says which learning rates were chosen, which could not be, and which lie at the edge of those that were tried.

    Args:
        plan: The study, with what is chosen so far.
        rates: Learning rate by configuration.
        statuses: The state of each trial, by id.

    Returns:
        Sentences; empty for a study that chooses none.
    """
    tried = plan.study.learning_rate
    without = _notes_on_failed_rates(plan, statuses)
    if tried is None or not rates:
        return without
    chosen = ", ".join(f"{rate:g} for {name}" for name, rate in rates.items())
    count = "a seed" if len(tried.seeds) == 1 else f"{len(tried.seeds)} seeds"
    notes = [f"Learning rates, chosen on validation, with {count} of their own: {chosen}.", *without]
    if at_edge := [name for name, rate in rates.items() if _is_at_edge(plan, name, rate)]:
        notes.append(
            f"The learning rate of {', '.join(at_edge)} is the smallest or the largest one that was tried, so that a "
            "better one may lie beyond; give more values or a larger `extend` in learning_rate, in a study with "
            "another name."
        )
    return notes


def _notes_on_failed_rates(plan: StudyPlan, statuses: Mapping[str, TrialStatus]) -> list[str]:
    notes = []
    if plan.without_rate:
        note = f"{', '.join(plan.without_rate)}: each learning rate has a failed run, so that none is chosen, and "
        notes.append(f"{note}nothing is tested. Give smaller learning rates in a study with another name.")
    failed: dict[str, list[str]] = {}
    for trial in plan.trials:
        if (
            trial.rate is not None
            and statuses[trial.id].state == "failed"
            and trial.configuration not in plan.without_rate
        ):
            failed.setdefault(trial.configuration, []).append(f"{trial.rate:g}")
    if failed:
        named = "; ".join(f"{few_names([*dict.fromkeys(rates)])} for {name}" for name, rates in failed.items())
        notes.append(
            f"A learning rate with a failed run is not chosen, even if it might have been the best one: {named}."
        )
    return notes


def _is_at_edge(plan: StudyPlan, name: str, rate: float) -> bool:
    tried = {trial.rate for trial in plan.trials if trial.rate is not None and trial.configuration == name}
    return len(tried) > 1 and rate in {min(tried), max(tried)}


def _scores_by_name(
    plan: StudyPlan, statuses: Mapping[str, TrialStatus], sign: float
) -> dict[str, dict[float, float] | None]:
    trials = {
        each.name: [trial for trial in plan.trials if trial.configuration == each.name] for each in plan.configurations
    }
    return {name: _scores(own, statuses, sign) for name, own in trials.items()}


def _scores(trials: Sequence[Trial], statuses: Mapping[str, TrialStatus], sign: float) -> dict[float, float] | None:
    """The mean of the metric by rate, larger is better; `None` while a run has not ended."""
    found = [(trial.rate, statuses[trial.id]) for trial in trials if trial.rate is not None]
    if any(status.state not in ENDED for _, status in found):
        return None
    values: dict[float, list[float]] = {}
    failed = {rate for rate, status in found if status.value is None}
    for rate, status in found:
        if rate not in failed and status.value is not None:
            values.setdefault(rate, []).append(sign * status.value)
    return {rate: float(np.mean(numbers)) for rate, numbers in values.items()}


def _best(scores: Scores) -> float:
    """The best rate; of equally good ones the smallest."""
    return min(scores, key=lambda rate: (-scores[rate], rate))
