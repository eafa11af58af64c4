"""Which layers are sensitive to quantization? One backward pass, groups one in and one out, and the worst singly."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from scipy.stats import spearmanr
from torch import Tensor

from lora_lightning.analysis.sensitivity import ChangeScore, change_scores
from lora_lightning.analysis.skip_modules import choose_skip_modules, random_skip_modules
from lora_lightning.diagnosis.base_errors import BaseErrors
from lora_lightning.diagnosis.effects import (
    UNKNOWN,
    Direction,
    Effect,
    Grouping,
    QuantizedParts,
    additivity,
    groups_of,
)
from lora_lightning.diagnosis.opened_runs import OpenedRun, full_weight_of, quantized_weight_of
from lora_lightning.diagnosis.specification import Measuring, SkipProof
from lora_lightning.lora.base_layers import called_linear_layers
from lora_lightning.statistics.jackknife import Interval
from lora_lightning.tasks.causal_language_modeling import CausalLanguageModelingTask
from lora_lightning.tasks.held_out_batches import (
    Batch,
    evaluation_mode,
    isolated_evaluation,
    on_device,
    validation_precision,
)

FEWEST_GROUPS = 3  # for a correlation


@dataclass(frozen=True)
class ModuleScore:
    """A module's scores from one backward pass.

    Attributes:
        module: Dotted name.
        taylor: First-order change of the loss by quantizing it, in nats per label.
        fisher: Half the mean square of the derivatives of losses, which ranks modules and is no divergence in nats.
    """

    module: str
    taylor: float
    fisher: float


@dataclass(frozen=True)
class Agreement:
    """How well a score of one backward pass ranks groups by their measured effect.

    Attributes:
        grouping: How groups were made; their scores are the sums of those of their modules.
        score: `taylor` or `fisher`; against divergences the size of `taylor`.
        effect: `loss` or `divergence`, one in.
        correlation: Spearman's; NaN for fewer than three groups.
        groups: Number of groups.
    """

    grouping: Grouping
    score: str
    effect: str
    correlation: float
    groups: int


@dataclass(frozen=True)
class SkipChoice:
    """Modules to leave unquantized.

    Attributes:
        modules: Their names, the most effect per byte first; empty if none fits.
        more_bytes: What they take more.
        model_bytes: Memory of the quantized model's weights.
        random: Random lists of the same bytes, or as near below as there are.
        random_bytes: What each of them takes more.
    """

    modules: tuple[str, ...]
    more_bytes: int
    model_bytes: int
    random: tuple[tuple[str, ...], ...]
    random_bytes: tuple[int, ...]

    @property
    def lists(self) -> tuple[tuple[str, ...], ...]:
        """The list, then the random ones."""
        return (self.modules, *self.random)

    @property
    def share(self) -> float:
        """What they take more, as a share of the quantized model's memory."""
        return self.more_bytes / self.model_bytes


@dataclass(frozen=True)
class Sensitivity:
    """Which modules are sensitive.

    Attributes:
        metric: The metric of `Effect.metric`.
        examples: How many validation examples were measured.
        predictions: How many of their predictions the divergences are of; of a language model, tokens. 0 without.
        scores: Of all quantized modules, the most sensitive first.
        effects: Of groups and of the worst modules; the last one is of everything.
        additivity: By grouping: sum of the single increases of the loss minus the joint one.
        agreements: Of cheap scores with measured effects.
        skip: What to leave unquantized.
    """

    metric: str
    examples: int
    predictions: int
    scores: tuple[ModuleScore, ...]
    effects: tuple[Effect, ...]
    additivity: Mapping[Grouping, Interval]
    agreements: tuple[Agreement, ...]
    skip: SkipChoice

    @property
    def singles(self) -> tuple[Effect, ...]:
        """The effects of single modules, which only those with the largest scores have."""
        return tuple(each for each in self.effects if each.grouping is Grouping.MODULE)

    @property
    def joint(self) -> Effect:
        """The effect of quantizing everything."""
        return next(effect for effect in self.effects if effect.grouping is Grouping.ALL)


def measure_sensitivity(
    full: OpenedRun,
    quantized: OpenedRun,
    metric: str,
    measuring: Measuring,
    errors: BaseErrors,
    proof: SkipProof,
    report: Callable[[str], None],
) -> Sensitivity:
    """Measures how sensitive modules are.

    Args:
        full: A run without quantization, whose base is quantized in parts.
        quantized: A run with it, which has the dequantized weights.
        metric: The metric that decides, without a split.
        measuring: How much to measure.
        errors: Has the bytes of modules.
        proof: The budget of the list of modules to skip.
        report: Is called with a line about each step.

    Returns:
        Scores, effects, and the list.
    """
    weights = {name: quantized_weight_of(layer) for name, layer in quantized.quantized_layers().items()}
    scores = score_modules(full, weights)
    ordered = sorted(scores, key=lambda name: -scores[name].fisher)
    parts = QuantizedParts(full, weights, metric)
    effects: list[Effect] = []
    sums: dict[Grouping, Interval] = {}
    for grouping in (Grouping.KIND, Grouping.LAYER):
        groups = groups_of(weights, grouping)
        report(f"quantizing {len(groups)} {grouping}s of modules, one in and one out")
        for direction in Direction:
            effects += [parts.effect(name, grouping, direction, own) for name, own in groups.items()]
        complete = sum(map(len, groups.values())) == len(weights)
        sums[grouping] = _additivity(parts, groups) if complete else UNKNOWN
    worst = ordered[: measuring.singles]
    report(f"quantizing the {len(worst)} modules with the largest scores singly")
    effects += [parts.effect(name, Grouping.MODULE, Direction.IN, [name]) for name in worst]
    effects.append(parts.effect("all", Grouping.ALL, Direction.IN, list(weights)))
    return Sensitivity(
        metric=metric,
        examples=parts.none.measured.examples,
        predictions=0 if parts.all.changes is None else len(parts.all.changes.divergences),
        scores=tuple(ModuleScore(name, scores[name].taylor, scores[name].fisher) for name in ordered),
        effects=tuple(effects),
        additivity=sums,
        agreements=tuple(_agreements(effects, scores)),
        skip=choose_skips(effects, scores, errors, proof),
    )


def _additivity(parts: QuantizedParts, groups: Mapping[str, Sequence[str]]) -> Interval:
    return additivity(parts.none, parts.all, [parts.state(own) for own in groups.values()])


class _Changes(Mapping[str, Tensor]):
    """Q(W) - W of each layer, computed when it is needed."""

    def __init__(self, opened: OpenedRun, weights: Mapping[str, Tensor]) -> None:
        self.layers, self.weights = opened.layers, weights

    def __getitem__(self, name: str) -> Tensor:
        own = full_weight_of(self.layers[name])
        return self.weights[name].to(own) - own

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


def score_modules(opened: OpenedRun, weights: Mapping[str, Tensor]) -> dict[str, ChangeScore]:
    """Scores the quantization of every module in one backward pass over the examples.

    Args:
        opened: A run without quantization.
        weights: The dequantized weight of each module.

    Returns:
        Scores by module.
    """
    task = opened.task
    called = called_linear_layers(task.built_network)
    layers = {name: called[name] for name in weights}
    with isolated_evaluation(task), torch.enable_grad(), evaluation_mode(task):
        return change_scores(layers, _Changes(opened, weights), partial(_run_batches, opened))


def _run_batches(opened: OpenedRun) -> Iterator[tuple[int, int]]:
    for batch in opened.examples.batches:
        for part in _parts_of(batch, opened.examples.datamodule.batch_size):
            moved = on_device(opened.trainer, part)
            with validation_precision(opened.trainer):
                loss, labels = summed_loss(opened, moved)
            if labels:  # without one, as of queries that are all out of scope, the mean is not defined
                loss.backward()  # type: ignore[no-untyped-call]
            opened.task.zero_grad(set_to_none=True)
            yield len(next(iter(part.values()))), labels


def _parts_of(batch: Batch, rows: int) -> Iterator[Batch]:
    """A batch of the evaluation in parts of the size that training had: a backward pass keeps what training kept."""
    for start in range(0, len(next(iter(batch.values()))), rows):
        yield {name: values[start : start + rows] for name, values in batch.items()}


def summed_loss(opened: OpenedRun, batch: dict[str, Tensor]) -> tuple[Tensor, int]:
    """The loss of a batch, summed over its labels, without smoothing.

    Args:
        opened: The run, in evaluation mode.
        batch: On the device.

    Returns:
        Differentiable scalar, and the number of labels.
    """
    task = opened.task
    if isinstance(task, CausalLanguageModelingTask):
        loss, labels = task.next_token.loss(batch)
        return loss, labels
    rows = len(next(iter(batch.values())))
    known = rows
    if "labels" in batch and batch["labels"].dim() == 1 and not batch["labels"].is_floating_point():
        known = int((batch["labels"] >= 0).sum())  # the mean is over rows with a class
    return task.evaluate(batch)[-1] * known, known


def _agreements(effects: Sequence[Effect], scores: Mapping[str, ChangeScore]) -> Iterator[Agreement]:
    for grouping in (Grouping.KIND, Grouping.LAYER, Grouping.MODULE):
        measured = [each for each in effects if each.grouping is grouping and each.direction is Direction.IN]
        groups = (
            {each.group: [each.group] for each in measured}
            if grouping is Grouping.MODULE
            else groups_of(scores, grouping)
        )
        for score in ("fisher", "taylor"):
            cheap = [sum(getattr(scores[name], score) for name in groups[each.group]) for each in measured]
            for effect in ("loss", "divergence"):
                values = [getattr(each, effect).value for each in measured]
                # A divergence has no sign: a change that lowers the loss moves the predictions as well.
                ranked = list(map(abs, cheap)) if effect == "divergence" else cheap
                yield Agreement(grouping, score, effect, rank_correlation(ranked, values), len(measured))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation; NaN for fewer than three pairs, or if one side is constant or unknown."""
    if len(first) < FEWEST_GROUPS or len(set(first)) == 1 or len(set(second)) == 1:
        return float("nan")
    return float(spearmanr(first, second).statistic)


def choose_skips(
    effects: Sequence[Effect], scores: Mapping[str, ChangeScore], errors: BaseErrors, proof: SkipProof
) -> SkipChoice:
    """Chooses the modules to leave unquantized, by the measured divergence of the worst ones per byte.

    Args:
        effects: Of single modules, among others.
        scores: Of all modules; they count where the task has no divergences.
        errors: Has the bytes of modules.
        proof: The budget.

    Returns:
        The choice, and random lists of its bytes among all quantized modules.
    """
    more = {each.module: each.full_bytes - each.quantized_bytes for each in errors.layers}
    singles = {each.group: each.divergence.value for each in effects if each.grouping is Grouping.MODULE}
    found = {name: value if value == value else scores[name].fisher for name, value in singles.items()}  # noqa: PLR0124  # NaN
    chosen = choose_skip_modules(found, more, int(proof.more_bytes * errors.quantized_bytes))
    lists = random_skip_modules(more, chosen, proof.random_lists) if chosen else ()
    size, *random = (sum(more[name] for name in names) for names in (chosen, *lists))
    return SkipChoice(chosen, size, errors.quantized_bytes, lists, tuple(random))
