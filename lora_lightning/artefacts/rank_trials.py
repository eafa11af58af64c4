"""Measures an adapter at many ranks against the full one: a fixed sequence of ranks, and rivals of the same size."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from peft import PeftModel
from torch import Tensor

from lora_lightning.analysis.rank_choices import (
    Ranks,
    adapter_parameters,
    budget_ranks,
    cumulative_ranks,
    energy_ranks,
    share_of_size,
    uniform_ranks,
)
from lora_lightning.artefacts.compress_results import Layout, RankMeasurement, Rule
from lora_lightning.artefacts.example_measuring import Measured, SplitExamples
from lora_lightning.lora.compression import DecomposedLayer, set_adapter_ranks
from lora_lightning.statistics import Interval, Metric, PairedDifference, Verdict
from lora_lightning.statistics.multiple_tests import ERROR_RATE
from lora_lightning.statistics.one_model import example_difference, missing_examples
from lora_lightning.statistics.verdicts import shown_number

ROUNDING = 1e-12  # of the energy; what a truncation loses below it is no loss
RULE_SHARE = 0.9  # of the energy, or of the sum of singular values: the rules of thumb
NO_INTERVAL = Interval(math.nan, math.nan, math.nan)


class RankChoice(NamedTuple):
    """Which ranks the layers get.

    Attributes:
        name: For tables.
        rule: How they were chosen.
        k: As in `RankMeasurement`.
        ranks: By layer.
        parameters: Of the factors.
    """

    name: str
    rule: Rule
    k: int | None
    ranks: Ranks
    parameters: int


class Comparison:
    """Compares models with the full adapter on the same examples, by one metric.

    Args:
        metric: What decides.
        full: The full adapter on the split.
    """

    def __init__(self, metric: Metric, full: Measured) -> None:
        self.metric, self.full = metric, full

    def full_row(self, choice: RankChoice) -> RankMeasurement:
        """The full adapter itself, which is compared with nothing.

        Args:
            choice: Its ranks.

        Returns:
            Its measurement.
        """
        return self._row(choice, self.full, NO_INTERVAL)

    def compare(self, choice: RankChoice, measured: Measured, *, is_tested: bool) -> RankMeasurement:
        """Puts a model beside the full adapter.

        Args:
            choice: What the model is.
            measured: The model on the split.
            is_tested: Whether it gets a verdict.

        Returns:
            The measurement; without an interval if the metric is undefined for one of the models on these examples.
        """
        sign, margin = 1.0 if self.metric.higher_is_better else -1.0, self.metric.stored_margin
        outcomes, full = measured.outcomes(self.metric.name), self.full.outcomes(self.metric.name)
        if outcomes is None or full is None:
            name = self.metric.name
            difference = sign * (measured.stored_value(name) - self.full.stored_value(name))
            row = self._row(choice, measured, replace(NO_INTERVAL, value=difference))
            return replace(row, verdict=Verdict.NOT_ENOUGH_EVIDENCE) if is_tested else row
        found = example_difference(sign * (outcomes - full), self.full.largest_change(self.metric.name))
        row = self._row(choice, measured, found.interval)
        if not is_tested:
            return row
        p_value = found.p_value_above(-margin)
        verdict = _verdict(found, p_value, margin)
        missing = None if verdict is Verdict.WORSE else missing_examples(found, margin)
        return replace(row, verdict=verdict, p_value=p_value, missing_examples=missing)

    def _row(self, choice: RankChoice, measured: Measured, difference: Interval) -> RankMeasurement:
        outcomes = measured.outcomes(self.metric.name)
        examples = measured.examples if outcomes is None else len(outcomes)
        value = measured.stored_value(self.metric.name)
        return RankMeasurement(*choice, examples, value, difference, threshold=measured.threshold)

    def identical(self, choice: RankChoice) -> RankMeasurement:
        """A choice that truncates nothing but rounding."""
        zero = Interval(0.0, 0.0, 0.0)
        full = self.full_row(choice)
        return replace(full, difference=zero, verdict=Verdict.IDENTICAL, p_value=0.0)

    def shown(self, found: RankMeasurement) -> str:
        """A measurement in words, such as `accuracy 94.5, difference -0.10 (-0.40 to 0.20) points, not worse`."""
        value = self.metric.shown_value(found.value)
        verdict = "" if found.verdict is None else f", {found.verdict}"
        return f"{self.metric.name} {value:.4g}, difference {shown_ends(found.difference, self.metric)}{verdict}"


class RankTrials:
    """Truncates one adapter in place to one choice of ranks after the other, and measures each on a split.

    Args:
        network: The adapter model; its adapters change.
        decomposed: Its updates.
        report: Is called with a line about each measurement.
    """

    def __init__(
        self, network: PeftModel, decomposed: dict[str, DecomposedLayer], report: Callable[[str], None]
    ) -> None:
        self.network, self.decomposed, self.report = network, decomposed, report
        self.spectra: dict[str, Tensor] = {name: layer.spectrum for name, layer in decomposed.items()}
        self.costs = {name: layer.parameters for name, layer in decomposed.items()}
        self.r = max(len(spectrum) for spectrum in self.spectra.values())
        self.has_experts = any(len(layer.experts) > 1 for layer in decomposed.values())

    def choice(self, name: str, rule: Rule, k: int | None, ranks: Ranks) -> RankChoice:
        """A choice with its number of parameters."""
        return RankChoice(name, rule, k, ranks, adapter_parameters(ranks, self.costs))

    @property
    def full(self) -> RankChoice:
        """The ranks as they were trained."""
        return self.choice("full adapter", "full", self.r, uniform_ranks(self.spectra, self.r))

    def candidate(self, k: int, layout: Layout) -> RankChoice:
        """The candidate of a rank: uniform, or as many parameters spread over the layers."""
        uniform = uniform_ranks(self.spectra, k)
        if layout != "mixed":
            return self.choice(f"k = {k}", "uniform", k, uniform)
        ranks = budget_ranks(self.spectra, self.costs, adapter_parameters(uniform, self.costs))
        lowest, highest = min(ranks.values()), max(ranks.values())
        return self.choice(f"size of k = {k}: ranks {lowest} to {highest}", "budget", k, ranks)

    def truncate(self, choice: RankChoice) -> PeftModel:
        """The model with its adapters truncated."""
        set_adapter_ranks(self.network, self.decomposed, choice.ranks)
        return self.network

    def run_sequence(
        self, examples: SplitExamples, comparison: Comparison, candidates: Sequence[int], layout: Layout
    ) -> list[RankMeasurement]:
        """Tests candidates from the largest down, until one is not proven.

        The order is fixed beforehand, so the chance of any false proof is at most 5 %.

        Args:
            examples: The split to choose on.
            comparison: With the full adapter on it.
            candidates: Ranks below r, descending.
            layout: Which ranks a candidate has.

        Returns:
            Those tested, in this order.
        """
        found: list[RankMeasurement] = []
        for k in candidates:
            found.append(self._test(examples, comparison, self.candidate(k, layout)))
            if found[-1].verdict is None or not found[-1].verdict.proven:
                break
        return found

    def show_untested(
        self, examples: SplitExamples, comparison: Comparison, candidates: Sequence[int], layout: Layout
    ) -> list[RankMeasurement]:
        """Measures candidates that the sequence did not come to, for the picture; as `run_sequence`."""
        rows = [self._test(examples, comparison, self.candidate(k, layout), is_tested=False) for k in candidates]
        return [replace(row, verdict=Verdict.NOT_TESTED) for row in rows]

    def _test(
        self, examples: SplitExamples, comparison: Comparison, choice: RankChoice, *, is_tested: bool = True
    ) -> RankMeasurement:
        if is_tested and self._loses_nothing(choice.ranks):
            found = comparison.identical(choice)
        else:
            found = comparison.compare(
                choice, examples.measure(self.truncate(choice), chooses_threshold=True), is_tested=is_tested
            )
        self.report(f"{choice.name}: {comparison.shown(found)}")
        return found

    def _loses_nothing(self, ranks: Mapping[str, int]) -> bool:
        """Whether the truncated adapter is the full one to rounding, so that there is nothing to prove."""
        return all(
            float(spectrum[ranks[name] :].square().sum()) <= ROUNDING * float(spectrum.square().sum())
            for name, spectrum in self.spectra.items()
        )

    def rivals(self, k: int, layout: Layout, examples: SplitExamples, comparison: Comparison) -> list[RankMeasurement]:
        """Other choices of ranks with as many parameters as the chosen one, and the rules of thumb at their own size.

        Args:
            k: The chosen rank.
            layout: Of the chosen one, which is no rival of itself.
            examples: The split to choose on.
            comparison: With the full adapter on it.

        Returns:
            Measurements without verdicts; none for adapters on experts, whose ranks PEFT cannot mix.
        """
        if self.has_experts:
            return []
        return [self._test(examples, comparison, each, is_tested=False) for each in self._rival_choices(k, layout)]

    def _rival_choices(self, k: int, layout: Layout) -> list[RankChoice]:
        uniform = uniform_ranks(self.spectra, k)
        budget = adapter_parameters(uniform, self.costs)
        if layout == "mixed":
            choices = [self.choice(f"uniform k = {k}", "uniform", k, uniform)]
        else:
            one_budget = budget_ranks(self.spectra, self.costs, budget)
            choices = [self.choice("one budget over all layers", "budget", k, one_budget)]
        for rule, name, words in (
            (energy_ranks, "energy", "of the energy"),
            (cumulative_ranks, "cumulative", "of the singular values"),
        ):
            share, ranks = share_of_size(rule, self.spectra, self.costs, budget)
            rule_name: Rule = "energy" if name == "energy" else "cumulative"
            choices.append(self.choice(f"{100 * share:.3g} % {words} (same size)", rule_name, None, ranks))
            ranks = rule(self.spectra, RULE_SHARE)
            choices.append(self.choice(f"{100 * RULE_SHARE:g} % {words}", rule_name, None, ranks))
        return choices


def shown_ends(difference: Interval, metric: Metric) -> str:
    """A difference with its interval, in the unit of the margin, such as `-0.10 (-0.40 to 0.20) points`."""
    value, low, high = (
        shown_number(metric.shown_difference(end), metric) if math.isfinite(end) else "unknown"
        for end in (difference.value, difference.low, difference.high)
    )
    return f"{value} ({low} to {high}){metric.unit}"


def _verdict(difference: PairedDifference, p_value: float, margin: float) -> Verdict:
    if difference.note:
        return Verdict.NOT_ENOUGH_EVIDENCE
    if p_value <= ERROR_RATE:
        return Verdict.NOT_WORSE
    return Verdict.WORSE if difference.p_value_below(-margin) <= ERROR_RATE else Verdict.UNDECIDED
