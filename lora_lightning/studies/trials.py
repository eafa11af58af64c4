"""A configuration of a study, and one run of it: their names, options and ids."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_lightning.studies.arithmetic import evaluate_expression
from lora_lightning.studies.specification import RATE_OPTION, SEED_OPTION, Study, label_of

HASH = 8  # hexadecimal digits in a trial's id
READABLE = 60  # characters of a trial's id before the hash
LINE_BREAK, SHOWN_BREAK = re.compile(r"[\n\r\v\f\x85\u2028\u2029]"), "\u21b5"  # an arrow, which ids leave out


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
        rate: The learning rate that it tries, on validation alone; otherwise `None`.
        suggestion: Number of the suggestion of a search that it tries, on validation alone; otherwise `None`.
        labels: Label by axis, of its configuration.
    """

    id: str
    configuration: str
    seed: int
    options: Mapping[str, Any]
    rate: float | None = None
    suggestion: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_tested(self) -> bool:
        """Whether it is tested; what helps to choose is not."""
        return self.rate is None and self.suggestion is None

    @property
    def title(self) -> str:
        """What it is called in output."""
        number = "" if self.suggestion is None else f"search {self.suggestion}: "
        tried = "" if self.rate is None else f", learning rate {self.rate:g}"
        return f"{number}{self.configuration}{tried}, seed {self.seed}"


def make_trial(
    study: Study,
    configuration: Configuration,
    seed: int,
    further: Mapping[str, Any] | None = None,
    rate: float | None = None,
    suggestion: int | None = None,
) -> Trial:
    """Makes the trial of a configuration and a seed.

    Args:
        study: Its options count for all trials.
        configuration: The configuration.
        seed: The seed.
        further: Options that are not part of the configuration.
        rate: The learning rate that it tries, if it is not to be tested.
        suggestion: The number of the suggestion that it tries, if it is not to be tested.

    Returns:
        The trial; its id is the same for the same options and seed.
    """
    options = {**study.options, **configuration.options, **(further or {})}
    kind: dict[str, Any] = {} if rate is None else {"tries": RATE_OPTION}
    kind |= {} if suggestion is None else {"suggestion": suggestion}
    content = json.dumps({**options, SEED_OPTION: seed, **kind}, sort_keys=True, default=str)
    readable = re.sub(r"[^A-Za-z0-9.-]+", "_", configuration.name)[:READABLE].strip("_.-")
    tried = "" if rate is None else f"_rate_{rate:g}"
    first = "" if suggestion is None else f"search_{suggestion}_"
    name = f"{first}{readable}{tried}_seed_{seed}_{hashlib.sha256(content.encode()).hexdigest()[:HASH]}"
    return Trial(name, configuration.name, seed, options, rate, suggestion, configuration.labels)


def make_configuration(study: Study, chosen: Mapping[str, Any]) -> Configuration:
    """Makes a configuration.

    Args:
        study: The study.
        chosen: By axis: the label of a value, or a number for a range.

    Returns:
        The configuration, with derived options.

    Raises:
        ConfigurationError: If an expression is wrong.
    """
    options: dict[str, Any] = {}
    values: dict[str, object] = {}
    labels = {
        axis.name: chosen[axis.name] if axis.range is None else label_of(chosen[axis.name]) for axis in study.axes
    }
    for axis in study.axes:
        value = axis.values[labels[axis.name]] if axis.range is None else chosen[axis.name]
        values[axis.short_name] = labels[axis.name] if axis.is_named else value
        options |= value if axis.is_named else {axis.name: value}
    for option, text in study.derived.items():
        number = evaluate_expression(text, values)
        options[option] = values[option.rpartition(".")[2]] = number
    parts = [
        str(labels[axis.name]) if axis.is_named else f"{axis.short_name} = {labels[axis.name]}" for axis in study.axes
    ]
    name = LINE_BREAK.sub(SHOWN_BREAK, ", ".join(parts))  # tables and comments need one line
    return Configuration(name, {axis: str(label) for axis, label in labels.items()}, options)
