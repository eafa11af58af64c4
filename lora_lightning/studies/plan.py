"""From a study's axes and seeds to its configurations and trials."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.studies.claim_settings import check_claims, check_truncations
from lora_lightning.studies.option_conflicts import check_options_are_set_once, parts_of
from lora_lightning.studies.search_settings import is_finite_number
from lora_lightning.studies.specification import RATE_OPTION, Study, label_of
from lora_lightning.studies.trials import Configuration, Trial, make_configuration, make_trial

RANK = "model.lora.r"
RANKS_BY_LAYER = [parts_of(f"model.lora.{name}") for name in ("rank_pattern", "adalora")]  # then r is not the rank


@dataclass(frozen=True)
class StudyPlan:
    """All that a study will train.

    Attributes:
        study: The study.
        configurations: All combinations of the axes.
        trials: The runs that are known, seed by seed, so that an unfinished study has all configurations with its first
            seeds. If the study chooses learning rates, the runs that try them, and the tested runs of the
            configurations whose rate is chosen. If it searches, the runs of the suggestions so far, and the tested runs
            of the reference and of the winner.
        reference: Name of the reference.
        sequence: Names of configurations in the order of a fixed sequence of tests; empty without one.
        further: Number of runs of a search and of its winner that are not known yet, at most.
        without_rate: Names of configurations of which no learning rate was trained to its end, so that they are not
            tested.
    """

    study: Study
    configurations: tuple[Configuration, ...]
    trials: tuple[Trial, ...]
    reference: str
    sequence: tuple[str, ...]
    further: int = 0
    without_rate: tuple[str, ...] = ()

    @property
    def tested(self) -> tuple[Trial, ...]:
        """The known runs that are tested; those that help to choose are not."""
        return tuple(trial for trial in self.trials if trial.is_tested)

    @property
    def size(self) -> int:
        """Number of all runs, also of those that are not known yet; for a search at most."""
        if self.study.search is not None:
            return len(self.trials) + self.further
        return sum(self.runs_of(each.name) for each in self.configurations)

    def runs_of(self, name: str) -> int:
        """Number of the runs of a configuration of a study without search, also of those that are not known yet."""
        tried = sum(trial.rate is not None for trial in self.trials if trial.configuration == name)
        return tried + (0 if name in self.without_rate else len(self.study.seeds_of(name)))

    def with_rates(self, rates: Mapping[str, float], without_rate: Sequence[str] = ()) -> "StudyPlan":
        """Adds the tested runs of configurations whose learning rate is chosen.

        Args:
            rates: Learning rate by configuration.
            without_rate: Names of configurations for which none will be chosen.

        Returns:
            The plan; for a study that chooses no learning rates the same.
        """
        if self.study.learning_rate is None:
            return self
        tried = tuple(trial for trial in self.trials if trial.rate is not None)
        tested = tuple(
            make_trial(self.study, each, seed, {RATE_OPTION: rates[each.name]})
            for each, seed in seed_by_seed(self.study, self.configurations)
            if each.name in rates
        )
        return replace(self, trials=tried + tested, without_rate=tuple(without_rate))

    def with_further_rates(self, further: Sequence[Trial]) -> "StudyPlan":
        """Adds runs that try learning rates beyond those of the study.

        Args:
            further: The runs.

        Returns:
            The plan.
        """
        return replace(self, trials=(*self.trials, *further)) if further else self

    def with_search(self, tried: Sequence[Trial], winner: Mapping[str, Any] | None, *, is_over: bool) -> "StudyPlan":
        """Adds the runs of a search, and the tested runs of its winner.

        Args:
            tried: The runs of suggestions.
            winner: Values of the winner by axis; `None` until there is one.
            is_over: Whether nothing else will be tried.

        Returns:
            The plan; with the reference alone if it is the winner, too.
        """
        found = self.configurations
        if winner is not None:
            configuration = make_configuration(self.study, winner)
            found += () if configuration.options == found[0].options else (configuration,)
        tested = tuple(make_trial(self.study, each, seed) for seed in self.study.seeds for each in found)
        further = 0 if is_over else _runs_of_search(self.study) - len(tried)
        further += len(self.study.seeds) if winner is None and not is_over else 0
        return replace(self, configurations=found, trials=(*tried, *tested), further=max(0, further))

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
    if study.search is not None:
        known = _reference_of_search(study)
        tested = tuple(make_trial(study, known, seed) for seed in study.seeds)
        further = _runs_of_search(study) + len(study.seeds)
        return StudyPlan(study, (known,), tested, known.name, (), further)
    configurations = tuple(_configurations(study))
    names = [each.name for each in configurations]
    reference = _find_reference(study, configurations)
    sequence = _sequence(study, configurations, reference)
    named = (
        ("sequence", sequence),
        ("full_fine_tuning", filter(None, [study.full_fine_tuning])),
        ("further_seeds", study.further_seeds),
    )
    for key, asked in named:
        if unknown := [name for name in asked if name not in names]:
            msg = f"{key} names {unknown[0]!r}, which is no configuration; {suggest_names(unknown[0], names)}"
            raise ConfigurationError(msg)
    if len(set(sequence)) < len(sequence) or reference in sequence:
        msg = f"the sequence {list(sequence)} must name each configuration once, and not the reference {reference!r}"
        raise ConfigurationError(msg)
    ranks = {each.name: rank_of(each) for each in configurations}
    rates = study.learning_rate
    check_truncations(study.truncations, ranks)
    check_claims(study, ranks, reference)
    if rates is None:
        trials = tuple(make_trial(study, each, seed) for each, seed in seed_by_seed(study, configurations))
    else:
        trials = tuple(
            make_trial(study, each, seed, {RATE_OPTION: rate}, rate)
            for seed in rates.seeds
            for each in configurations
            for rate in rates.values
        )
    return StudyPlan(study, configurations, trials, reference, sequence)


def seed_by_seed(study: Study, configurations: Sequence[Configuration]) -> list[tuple[Configuration, int]]:
    """Which configuration is tested with which seed: first all with each common seed, then further seeds.

    Args:
        study: The study.
        configurations: Its configurations.

    Returns:
        Pairs in the order in which they are trained.
    """
    common = [(each, seed) for seed in study.seeds for each in configurations]
    return common + [(each, seed) for each in configurations for seed in study.further_seeds.get(each.name, ())]


def _runs_of_search(study: Study) -> int:
    """The largest number of runs of a search; of one with a budget alone unknown, and 0."""
    return 0 if study.search is None else (study.search.trials or 0) * len(study.search.seeds)


def _configurations(study: Study) -> list[Configuration]:
    names = [axis.name for axis in study.axes]
    chosen = product(*(axis.values for axis in study.axes))
    found = [make_configuration(study, dict(zip(names, labels, strict=True))) for labels in chosen]
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
    wanted = _values_by_axis(study, study.reference)
    found = [
        each.name
        for each in configurations
        if all(each.labels[name] in _labels_of(value) for name, value in wanted.items())
    ]
    if len(found) != 1:
        shown = ", ".join(f"{name} = {label_of(value)}" for name, value in wanted.items())
        msg = f"the reference ({shown}) fits {len(found)} configurations; it must fit exactly one of {', '.join(names)}"
        raise ConfigurationError(msg)
    return found[0]


def _labels_of(value: Any) -> tuple[str, ...]:
    """The labels that a value in a reference may mean: a text its own, such as '1' in quotes, or one as it is."""
    return (value, label_of(value)) if isinstance(value, str) else (label_of(value),)


def _values_by_axis(study: Study, reference: Mapping[str, Any]) -> dict[str, Any]:
    """What a reference says, by the full names of axes."""
    known = {short: axis.name for axis in study.axes for short in (axis.name, axis.short_name)}
    if unknown := [name for name in reference if name not in known]:
        msg = f"the reference names the axis {unknown[0]!r}; {suggest_names(unknown[0], known)}"
        raise ConfigurationError(msg)
    return {known[name]: value for name, value in reference.items()}


def _reference_of_search(study: Study) -> Configuration:
    """The reference of a search has a value for each axis, which may lie outside of a range."""
    wanted = {} if isinstance(study.reference, str) else _values_by_axis(study, study.reference)
    chosen: dict[str, Any] = {}
    for axis in study.axes:
        value = wanted.get(axis.name)
        if axis.range is None and axis.name in wanted:
            value = next((label for label in _labels_of(value) if label in axis.values), label_of(value))
        if value is None or (axis.range is None and value not in axis.values):
            choices = "a number" if axis.range is not None else f"one of {', '.join(axis.values)}"
            msg = f"the reference {study.reference!r} of the search has no value for the axis {axis.name}, which the "
            msg += f"winner is compared with; add {choices}, such as `reference: {{{axis.short_name}: ...}}`"
            raise ConfigurationError(msg)
        if axis.range is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            msg = f"the reference has {axis.short_name} {value!r}, but a number is needed"
            raise ConfigurationError(msg)
        chosen[axis.name] = value
    return make_configuration(study, chosen)


def _sequence(study: Study, configurations: tuple[Configuration, ...], reference: str) -> tuple[str, ...]:
    """The sequence that the study gives; for a study of ranks alone, from the largest rank down."""
    if study.sequence is not None:
        return study.sequence
    rank = rank_axis(study)
    if rank is None or len(study.axes) > 1:
        return ()
    numbers = {each.name: each.options.get(rank) for each in configurations}
    ranks = {name: number for name, number in numbers.items() if isinstance(number, int | float)}
    if len(ranks) < len(numbers):
        return ()  # the check of the options refuses it
    largest_first = sorted(ranks, key=lambda name: -ranks[name])
    return tuple(largest_first[1:]) if largest_first[0] == reference else ()


def rank_of(configuration: Configuration) -> float | None:
    """Returns the rank that the options of a configuration set for all layers; `None` if they set none, or several.

    Args:
        configuration: The configuration.
    """
    if any(value and parts_of(option)[:3] in RANKS_BY_LAYER for option, value in configuration.options.items()):
        return None
    found = [value for option, value in configuration.options.items() if parts_of(option) == parts_of(RANK)]
    numbers = [float(value) for value in found if is_finite_number(value) and value > 0]
    return numbers[0] if numbers else None


def beside_rank(study: Study, configuration: Configuration) -> str:
    """Returns what a configuration sets beside its rank and the scaling that goes with it, in words.

    Args:
        study: The study.
        configuration: One of its configurations.

    Returns:
        The values of its other axes, if one varies the rank; otherwise all options but r and lora_alpha.
    """
    axis = rank_axis(study)
    if axis is not None:
        axes = {parts_of(each.name) for each in study.axes} - {parts_of(axis)}
        others = {name: value for name, value in configuration.options.items() if parts_of(name) in axes}
    else:
        rank = {parts_of(RANK), parts_of(f"{RANK.rpartition('.')[0]}.lora_alpha")}
        others = {name: value for name, value in configuration.options.items() if parts_of(name) not in rank}
    return ", ".join(f"{name.rpartition('.')[2]} = {value}" for name, value in sorted(others.items()))


def rank_axis(study: Study) -> str | None:
    """Returns the name of the axis that varies the rank, `model.lora.r` or `model.init_args.lora.r`.

    Args:
        study: The study.
    """
    return next((axis.name for axis in study.axes if parts_of(axis.name) == parts_of(RANK)), None)
