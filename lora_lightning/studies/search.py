"""Which configuration a search tries next, from what earlier ones have shown, and which one wins.

A suggestion depends on the study and on the ended runs alone: Optuna's samplers start from a seed that is made from
the search's and the number of the suggestion. So a worker that is killed and restarted suggests what it would have
suggested, and the parameters of a suggestion are written in one piece before its run starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from lora_lightning.studies.search_settings import space_size
from lora_lightning.studies.specification import Axis, Range, Search, Study
from lora_lightning.studies.trials import Trial, make_configuration, make_trial

DIGITS, DIGITS_OF_STEPS = 4, 10  # significant ones of suggested floats, so that configs can be read
ATTEMPTS = 20  # of the sampler, to suggest something new
Values = Mapping[str, Any]


@dataclass(frozen=True)
class SearchRun:
    """A run of a search, as the journal has it.

    Attributes:
        suggestion: Number of the suggestion.
        values: By axis: the label of a value, or a number for a range.
        seed: Of the run.
        state: Its state; `RUNNING` also if it waits or was interrupted.
        value: The metric on validation; `None` until it has ended, or if it failed.
        reports: The metric by step.
    """

    suggestion: int
    values: Values
    seed: int
    state: TrialState
    value: float | None
    reports: Mapping[int, float]


@dataclass(frozen=True)
class Suggestion:
    """What a search tries next.

    Attributes:
        number: From 0.
        values: By axis: the label of a value, or a number for a range.
        seed: Of the run.
    """

    number: int
    values: Values
    seed: int


def search_distributions(study: Study) -> dict[str, BaseDistribution]:
    """Returns what Optuna draws from, by axis; for listed values their labels."""
    return {axis.name: _distribution(axis) for axis in study.axes}


def search_trial(study: Study, suggestion: Suggestion) -> Trial:
    """Makes the trial of a suggestion.

    Args:
        study: The study.
        suggestion: The suggestion.

    Returns:
        The trial, which is not tested.
    """
    configuration = make_configuration(study, suggestion.values)
    return make_trial(study, configuration, suggestion.seed, suggestion=suggestion.number)


def next_suggestion(study: Study, runs: Sequence[SearchRun], *, higher_is_better: bool) -> Suggestion | None:
    """Chooses the next run of a search: the next seed of a configuration, or a new configuration.

    Args:
        study: The study.
        runs: All runs of the search.
        higher_is_better: Whether larger values of the metric are better.

    Returns:
        The run; `None` if all that the search may try has been suggested.
    """
    search = _search(study)
    if is_exhausted(study, runs):
        return None
    found = runs_by_suggestion(runs)
    for number, own in found.items():
        if _lacks_seeds(search, own):
            return Suggestion(number, own[0].values, search.seeds[len(own)])
    values = _new_values(study, found, higher_is_better)
    return Suggestion(len(found), values, search.seeds[0])


def is_exhausted(study: Study, runs: Sequence[SearchRun]) -> bool:
    """Whether a search has suggested all that it may."""
    search, found = _search(study), runs_by_suggestion(runs)
    if any(_lacks_seeds(search, own) for own in found.values()):
        return False
    return len(found) >= min(search.trials or np.inf, space_size(study.axes))


def runs_left_out(study: Study, runs: Sequence[SearchRun]) -> int:
    """Number of runs that a search may suggest and has not; 0 if it tries as many as the budget allows.

    Args:
        study: The study.
        runs: All runs of the search.
    """
    search, found = _search(study), runs_by_suggestion(runs)
    if search.trials is None:
        return 0
    untried = int(min(search.trials, space_size(study.axes))) - len(found)
    lacking = sum(len(search.seeds) - len(own) for own in found.values() if _lacks_seeds(search, own))
    return max(0, untried) * len(search.seeds) + lacking


def _lacks_seeds(search: Search, own: Sequence[SearchRun]) -> bool:
    return len(own) < len(search.seeds) and all(run.state == TrialState.COMPLETE for run in own)


def runs_by_suggestion(runs: Sequence[SearchRun]) -> dict[int, list[SearchRun]]:
    """Groups runs by the number of their suggestion, in order."""
    found: dict[int, list[SearchRun]] = {}
    for run in sorted(runs, key=lambda run: run.suggestion):
        found.setdefault(run.suggestion, []).append(run)
    return found


def winning_values(study: Study, runs: Sequence[SearchRun], *, higher_is_better: bool) -> Values | None:
    """Chooses the configuration with the best mean of the validation metric.

    Args:
        study: The study.
        runs: All runs of the search.
        higher_is_better: Whether larger values of the metric are better.

    Returns:
        Its values; `None` while a run has not ended, or if no configuration was trained to its end with all seeds.
    """
    search = _search(study)
    if any(run.state == TrialState.RUNNING for run in runs):
        return None
    scores = {
        number: float(np.mean([run.value for run in own if run.value is not None]))
        for number, own in runs_by_suggestion(runs).items()
        if len(own) == len(search.seeds) and all(run.state == TrialState.COMPLETE for run in own)
    }
    if not scores:
        return None
    sign = 1.0 if higher_is_better else -1.0
    best = min(scores, key=lambda number: (-sign * scores[number], number))
    return runs_by_suggestion(runs)[best][0].values


def notes_on_search(study: Study, runs: Sequence[SearchRun], tag: str, higher_is_better: bool) -> list[str]:
    """Says what a search has tried, what is best so far, and whether it lies at the edge of a range.

    Args:
        study: The study.
        runs: All runs of the search.
        tag: The metric on validation.
        higher_is_better: Whether larger values of the metric are better.

    Returns:
        Sentences.
    """
    found, search = runs_by_suggestion(runs), _search(study)
    states = [_as_trial(study, own).state for own in found.values()]
    counts = [
        f"{states.count(state)} {one if states.count(state) == 1 else several}"
        for state, one, several in (
            (TrialState.PRUNED, "was ended early", "were ended early"),
            (TrialState.FAIL, "failed", "failed"),
        )
        if state in states
    ]
    values = winning_values(
        study, [run for run in runs if run.state != TrialState.RUNNING], higher_is_better=higher_is_better
    )
    count = "a seed" if len(search.seeds) == 1 else f"{len(search.seeds)} seeds"
    tried = f"The search tried {len(found)} configurations on validation, with {count} of its own"
    tried += f"; {', '.join(counts)}" if counts else ""
    if values is None:
        return [f"{tried}. None of them was trained to its end, so that there is no winner."]
    own = next(own for own in found.values() if own[0].values == values)
    mean = float(np.mean([run.value for run in own if run.value is not None]))
    notes = [f"{tried}. The best one is {make_configuration(study, values).name} ({tag} {mean:.4g})."]
    edges = [axis for axis in study.axes if axis.range and values[axis.name] in {axis.range.low, axis.range.high}]
    if edges:
        notes.append(
            f"The best {', '.join(axis.short_name for axis in edges)} lies at the edge of its range, so that a better "
            "one may lie beyond; widen the range in a study with another name."
        )
    return notes


def _new_values(study: Study, found: Mapping[int, Sequence[SearchRun]], higher_is_better: bool) -> Values:
    """Values that no suggestion has; equal ones would only repeat a run."""
    search = _search(study)
    tried = [dict(own[0].values) for own in found.values()]
    if search.sampler == "grid":
        return next(values for values in _grid(study.axes) if values not in tried)
    past = [_as_trial(study, own) for own in found.values()]
    drawn: dict[str, Any] = {}
    for attempt in range(ATTEMPTS):
        seed = int(np.random.SeedSequence((search.seeds[0], len(found), attempt)).generate_state(1)[0])
        sampler: BaseSampler = TPESampler(seed=seed) if search.sampler == "tpe" else RandomSampler(seed=seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        memory = optuna.create_study(direction="maximize" if higher_is_better else "minimize", sampler=sampler)
        memory.add_trials(past)
        drawn = memory.ask(search_distributions(study)).params
        values = {axis.name: _rounded(drawn[axis.name], axis.range) for axis in study.axes}
        if values not in tried:
            return values
    rest = (values for values in _grid(study.axes) if values not in tried)  # few are left
    return next(rest, drawn)  # rounded values are used up in a narrow range of floats, of which there is no grid


def _as_trial(study: Study, own: Sequence[SearchRun]) -> FrozenTrial:
    """A suggestion as Optuna's samplers read it, with the mean over its seeds."""
    search = _search(study)
    states = {run.state for run in own}
    state = next((each for each in (TrialState.FAIL, TrialState.PRUNED) if each in states), TrialState.RUNNING)
    value = None
    if states == {TrialState.COMPLETE} and len(own) == len(search.seeds):
        state, value = TrialState.COMPLETE, float(np.mean([run.value for run in own if run.value is not None]))
    reports = own[0].reports if state == TrialState.PRUNED else {}
    return create_trial(
        state=state,
        value=value,
        params=dict(own[0].values),
        distributions=search_distributions(study),
        intermediate_values=dict(reports),
    )


def _distribution(axis: Axis) -> BaseDistribution:
    if axis.range is None:
        return CategoricalDistribution(list(axis.values))
    low, high, log, step = axis.range.low, axis.range.high, axis.range.log, axis.range.step
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=int(step or 1))
    return FloatDistribution(low, high, log=log, step=step)


def _rounded(value: Any, drawn_from: Range | None) -> Any:
    if drawn_from is None or not isinstance(value, float):
        return value
    digits = DIGITS if drawn_from.step is None else DIGITS_OF_STEPS
    return min(max(float(f"{value:.{digits}g}"), drawn_from.low), drawn_from.high)


def _grid(axes: Sequence[Axis]) -> Any:
    """All combinations, the last axis first; of a range of floats without a step nothing."""
    return (
        dict(zip((axis.name for axis in axes), values, strict=True)) for values in product(*map(_axis_values, axes))
    )


def _axis_values(axis: Axis) -> list[Any]:
    if axis.range is None:
        return list(axis.values)
    low, high, step = axis.range.low, axis.range.high, axis.range.step
    if isinstance(low, int) and isinstance(high, int):
        return list(range(low, high + 1, int(step or 1)))
    if step is None:
        return []
    return [_rounded(low + place * step, axis.range) for place in range(round((high - low) / step) + 1)]


def _search(study: Study) -> Search:
    assert study.search is not None  # noqa: S101  # only studies with a search come here
    return study.search
