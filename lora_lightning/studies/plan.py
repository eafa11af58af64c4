"""From a study's axes and seeds to its configurations and trials."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.studies.arithmetic import evaluate_expression
from lora_lightning.studies.option_conflicts import check_options_are_set_once
from lora_lightning.studies.specification import RATE_OPTION, SEED_OPTION, Study, label_of

RANK = "model.lora.r"
HASH = 8  # hexadecimal digits in a trial's id
READABLE = 60  # characters of a trial's id before the hash


@dataclass(frozen=True)
class Configuration:
    """One combination of the axes.

    Attributes:
        name: Such as `"r = 8, lora_dropout = 0.1"`.
        labels: Label by axis.
        options: Options of `fit` that make the configuration, with derived ones.
    """

    name: str
    labels: Mapping[str, str]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """One run of a study.

    Attributes:
        id: Readable, and unique by the hash of its settings; the name of its run folder.
        configuration: Name of its configuration.
        seed: Its `seed_everything`.
        options: Options of `fit` that override the base's, without the seed.
        rate: The learning rate that it tries, on validation alone; `None` for a trial that is tested.
    """

    id: str
    configuration: str
    seed: int
    options: Mapping[str, Any]
    rate: float | None = None

    @property
    def title(self) -> str:
        """What it is called in output."""
        tried = "" if self.rate is None else f", learning rate {self.rate:g}"
        return f"{self.configuration}{tried}, seed {self.seed}"


@dataclass(frozen=True)
class StudyPlan:
    """All that a study will train.

    Attributes:
        study: The study.
        configurations: All combinations of the axes.
        trials: The runs that are known, seed by seed, so that an unfinished study has all configurations with its first
            seeds. If the study chooses learning rates, the runs that try them, and the tested runs of the
            configurations whose rate is chosen.
        reference: Name of the reference.
        sequence: Names of configurations in the order of a fixed sequence of tests; empty without one.
    """

    study: Study
    configurations: tuple[Configuration, ...]
    trials: tuple[Trial, ...]
    reference: str
    sequence: tuple[str, ...]

    @property
    def tested(self) -> tuple[Trial, ...]:
        """The known runs that are tested; those that try learning rates are not."""
        return tuple(trial for trial in self.trials if trial.rate is None)

    @property
    def size(self) -> int:
        """Number of all runs, also of those that are not known yet."""
        return len(self.study.seeds) * len(self.configurations) + sum(trial.rate is not None for trial in self.trials)

    def with_rates(self, rates: Mapping[str, float]) -> "StudyPlan":
        """Adds the tested runs of configurations whose learning rate is chosen.

        Args:
            rates: Learning rate by configuration.

        Returns:
            The plan; for a study that chooses no learning rates the same.
        """
        if self.study.learning_rate is None:
            return self
        tried = tuple(trial for trial in self.trials if trial.rate is not None)
        tested = tuple(
            make_trial(self.study, each, seed, {RATE_OPTION: rates[each.name]})
            for seed in self.study.seeds
            for each in self.configurations
            if each.name in rates
        )
        return replace(self, trials=tried + tested)

    def configuration(self, name: str) -> Configuration:
        """Finds a configuration by its name."""
        return next(each for each in self.configurations if each.name == name)


def plan_study(study: Study) -> StudyPlan:
    """Plans a study.

    Args:
        study: The study.

    Returns:
        Configurations and trials, whose options are not checked yet.

    Raises:
        ConfigurationError: If an option is set twice, an expression is wrong, two configurations are equal, or the
            reference, the sequence or full fine-tuning names no configuration.
    """
    check_options_are_set_once(study)
    configurations = tuple(_configurations(study))
    names = [each.name for each in configurations]
    reference = _find_reference(study, configurations)
    sequence = _sequence(study, configurations, reference)
    for key, asked in (("sequence", sequence), ("full_fine_tuning", filter(None, [study.full_fine_tuning]))):
        if unknown := [name for name in asked if name not in names]:
            msg = f"{key} names {unknown[0]!r}, which is no configuration; {suggest_names(unknown[0], names)}"
            raise ConfigurationError(msg)
    if len(set(sequence)) < len(sequence) or reference in sequence:
        msg = f"the sequence {list(sequence)} must name each configuration once, and not the reference {reference!r}"
        raise ConfigurationError(msg)
    rates = study.learning_rate
    if rates is None:
        trials = tuple(make_trial(study, each, seed) for seed in study.seeds for each in configurations)
    else:
        trials = tuple(
            make_trial(study, each, seed, {RATE_OPTION: rate}, rate)
            for seed in rates.seeds
            for each in configurations
            for rate in rates.values
        )
    return StudyPlan(study, configurations, trials, reference, sequence)


def make_trial(
    study: Study,
    configuration: Configuration,
    seed: int,
    further: Mapping[str, Any] | None = None,
    rate: float | None = None,
) -> Trial:
    """Makes the trial of a configuration and a seed.

    Args:
        study: Its options count for all trials.
        configuration: The configuration.
        seed: The seed.
        further: Options that are not part of the configuration.
        rate: The learning rate that it tries, if it is not to be tested.

    Returns:
        The trial; its id is the same for the same options and seed.
    """
    options = {**study.options, **configuration.options, **(further or {})}
    kind = {} if rate is None else {"tries": RATE_OPTION}
    content = json.dumps({**options, SEED_OPTION: seed, **kind}, sort_keys=True, default=str)
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", configuration.name)[:READABLE].strip("_.-")
    tried = "" if rate is None else f"_rate_{rate:g}"
    name = f"{readable}{tried}_seed_{seed}_{hashlib.sha256(content.encode()).hexdigest()[:HASH]}"
    return Trial(name, configuration.name, seed, options, rate)


def _configurations(study: Study) -> list[Configuration]:
    found = []
    for labels in product(*(axis.values for axis in study.axes)):
        options: dict[str, Any] = {}
        values: dict[str, object] = {}
        for axis, label in zip(study.axes, labels, strict=True):
            value = axis.values[label]
            values[axis.short_name] = label if axis.is_named else value
            options |= value if axis.is_named else {axis.name: value}
        for option, text in study.derived.items():
            number = evaluate_expression(text, values)
            options[option] = values[option.rpartition(".")[2]] = number
        by_axis = {axis.name: str(label) for axis, label in zip(study.axes, labels, strict=True)}
        parts = [
            str(label) if axis.is_named else f"{axis.short_name} = {label}"
            for axis, label in zip(study.axes, labels, strict=True)
        ]
        found.append(Configuration(", ".join(parts), by_axis, options))
    for number, each in enumerate(found):
        if same := [other.name for other in found[:number] if other.options == each.options or other.name == each.name]:
            msg = f"the configurations {same[0]!r} and {each.name!r} are the same; leave one of them out"
            raise ConfigurationError(msg)
    return found


def _find_reference(study: Study, configurations: tuple[Configuration, ...]) -> str:
    names = [each.name for each in configurations]
    if isinstance(study.reference, str):
        if study.reference not in names:
            msg = f"the reference {study.reference!r} is no configuration; {suggest_names(study.reference, names)}"
            raise ConfigurationError(msg)
        return study.reference
    wanted = dict(study.reference)
    known = {short: axis.name for axis in study.axes for short in (axis.name, axis.short_name)}
    if unknown := [name for name in wanted if name not in known]:
        msg = f"the reference names the axis {unknown[0]!r}; {suggest_names(unknown[0], known)}"
        raise ConfigurationError(msg)
    labels = {known[name]: value if isinstance(value, str) else label_of(value) for name, value in wanted.items()}
    found = [each.name for each in configurations if labels.items() <= each.labels.items()]
    if len(found) != 1:
        shown = ", ".join(f"{name} = {label}" for name, label in labels.items())
        msg = f"the reference ({shown}) fits {len(found)} configurations; it must fit exactly one of {', '.join(names)}"
        raise ConfigurationError(msg)
    return found[0]


def _sequence(study: Study, configurations: tuple[Configuration, ...], reference: str) -> tuple[str, ...]:
    """The sequence that the study gives; for a study of ranks alone, from the largest rank down."""
    if study.sequence is not None:
        return study.sequence
    ranks = {each.name: each.options.get(RANK) for each in configurations}
    largest_first = sorted(ranks, key=lambda name: -float(ranks[name] or 0))
    if [axis.name for axis in study.axes] != [RANK] or largest_first[0] != reference:
        return ()
    return tuple(largest_first[1:])
