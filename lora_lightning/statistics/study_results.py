"""What a study measured, in the form that its analysis takes: configurations, seeds, outcomes and costs.

A study's engine fills it from its trials, `study audit` from a table. All outcomes are from the test split; what was
used to choose a learning rate or an epoch does not belong here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lora_lightning.statistics.jackknife import Interval, mean_interval

if TYPE_CHECKING:
    from lora_lightning.statistics.claims import Claim

MARGIN_IN_POINTS = 0.5
MARGIN_IN_PERCENT = 1.0
OVERFLOW = 700.0  # a logarithm whose exponential is too large to show


class Scale(StrEnum):
    """How a metric's differences are shown, and in which unit its margin is.

    Attributes:
        FRACTION: Values are fractions, such as accuracy 0.945; differences are shown in points, 100 times as large.
        LOG: Values are natural logarithms, such as the log perplexity; differences are shown in percent of the
            quantity itself.
        PLAIN: Values and differences are shown as they are.
    """

    FRACTION = "fraction"
    LOG = "log"
    PLAIN = "plain"


@dataclass(frozen=True)
class Metric:
    """The metric that decides, and what difference would matter.

    Attributes:
        name: Such as `"accuracy"`.
        margin: The largest loss of quality that does not matter, above 0: in points for `Scale.FRACTION`, in percent
            for `Scale.LOG`, otherwise in the metric's unit.
        higher_is_better: Whether larger values are better.
        scale: How values are stored and differences are shown.
    """

    name: str
    margin: float = MARGIN_IN_POINTS
    higher_is_better: bool = True
    scale: Scale = Scale.FRACTION

    @property
    def unit(self) -> str:
        """The unit of differences and of the margin, after a space."""
        return {Scale.FRACTION: " points", Scale.LOG: " %", Scale.PLAIN: ""}[self.scale]

    @property
    def stored_margin(self) -> float:
        """The margin in the unit of the values; for `Scale.LOG` log(1 + margin / 100)."""
        if self.scale is Scale.LOG:
            return math.log1p(self.margin / 100)
        return self.margin / 100 if self.scale is Scale.FRACTION else self.margin

    def shown_difference(self, difference: float) -> float:
        """Converts a difference into the unit of the margin.

        Args:
            difference: In the unit of the values, signed so that larger is better.

        Returns:
            The difference; for `Scale.LOG` the percentage by which the quantity is better, such as -1 for a perplexity
            that is 1 % higher.
        """
        if self.scale is Scale.LOG:
            return -math.inf if difference <= -OVERFLOW else -100 * math.expm1(-difference)  # NaN stays NaN
        return 100 * difference if self.scale is Scale.FRACTION else difference

    def stored_difference(self, shown: float) -> float:
        """Converts a difference from the unit of the margin into that of the values; inverts `shown_difference`.

        Args:
            shown: A difference as shown.

        Returns:
            The difference, signed so that larger is better; infinite for `Scale.LOG` from 100 % on, which nothing
            reaches.
        """
        if self.scale is Scale.LOG:
            return math.inf if shown >= 100 else -math.log1p(-shown / 100)  # noqa: PLR2004  # percent
        return shown / 100 if self.scale is Scale.FRACTION else shown

    def shown_value(self, value: float) -> float:
        """Converts a value into the one that is shown: percent for a fraction, the quantity itself for its logarithm.

        Args:
            value: As stored.

        Returns:
            The value as shown.
        """
        if self.scale is Scale.LOG:
            return math.inf if value >= OVERFLOW else math.exp(value)
        return 100 * value if self.scale is Scale.FRACTION else value


@dataclass(frozen=True)
class ConfigurationResults:
    """What the runs of one configuration measured.

    Attributes:
        name: Unique in the study, such as `"r = 8"`.
        settings: The values of the study's axes, such as `{"model.lora.r": 8}`.
        values: The metric that decides, by seed.
        outcomes: By seed, shape (examples,), float64: one number per test example, in the same order for all
            configurations, whose mean is the seed's value: hits, or pseudo-values from `statistics.pseudo_values`,
            such as those of the log perplexity over documents. Empty if the metric is no mean over examples; only
            seeds are compared then.
        measurements: Other numbers by name and seed: costs such as `"trainable_parameters"`, and further metrics. A
            number that was not measured is left out.
        curves: Curves by name and seed, shape (2, points), float64: steps or epochs, and values.
        rank: r of its LoRA layers, if the study says it; `None` for full fine-tuning.
        tried_rates: Validation metric by learning rate and seed, of the runs that tried learning rates. Those that
            failed are left out; empty until all of them have ended.
        beside_rank: What it sets beside its rank, such as `"target_modules = attention"`. Configurations of which this
            differs are not compared as ranks.
        failed_seeds: Seeds of its tested runs that failed or have no result. Those that are left may be its good ones,
            so nothing is proven in its favor.
    """

    name: str
    settings: Mapping[str, object]
    values: Mapping[int, float]
    outcomes: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)
    measurements: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    curves: Mapping[str, Mapping[int, NDArray[np.float64]]] = field(default_factory=dict)
    rank: float | None = None
    tried_rates: Mapping[float, Mapping[int, float]] = field(default_factory=dict)
    beside_rank: str = ""
    failed_seeds: Sequence[int] = ()

    @property
    def failures(self) -> str:
        """Such as `3 of 6 runs of r = 8 failed or have no result`; empty if none did."""
        if not self.failed_seeds:
            return ""
        failed = len(self.failed_seeds)
        return f"{failed} of {failed + len(self.values)} runs of {self.name} failed or have no result"

    @property
    def mean_value(self) -> float:
        """The mean of the metric over seeds; NaN without a seed."""
        return float(np.mean(list(self.values.values()))) if self.values else float("nan")

    def shown_interval(self, metric: Metric) -> Interval:
        """The mean of the metric over seeds as it is shown, with its 95 % t interval.

        Args:
            metric: The metric.

        Returns:
            The interval; of a metric that is stored as a logarithm, such as perplexity, around the geometric mean.
        """
        found = mean_interval([*self.values.values()])
        return Interval(*(metric.shown_value(end) for end in (found.value, found.low, found.high)))

    def mean_of(self, name: str) -> float:
        """Averages a measurement over seeds.

        Args:
            name: Name of a measurement.

        Returns:
            The mean; NaN if it was not measured.
        """
        numbers = list(self.measurements.get(name, {}).values())
        return float(np.mean(numbers)) if numbers else float("nan")


@dataclass(frozen=True)
class StudyResults:
    """All that the analysis and the report of a study need.

    Attributes:
        name: Name of the study.
        metric: The metric that decides.
        configurations: All configurations, with their reference.
        reference: Name of the configuration that the others are compared with, chosen before the study ran.
        costs: Names of measurements of which less is better; the first decides which configuration is cheapest.
        sequence: Names of configurations in the order in which a fixed-sequence test takes them, the most expensive
            first, without the reference; for a study of ranks from the largest down. Other configurations are tested
            with Holm's correction.
        full_fine_tuning: Name of the configuration without LoRA, if there is one.
        unfinished: What is missing, such as `"3 of 40 trials have not finished"`; empty for a complete study.
        claims: Claims of others that the study checks, which were fixed before it ran.
        truncated: The same trained adapters after truncation to lower ranks; only claims are about them.
    """

    name: str
    metric: Metric
    configurations: Sequence[ConfigurationResults]
    reference: str
    costs: Sequence[str] = ("trainable_parameters",)
    sequence: Sequence[str] = ()
    full_fine_tuning: str | None = None
    unfinished: str = ""
    claims: Sequence["Claim"] = ()
    truncated: Sequence[ConfigurationResults] = ()

    @property
    def has_ranks(self) -> bool:
        """Whether configurations differ in rank and nothing else, so that figures against it make sense."""
        ranked = [each for each in self.configurations if each.rank is not None]
        kinds = {each.beside_rank for each in ranked}
        return any(len({each.rank for each in ranked if each.beside_rank == kind}) > 1 for kind in kinds)

    def configuration(self, name: str) -> ConfigurationResults:
        """Finds a configuration, truncated or not.

        Args:
            name: Its name.

        Returns:
            The configuration.

        Raises:
            KeyError: If there is none.
        """
        return {each.name: each for each in (*self.configurations, *self.truncated)}[name]
