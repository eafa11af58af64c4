"""How much data a proof takes: the power of the test of non-inferiority, and what is missing in words.

Power is that of the larger of both estimates' t tests, from noncentral t distributions. More seeds shrink the variance
of seeds and of the rest, more test examples that of examples and of the rest.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from scipy.special import nctdtr, ndtr, stdtrit

from lora_lightning.statistics.multiple_tests import ERROR_RATE
from lora_lightning.statistics.paired import VarianceComponents

POWER = 0.8
MOST_SEEDS = 200  # that a plan adds beside test examples
FEASIBLE_SEEDS = 1000  # more of them are no advice
MANY = 10**9  # more seeds or examples than this are no number at all
NORMAL = 1e5  # degrees of freedom from which a t distribution is a normal one


@dataclass(frozen=True)
class MissingEvidence:
    """What it takes to prove non-inferiority with a power of 80 %.

    Attributes:
        seeds: Further seeds, two significant digits; 0 if none are needed.
        examples: Further test examples, two significant digits; 0 if none are needed.
        enough_seeds_exist: Whether seeds alone could do.
    """

    seeds: int
    examples: int
    enough_seeds_exist: bool

    def __str__(self) -> str:
        """Such as `4 more seeds`, or `no number of seeds will do: 2,900 more test examples`."""
        seeds = f"{self.seeds:,} more seed{'s' * (self.seeds != 1)}" if self.seeds else ""
        examples = f"{self.examples:,} more test example{'s' * (self.examples != 1)}" if self.examples else ""
        needed = " and ".join(part for part in (examples, seeds) if part)
        return needed if self.enough_seeds_exist else f"no number of seeds will do: {needed}"


def power_of_t_test(distance: float, standard_error: float, freedom: float, error_rate: float = ERROR_RATE) -> float:
    """Computes the power of a one-sided t test.

    Args:
        distance: True mean minus the bound that is tested against.
        standard_error: Of the mean.
        freedom: Degrees of freedom.
        error_rate: Of the test.

    Returns:
        The probability of a rejection.
    """
    if standard_error == 0:
        return float(distance > 0)
    shift, critical = distance / standard_error, float(stdtrit(freedom, 1 - error_rate))
    if freedom >= NORMAL or shift > 30:  # noqa: PLR2004  # nctdtr loses digits far out
        return float(ndtr(shift - critical))
    return float(1 - nctdtr(freedom, shift, critical))


def planned_power(
    components: VarianceComponents, distance: float, seeds: int, examples: int, error_rate: float = ERROR_RATE
) -> float:
    """Computes the power of a study that is to be run.

    Args:
        components: Variances of the paired difference.
        distance: True mean difference plus the margin.
        seeds: Number of seeds, at least 2.
        examples: Number of test examples; up to 1 if only seeds are compared.
        error_rate: Of the test; with Holm's correction the share of 5 % that this comparison has.

    Returns:
        The smaller power of both t tests.
    """
    columns = max(examples, 1)
    of_means = math.sqrt((components.seeds + components.rest / columns) / seeds)
    power = power_of_t_test(distance, of_means, seeds - 1, error_rate)
    if examples < 2:  # noqa: PLR2004
        return power
    of_seeds = columns * components.seeds + components.rest
    of_examples = seeds * components.examples + components.rest
    total = of_seeds + of_examples - components.rest
    if total == 0:
        return power
    squares = of_seeds**2 / (seeds - 1) + of_examples**2 / (columns - 1)
    squares += components.rest**2 / ((seeds - 1) * (columns - 1))
    two_way = power_of_t_test(distance, math.sqrt(total / (seeds * columns)), total**2 / squares, error_rate)
    return min(power, two_way)


def power_with_all_seeds(
    components: VarianceComponents, distance: float, examples: int, error_rate: float = ERROR_RATE
) -> float:
    """Computes the power in the limit of infinitely many seeds.

    Args:
        components: Variances of the paired difference.
        distance: True mean difference plus the margin.
        examples: Number of test examples; up to 1 if only seeds are compared.
        error_rate: Of the test.

    Returns:
        The power that the variance between test examples leaves.
    """
    columns = max(examples, 2)
    return power_of_t_test(distance, math.sqrt(components.examples / columns), columns - 1, error_rate)


def smallest_number(enough: Callable[[int], bool], start: int) -> int | None:
    """Finds the smallest number from which a condition holds.

    Args:
        enough: Holds for all numbers from the smallest one.
        start: The smallest number allowed.

    Returns:
        The number; `None` if there is none up to a billion.
    """
    low, high = start - 1, start
    while not enough(high):
        low, high = high, max(1, 2 * high)
        if high > MANY:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def examples_for_equality(distance: float, limit: float, error_rate: float = ERROR_RATE) -> int:
    """Computes of how many test examples equal outcomes are a proof, two significant digits.

    Args:
        distance: The mean difference that they have to rule out, above 0.
        limit: The largest possible absolute difference of an example.
        error_rate: Of the test.
    """
    share = min(distance / limit, 1.0)
    return round_up(math.ceil(math.log(error_rate) / math.log1p(-share))) if share < 1 else 1


def round_up(number: int) -> int:
    """Rounds up to two significant digits, so that no digit promises what a plan cannot."""
    digits = max(0, len(str(number)) - 2)
    return int(-(-number // 10**digits) * 10**digits)


def missing_evidence(
    components: VarianceComponents,
    distance: float,
    seeds: int,
    examples: int,
    error_rate: float = ERROR_RATE,
    least_examples: int = 0,
) -> MissingEvidence | None:
    """Computes what it takes to prove non-inferiority with a power of 80 %.

    Args:
        components: Variances of the paired difference, as estimated.
        distance: Assumed true mean difference plus the margin.
        seeds: Seeds so far, at least 2.
        examples: Test examples so far; 0 if only seeds are compared.
        error_rate: Of the test; with Holm's correction the share of 5 % that this comparison has.
        least_examples: That the score test needs, whatever the seeds.

    Returns:
        Seeds, if up to 1,000 of them will do; otherwise test examples, or both; `None` if no study that one could run
        will do, or the assumed difference is not above minus the margin, so that nothing can be proven.
    """
    if distance <= 0:
        return None

    def is_enough(planned_seeds: int, planned_examples: int) -> bool:
        return planned_power(components, distance, planned_seeds, planned_examples, error_rate) >= POWER

    if least_examples > examples:
        more = round_up(least_examples - examples)
        if is_enough(seeds, examples + more):
            return MissingEvidence(0, more, enough_seeds_exist=True)
        found = missing_evidence(components, distance, seeds, examples + more, error_rate)
        return found and replace(found, examples=round_up(found.examples + more))
    seeds_do = power_with_all_seeds(components, distance, examples, error_rate) >= POWER
    if seeds_do and is_enough(seeds + FEASIBLE_SEEDS, examples):
        needed = smallest_number(lambda n: is_enough(n, examples), seeds) or seeds
        return MissingEvidence(round_up(max(1, needed - seeds)), 0, enough_seeds_exist=True)
    several = range(seeds, seeds + MOST_SEEDS if examples > 1 else seeds)  # without examples, nothing tells how many do
    plans = [(planned, smallest_number(partial(is_enough, planned), examples)) for planned in several]
    runs = {planned: planned * found for planned, found in plans if found is not None}
    if not runs:
        return None
    # Examples alone are preferred unless a few more seeds save most of the work.
    planned = seeds if runs.get(seeds, math.inf) <= 2 * min(runs.values()) else min(runs, key=lambda each: runs[each])
    more = round_up(max(1, runs[planned] // planned - examples))
    return MissingEvidence(round_up(planned - seeds), more, enough_seeds_exist=seeds_do)
