"""Reads what a study says about its search: ranges, the sampler, pruning, and the budget."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from lora_lightning.errors import suggest_names
from lora_lightning.studies.specification import Axis, Range, Search, Study
from lora_lightning.studies.trials import Configuration, make_configuration

Refuse = Callable[[str], NoReturn]
RANGE_KEYS = ("low", "high", "log", "step")
SEARCH_KEYS = ("trials", "seeds", "sampler", "pruning")
SAMPLERS = ("tpe", "random", "grid")


def is_range(values: object) -> bool:
    """Whether the values of an axis look like a range, complete or not, and not like named values of such names."""
    if not isinstance(values, dict) or any(isinstance(value, dict) for value in values.values()):
        return False
    return bool({"low", "high"} & values.keys())


def read_range(axis: str, content: Mapping[str, Any], refuse: Refuse) -> Range:
    """Reads a range.

    Args:
        axis: The axis, for messages.
        content: Such as `{low: 1e-4, high: 3e-3, log: true}`.
        refuse: Raises the error with a message.

    Returns:
        The range.
    """
    where = f"the range of the axis {axis}"
    if unknown := [key for key in content if key not in RANGE_KEYS]:
        refuse(f"{where} has the unknown key {unknown[0]!r}; {suggest_names(str(unknown[0]), RANGE_KEYS)}")
    found: tuple[Any, ...] = tuple(map(content.get, RANGE_KEYS))
    low, high, log, step = found
    for key, number in (("low", low), ("high", high)):
        if not is_finite_number(number):
            refuse(
                f"{where} has {key} {number!r}, but a number is needed, such as {{low: 1e-4, high: 3e-3, log: true}}"
            )
    if log is not None and not isinstance(log, bool):
        refuse(f"{where} has log {log!r}, but it must be true or false")
    if low >= high:
        refuse(f"{where} goes from low {low} to high {high}, but low must be below high")
    if log and low <= 0:
        refuse(f"{where} has low {low} and log: true, but a logarithm needs low above 0")
    integers = isinstance(low, int) and isinstance(high, int)
    if step is not None:
        _check_step(where, (low, high), step, bool(log), integers, refuse)
    return Range(low, high, bool(log), step)


def _check_step(where: str, ends: Sequence[Any], step: Any, log: bool, integers: bool, refuse: Refuse) -> None:
    low, high = ends
    if not is_finite_number(step) or step <= 0 or (integers and not isinstance(step, int)):
        refuse(f"{where} has step {step!r}, but {'an integer' if integers else 'a number'} above 0 is needed")
    if log:
        refuse(f"{where} has a step and log: true; leave out one of both, or list the values")
    count = round((high - low) / step)
    if not math.isclose(low + count * step, high, rel_tol=1e-9):
        last = low + math.floor((high - low) / step) * step
        refuse(f"{where} has high {high}, which steps of {step} from {low} do not reach; the last value is {last:g}")


def read_search(content: object, read_seeds: Callable[[Any, str], tuple[int, ...]], refuse: Refuse) -> Search | None:
    """Reads the search of a study.

    Args:
        content: The value of `search`.
        read_seeds: Checks seeds under a name.
        refuse: Raises the error with a message.

    Returns:
        The search; `None` if there is none.
    """
    if content is None:
        return None
    if not isinstance(content, dict):
        refuse(f"search is {content!r}, but options are needed, such as {{trials: 20, seeds: [7]}}")
    if unknown := [key for key in content if key not in SEARCH_KEYS]:
        refuse(f"search has the unknown key {unknown[0]!r}; {suggest_names(str(unknown[0]), SEARCH_KEYS)}")
    trials, sampler, pruning = content.get("trials"), content.get("sampler", "tpe"), content.get("pruning", False)
    if trials is not None and (isinstance(trials, bool) or not isinstance(trials, int) or trials < 1):
        refuse(f"search.trials is {trials!r}, but an integer of at least 1 is needed")
    if sampler not in SAMPLERS:
        refuse(f"search.sampler is {sampler!r}; {suggest_names(str(sampler), SAMPLERS)}")
    if not isinstance(pruning, bool):
        refuse(f"search.pruning is {pruning!r}, but it must be true or false")
    if content.get("seeds") is None:
        refuse("search.seeds is missing; add seeds that are used for nothing else, such as `seeds: [7]`")
    return Search(trials, read_seeds(content["seeds"], "search.seeds"), sampler, pruning)


def read_budget(content: object, refuse: Refuse) -> float | None:
    """Reads the budget of a study.

    Args:
        content: The value of `budget`.
        refuse: Raises the error with a message.

    Returns:
        Hours; `None` without a limit.
    """
    if content is None:
        return None
    if not is_finite_number(content) or not isinstance(content, int | float) or content <= 0:
        refuse(f"budget is {content!r}, but a number of hours above 0 is needed")
    return float(content)


def check_search(
    search: Search | None, axes: Sequence[Axis], seeds: Sequence[int], budget: float | None, refuse: Refuse
) -> None:
    """Checks that the search, the axes, the seeds and the budget fit together.

    Args:
        search: The search, if the study has one.
        axes: The axes.
        seeds: The seeds of the runs that are tested.
        budget: Hours.
        refuse: Raises the error with a message.
    """
    ranges = [axis.name for axis in axes if axis.range is not None]
    if search is None:
        if ranges:
            refuse(
                f"the axis {ranges[0]} is a range, which only a search can draw from; list its values, or add search"
            )
        return
    if search.trials is None and budget is None:
        refuse("search has no trials and the study has no budget, so it would never end; add one of both")
    if both := sorted({*search.seeds} & {*seeds}):
        refuse(
            f"the seed {both[0]} is in seeds and in search.seeds, but runs that chose a configuration favor it; give "
            "other seeds"
        )
    size = space_size(axes)
    if search.sampler == "grid" and math.isinf(size):
        endless = next(axis.name for axis in axes if math.isinf(_axis_size(axis)))
        refuse(
            f"search.sampler is grid, but the axis {endless} has no finite number of values; add a step, or list them"
        )
    if search.trials is not None and search.trials > size:
        refuse(f"search.trials is {search.trials}, but the axes have only {size:.0f} configurations; lower it")


def space_size(axes: Sequence[Axis]) -> float:
    """Returns the number of configurations; infinity if an axis has a range of floats without a step."""
    return math.prod(_axis_size(axis) for axis in axes)


def _axis_size(axis: Axis) -> float:
    if axis.range is None:
        return len(axis.values)
    step = axis.range.step or (1 if isinstance(axis.range.low, int) and isinstance(axis.range.high, int) else 0)
    return round((axis.range.high - axis.range.low) / step) + 1 if step else math.inf


def is_finite_number(value: object) -> bool:
    """Whether a value is a number that a float can hold; an integer such as 10**400 is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def search_ends(study: Study, reference: Configuration) -> list[Configuration]:
    """Returns the reference with each axis in turn at each of its values, or at both ends of its range.

    Args:
        study: The study.
        reference: Its reference.
    """
    own = {
        axis.name: reference.labels[axis.name] if axis.range is None else reference.options[axis.name]
        for axis in study.axes
    }
    return [
        make_configuration(study, {**own, axis.name: value})
        for axis in study.axes
        for value in (axis.values if axis.range is None else (axis.range.low, axis.range.high))
    ]
