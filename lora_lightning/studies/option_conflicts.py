"""Refuses a study that sets an option twice: one of both values would be lost silently."""

from collections.abc import Collection, Iterator, Mapping
from itertools import combinations, product

from lora_lightning.errors import ConfigurationError
from lora_lightning.studies.specification import RATE_OPTION, Axis, Study


def check_options_are_set_once(study: Study) -> None:
    """Refuses a study in which two options of a run are the same, or one is inside the other.

    Args:
        study: The study. Values of the same axis exclude each other, so they may set the same options.

    Raises:
        ConfigurationError: Names both options and where they are set. Also if a derived option has the short name of an
            axis or of another one, by which expressions know them.
    """
    for place, options in _mappings(study):
        _check_pairs(combinations(options, 2), place, place)
    for (one, options), (other, others) in combinations(_places(study).items(), 2):
        _check_pairs(product(options, others), one, other)
    _check_names_of_derived(study)


def _check_names_of_derived(study: Study) -> None:
    """Expressions know axes and earlier derived options by the last part of their names, which must be told apart."""
    known = {axis.short_name: axis.name for axis in study.axes}
    for option in study.derived:
        short = option.rpartition(".")[2]
        if (other := known.setdefault(short, option)) != option:
            msg = f"the derived option {option} and {other} both end in {short!r}, so that an expression with {short} "
            msg += "could mean either; set one of them by the named values of an axis"
            raise ConfigurationError(msg)


def _check_pairs(pairs: Iterator[tuple[str, str]], one: str, other: str) -> None:
    for first, second in pairs:
        parts, others = parts_of(first), parts_of(second)
        length = min(len(parts), len(others))
        if parts[:length] != others[:length]:
            continue
        where = f"{one} and {other} set" if one != other else f"{one} sets"
        which = first if first == second else f"{first} and {second}, which concern the same option"
        msg = f"{where} {which}; set each option in one place, or a value would be lost"
        raise ConfigurationError(msg)


def _mappings(study: Study) -> Iterator[tuple[str, Collection[str]]]:
    """Everything in the YAML that maps options to values."""
    yield "options or --set", study.options
    yield "derived", study.derived
    for axis in study.axes:
        if axis.is_named:
            yield from ((f"the value {label!r} of the axis {axis.name}", value) for label, value in axis.values.items())


def _places(study: Study) -> Mapping[str, Collection[str]]:
    """The options that each part of the YAML may set in a run."""
    places: dict[str, Collection[str]] = {"options or --set": study.options, "derived": study.derived}
    places |= {f"the axis {axis.name}": _options_of(axis) for axis in study.axes}
    return places if study.learning_rate is None else places | {"learning_rate": [RATE_OPTION]}


def varied_options(study: Study) -> list[str]:
    """Returns the options in which the configurations of a study differ: those of its axes, and derived ones.

    Args:
        study: The study.
    """
    return list(dict.fromkeys([*(option for axis in study.axes for option in _options_of(axis)), *study.derived]))


def _options_of(axis: Axis) -> Collection[str]:
    if not axis.is_named:
        return [axis.name]
    return {option for value in axis.values.values() for option in value}


def parts_of(option: str) -> tuple[str, ...]:
    """Splits the name of an option; `model.init_args.lora.r` is the same option as `model.lora.r`.

    Args:
        option: The dotted name.
    """
    return tuple(part for part in option.split(".") if part != "init_args")
