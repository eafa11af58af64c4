"""Proves a list of modules to leave unquantized by training with it, and with random lists of equal bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lora_lightning.diagnosis.rank_threshold import PrecisionLoss
from lora_lightning.diagnosis.sensitivity import SkipChoice
from lora_lightning.diagnosis.specification import QUANTIZATION_OPTION, Diagnosis, SkipProof
from lora_lightning.statistics.jackknife import Interval, jackknife_interval
from lora_lightning.statistics.multiple_tests import ERROR_RATE
from lora_lightning.statistics.paired import PairedDifference
from lora_lightning.statistics.pairing import common_seeds, compare
from lora_lightning.statistics.study_results import ConfigurationResults, Metric
from lora_lightning.studies.option_conflicts import parts_of
from lora_lightning.studies.plan import StudyPlan
from lora_lightning.studies.specification import Axis, Study

LISTS, SENSITIVE, RANDOM = "skip list", "sensitive modules", "random list"
SKIP_MODULES = "skip_modules"


@dataclass(frozen=True)
class SkipFinding:
    """What training with the list shows.

    Attributes:
        modules: The list.
        bytes_share: What it adds to the memory of the quantized model's weights.
        bought_back: The share of the loss by quantization that it buys back, with the jackknife's interval over seeds.
        over_random: The list minus the mean of the random lists, in the metric's stored unit, larger is better.
        p_value: One-sided, of not being better than random lists.
        means: Mean of the metric by list, as shown, with both precisions.
        proven: Whether enough is bought back, and more than by random lists.
        sentence: In words.
    """

    modules: tuple[str, ...]
    bytes_share: float
    bought_back: Interval
    over_random: PairedDifference
    p_value: float
    means: Mapping[str, float]
    proven: bool
    sentence: str


def reason_not_to_train(diagnosis: Diagnosis, choice: SkipChoice | None, loss: PrecisionLoss | None) -> str:
    """Says why no list is trained.

    Args:
        diagnosis: The diagnosis.
        choice: The list; `None` if sensitivity was not measured.
        loss: Both precisions at the compared rank; `None` if runs are missing.

    Returns:
        A sentence; empty if the list is to be trained.
    """
    if diagnosis.proof is None:
        return "No proof was asked for."
    if choice is None:
        return "The sensitivity of modules was not measured."
    if not choice.modules:
        return "No module that is sensitive fits into the budget of bytes, so there is no list to prove."
    if loss is None or not loss.told_from_zero or loss.difference.interval.value >= 0:
        return "The loss by quantization is not told from zero, so there is nothing for a list to buy back."
    return ""


def proof_study(
    diagnosis: Diagnosis, plan: StudyPlan, choice: SkipChoice, proof: SkipProof, skipped: Sequence[str]
) -> Study:
    """Makes the study that trains with each list.

    Args:
        diagnosis: The diagnosis.
        plan: The plan of its study, with the content of the base configs.
        choice: The list, and the random ones.
        proof: Its seeds.
        skipped: The modules that the quantized precision skips anyway.

    Returns:
        A study of lists at the compared rank.
    """
    options = plan.configuration(diagnosis.configuration(diagnosis.quantized, diagnosis.rank)).options
    lists = {SENSITIVE: choice.modules}
    lists |= {f"{RANDOM} {number}": modules for number, modules in enumerate(choice.random, start=1)}
    values = {name: with_skip_modules(options, [*skipped, *modules]) for name, modules in lists.items()}
    return replace(
        plan.study,
        name=f"{plan.study.name}-{SKIP_MODULES}",
        axes=(Axis(LISTS, values, is_named=True),),
        derived={},
        seeds=proof.seeds,
        further_seeds={},
        reference=SENSITIVE,
        costs=("trainable_parameters",),
    )


def with_skip_modules(options: Mapping[str, Any], modules: Sequence[str]) -> dict[str, Any]:
    """Replaces the modules that a precision leaves unquantized.

    Args:
        options: Of `fit`, with `model.quantization` as a mapping or as dotted options.
        modules: The complete list.

    Returns:
        The options.
    """
    whole, single = parts_of(QUANTIZATION_OPTION), parts_of(f"{QUANTIZATION_OPTION}.{SKIP_MODULES}")
    for option, value in options.items():
        if parts_of(option) == whole:
            return {**options, option: {**value, SKIP_MODULES: [*modules]}}
    named = next((option for option in options if parts_of(option) == single), f"{QUANTIZATION_OPTION}.{SKIP_MODULES}")
    return {**options, named: [*modules]}


def judge_skips(
    full: ConfigurationResults,
    quantized: ConfigurationResults,
    lists: Sequence[ConfigurationResults],
    choice: SkipChoice,
    proof: SkipProof,
    metric: Metric,
) -> SkipFinding:
    """Judges the list by the runs.

    Args:
        full: Results without quantization, at the compared rank.
        quantized: Results with everything quantized.
        lists: Results with the list, then with each random list.
        choice: The list.
        proof: What it has to buy back, and for how many bytes.
        metric: The metric that decides.

    Returns:
        The finding.
    """
    chosen, random = lists[0], average(lists[1:])
    ratio = bought_back_share(full, quantized, chosen)
    over = compare(chosen, random, metric)
    p_value = over.p_value_above(0.0)
    enough = ratio.low >= proof.bought_back and choice.share <= proof.more_bytes
    proven = enough and p_value <= ERROR_RATE
    means = {each.name: metric.shown_value(each.mean_value) for each in (full, quantized, *lists) if each.values}
    sentence = f"Leaving {len(choice.modules)} modules unquantized takes {100 * choice.share:.3g} % more memory and "
    sentence += f"buys back {ratio} of the loss by quantization; it is "
    sentence += "better than" if p_value <= ERROR_RATE else "not proven better than"
    sentence += f" the mean of {len(lists) - 1} random lists of equal bytes (one-sided p = {p_value:.3g})."
    return SkipFinding(choice.modules, choice.share, ratio, over, p_value, means, proven, sentence)


def bought_back_share(
    full: ConfigurationResults, quantized: ConfigurationResults, chosen: ConfigurationResults
) -> Interval:
    """The share of a loss that is bought back, (chosen - quantized) / (full - quantized), of means over seeds.

    Args:
        full: Without quantization.
        quantized: With it.
        chosen: With some modules left unquantized.

    Returns:
        The share with the jackknife's interval over the common seeds.
    """
    seeds = common_seeds(full, quantized, chosen)
    gained = np.array([chosen.values[seed] - quantized.values[seed] for seed in seeds])
    lost = np.array([full.values[seed] - quantized.values[seed] for seed in seeds])
    with np.errstate(divide="ignore", invalid="ignore"):
        without = (gained.sum() - gained) / (lost.sum() - lost)
        value = float(np.divide(gained.sum(), lost.sum()))
    return jackknife_interval(value, without)


def average(lists: Sequence[ConfigurationResults]) -> ConfigurationResults:
    """The mean of several configurations, seed by seed and example by example.

    Args:
        lists: At least one.

    Returns:
        Results of the seeds that all have.
    """
    seeds = common_seeds(*lists)
    outcomes = {
        seed: np.mean([each.outcomes[seed] for each in lists], axis=0)
        for seed in seeds
        if all(seed in each.outcomes for each in lists)
    }
    return ConfigurationResults(
        "random lists", {}, {seed: float(np.mean([each.values[seed] for each in lists])) for seed in seeds}, outcomes
    )
