"""Findings of a healthy pair of precisions, and how to plant one fault at a time."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch

from lora_lightning.analysis.behavior import Flips
from lora_lightning.diagnosis.adapter_similarity import Adapter, AdapterSimilarity, PairKind, compare_adapters
from lora_lightning.diagnosis.advice import advise
from lora_lightning.diagnosis.base_errors import BaseErrors, LayerError
from lora_lightning.diagnosis.costs import cost_table
from lora_lightning.diagnosis.effects import Direction, Effect, Grouping
from lora_lightning.diagnosis.failure_modes import Evidence, find_failure_modes
from lora_lightning.diagnosis.findings import Findings
from lora_lightning.diagnosis.merge_recovery import MergeRecoveries, TargetRecovery
from lora_lightning.diagnosis.model_behavior import Behaviors, LayerAlike, PairBehavior
from lora_lightning.diagnosis.rank_threshold import find_rank_threshold
from lora_lightning.diagnosis.sensitivity import ModuleScore, Sensitivity, SkipChoice
from lora_lightning.diagnosis.skip_proof import RandomList, SkipFinding
from lora_lightning.diagnosis.specification import PRECISION_AXIS, RANK_AXIS, Diagnosis, SkipProof
from lora_lightning.diagnosis.task_numbers import TaskNumbers
from lora_lightning.diagnosis.trained_in_full import TrainedInFull
from lora_lightning.diagnosis.verdicts import reach_verdicts
from lora_lightning.lora.delta import AdapterDelta
from lora_lightning.statistics.divergence import DivergenceSummary, Estimate
from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.paired import paired_difference
from lora_lightning.statistics.recovery import Recovery
from lora_lightning.statistics.study_results import ConfigurationResults, Metric, StudyResults
from lora_lightning.studies.specification import Axis, Study

RANKS, SEEDS, OTHER_SEEDS = (2, 4, 8), (0, 1, 2, 3, 4), (10, 11, 12, 13, 14)
MODULES = [f"encoder.layer.{layer}.{kind}" for layer in range(3) for kind in ("query", "value")]


def diagnosis(**changes: Any) -> Diagnosis:
    """The diagnosis of the planted results."""
    axes = (
        Axis(PRECISION_AXIS, {"float32": {}, "NF4": {"model.quantization": {"bits": 4}}}, is_named=True),
        Axis(RANK_AXIS, {str(rank): rank for rank in RANKS}, is_named=False),
    )
    study = Study("planted", ({},), axes, SEEDS, "accuracy", {PRECISION_AXIS: "float32", "r": RANKS[-1]})
    return replace(Diagnosis(study, "float32", "NF4", RANKS, 8, SEEDS, OTHER_SEEDS), **changes)


@cache
def results(loss: float = 0.0, accuracies: tuple[float, ...] = (0.90, 0.92, 0.92), examples: int = 600) -> StudyResults:
    """What the study of the diagnosis measured.

    Args:
        loss: Of accuracy by quantization.
        accuracies: By rank.
        examples: Test examples.
    """
    random = np.random.default_rng(0)
    difficulty = random.random(examples)
    found = []
    for precision, lost in (("float32", 0.0), ("NF4", loss)):
        for rank, accuracy in zip(RANKS, accuracies, strict=True):
            outcomes = {
                seed: (difficulty + 0.02 * random.normal(size=examples) < accuracy - lost).astype(np.float64)
                for seed in SEEDS
            }
            costs = {"seconds_per_step": 1.0 + 0.5 * (precision == "NF4"), "peak_memory_bytes": 1e9 - 4e8 * bool(lost)}
            costs |= {"trainable_parameters": 1000.0 * rank, "rank_utilization": 0.6}
            found.append(
                ConfigurationResults(
                    f"{precision}, r = {rank}",
                    {PRECISION_AXIS: precision, RANK_AXIS: rank},
                    {seed: float(values.mean()) for seed, values in outcomes.items()},
                    outcomes,
                    {name: dict.fromkeys(SEEDS, number) for name, number in costs.items()},
                    rank=rank,
                )
            )
    return StudyResults("planted", Metric("accuracy", 2.0), found, "float32, r = 8")


def adapters(by_precision: float = 0.3, moved: float = 0.0, r: int = 4, shared: float = 2.0) -> list[Adapter]:
    """Adapters as points: each seed starts elsewhere, and the precision moves it.

    Args:
        by_precision: How far the precision moves an adapter at random, relative to the distance of two seeds.
        moved: How far it moves all adapters in a common direction.
        r: Their rank.
        shared: How much the factors of all seeds have in common; the cosine of two seeds is 0.64, and 0 without it.
    """

    def drawn(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(len(MODULES), r, 44, generator=generator)

    common = drawn(999)
    found = []
    for is_quantized, seeds in ((False, SEEDS), (True, (*SEEDS, *OTHER_SEEDS))):
        for seed in seeds:
            factors = drawn(seed) + shared * drawn(998)
            if is_quantized:
                factors = factors + by_precision * drawn(1000 + seed) + moved * common
            updates = {
                name: AdapterDelta(name, factor[:, :20], factor[:, 20:].T, 2.0)
                for name, factor in zip(MODULES, factors, strict=True)
            }
            precision = "NF4" if is_quantized else "float32"
            found.append(Adapter(f"{precision}, r = 8, seed {seed}", is_quantized, seed, updates))
    return found


@cache
def similarity(**changes: Any) -> AdapterSimilarity:
    """How alike planted adapters are."""
    return compare_adapters(adapters(**changes), SEEDS, OTHER_SEEDS)


def errors(pad_token_id: int = 0) -> BaseErrors:
    """The error of each module."""
    layers = tuple(
        LayerError(name, number // 2, name.rpartition(".")[2], 0.09, 0.02, 0.001, 0.2, 0.1, 1e-4, 4.5, 4 * 960, 540)
        for number, name in enumerate(MODULES)
    )
    canceled = Interval(0.02, 0.015, 0.025), Interval(0.001, -0.001, 0.003)
    return BaseErrors(layers, *canceled, (6, 3), 40_000, 20_000, pad_token_id, vocabulary=100)


def near(value: float, half: float = 0.001) -> Interval:
    """An interval around a number, without 0."""
    half = min(half, abs(value) / 2) if value else half
    return Interval(value, value - half, value + half)


def sensitivity(divergences: Sequence[float] = (0.012, 0.011, 0.01, 0.01, 0.01, 0.009)) -> Sensitivity:
    """What quantizing each module alone does, and all of them together."""
    singles = [
        Effect(name, Grouping.MODULE, Direction.IN, 1, near(value / 2), near(-value / 4), near(value))
        for name, value in zip(MODULES, divergences, strict=True)
    ]
    total = sum(divergences)
    joint = Effect("all", Grouping.ALL, Direction.IN, len(MODULES), near(total / 2), near(-total / 4), near(total))
    groups = [
        Effect(f"layer {layer}", Grouping.LAYER, direction, 2, near(0.01), near(-0.005), near(0.02))
        for direction in Direction
        for layer in range(3)
    ]
    kinds = [
        Effect(kind, Grouping.KIND, direction, 3, near(0.015), near(-0.007), near(0.03))
        for direction in Direction
        for kind in ("query", "value")
    ]
    scores = tuple(ModuleScore(name, value / 3, value / 2) for name, value in zip(MODULES, divergences, strict=True))
    added = {Grouping.KIND: near(0.0), Grouping.LAYER: near(0.001)}
    return Sensitivity(
        "accuracy", 256, 1024, scores, (*kinds, *groups, *singles, joint), added, (), SkipChoice((), 0, 20_000, (), ())
    )


def merges(requantized: float = 0.998, judged: bool = True, dequantized: float = 1.0) -> MergeRecoveries:
    """The recovery ratio of each target."""
    ratios = {"dequantized": dequantized, "original": 0.999, "requantized": requantized}
    targets = tuple(
        TargetRecovery(target, Recovery(near(ratio, 0.003), near(0.5), near(0.5 * (ratio - 1)), judged))
        for target, ratio in ratios.items()
    )
    return MergeRecoveries("NF4, r = 8, seed 0", targets, "")


def curves(rising: int = 0) -> dict[int, np.ndarray[Any, np.dtype[np.float64]]]:
    """The validation losses of all seeds, of which the first ones rise at the end."""
    return {
        seed: np.array([[10, 20, 30], [0.9, 0.6, 0.9 if seed < rising else 0.61 - 0.02 * (seed % 2)]]) for seed in SEEDS
    }


@cache
def healthy() -> Evidence:
    """A pair of precisions in which nothing is wrong."""
    return Evidence(
        ranks=find_rank_threshold(diagnosis(), results()),
        similarity=similarity(),
        errors=errors(),
        sensitivity=sensitivity(),
        merges=merges(),
        utilization={"float32": dict.fromkeys(SEEDS, 0.6), "NF4": dict.fromkeys(SEEDS, 0.55)},
        validation_losses={"float32": curves(), "NF4": curves()},
    )


def behaviors() -> Behaviors:
    """A pair of precisions, a pair of seeds, and one that differs in both."""
    numbers = [Estimate(value, 0.01) for value in (0.02, 0.01, 0.2, 0.4)]
    summary = DivergenceSummary(
        *numbers,
        Estimate(0.5),
        *(Estimate(value, 0.002) for value in (-0.01, 0.05, 0.95, 1.02)),
        rows=1024,
        examples=64,
    )
    layers = (LayerAlike(1.0, 1.0), LayerAlike(0.99, 0.98), LayerAlike(0.97, 0.95))
    flips = Flips(256, 240, 8, 5, 3)
    pair = PairBehavior(
        "float32, r = 8, seed 0", "NF4, r = 8, seed 0", PairKind.PRECISION, summary, layers, Estimate(0.8, 0.1), flips
    )
    other = replace(pair, second="float32, r = 8, seed 1", kind=PairKind.SEED, greedy=None, predictions=None)
    both = replace(
        pair, second="NF4, r = 8, seed 10", kind=PairKind.BOTH, flips=Flips(200, 180, 10, 7, 3), layers=layers[:1] * 3
    )
    return Behaviors(256, 64, 16, "decisions are the class of a text", (pair, other, both))


def skip() -> tuple[SkipChoice, SkipFinding]:
    """A list and what training with it shows."""
    choice = SkipChoice((MODULES[0],), 2000, 20_000, ((MODULES[1],),), (1990,))
    over = paired_difference(np.array([[0.01], [0.012], [0.011]]))
    random = (RandomList("random list 1", 1990, 91.0, over, 0.001),)
    finding = SkipFinding(
        choice.modules, 0.1, near(0.7, 0.1), over, 0.001, random, 1, {"float32": 92.0}, True, "It is proven."
    )
    return choice, finding


def findings(**changes: Any) -> Findings:
    """All of it, of a planted loss by quantization."""
    own, evidence, (choice, finding) = diagnosis(proof=SkipProof(seeds=SEEDS)), healthy(), skip()
    study = results(0.06)
    ranks = find_rank_threshold(own, study)
    failures = find_failure_modes(replace(evidence, errors=errors(pad_token_id=100)))
    assert evidence.merges is not None
    verdicts = reach_verdicts(own, ranks, evidence.similarity, evidence.merges, finding, failures)
    costs = cost_table(own, study, {"float32, r = 8": 40_000.0, "NF4, r = 8": 20_000.0}, {})
    found = Findings(
        name="planted",
        precisions=own.precisions,
        rank=8,
        seeds=SEEDS,
        other_seeds=OTHER_SEEDS,
        measured=("float32, r = 8, seed 0", "NF4, r = 8, seed 0"),
        different_options={},
        metric=study.metric,
        ranks=ranks,
        similarity=evidence.similarity,
        trained_in_full=TrainedInFull(("classifier",), 1000, 0.25, 8),
        errors=evidence.errors,
        sensitivity=replace(sensitivity(), skip=choice),
        behaviors=behaviors(),
        numbers=TaskNumbers(of_tokens=True),
        merges=evidence.merges,
        skip=finding,
        skipped=("pooler",),
        costs=costs,
        failures=failures,
        verdicts=verdicts,
        advice=advise(own, verdicts, costs, ranks.compared, evidence.merges),
        notes=("The report is partial: 3 of 45 trials have not finished.",),
        training_seconds=1000.0,
        measuring_seconds=200.0,
    )
    return replace(found, **changes)
