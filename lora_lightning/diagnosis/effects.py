"""What quantizing a part of the base does to a model: change of loss, metric and predictions, with intervals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from lora_lightning.analysis.behavior import PredictionChanges
from lora_lightning.artefacts.example_measuring import Measured
from lora_lightning.diagnosis.opened_runs import OpenedRun
from lora_lightning.diagnosis.prediction_rows import PredictionRecorder, Predictions
from lora_lightning.lora.base_layers import weights_replaced
from lora_lightning.lora.delta import split_layer_number
from lora_lightning.metrics.direction import higher_is_better
from lora_lightning.statistics.jackknife import Interval, jackknife_interval, weighted_means
from lora_lightning.statistics.one_model import example_difference
from lora_lightning.tasks.outcome_rows import SCORE, WEIGHT

NOTHING = float("nan")
UNKNOWN = Interval(NOTHING, NOTHING, NOTHING)
Array = NDArray[np.float64]


class Grouping(StrEnum):
    """How modules are grouped.

    Attributes:
        KIND: By their name within the layer, such as all queries.
        LAYER: By the number of the layer.
        MODULE: Each alone.
        ALL: All together.
    """

    KIND = "kind"
    LAYER = "layer"
    MODULE = "module"
    ALL = "all"


class Direction(StrEnum):
    """Between which states an effect is measured.

    Attributes:
        IN: Only the group is quantized, against nothing.
        OUT: Everything is quantized, against everything but the group.
    """

    IN = "one in"
    OUT = "one out"


@dataclass(frozen=True)
class Effect:
    """What quantizing a group of modules adds.

    Attributes:
        group: Its name.
        grouping: How it was made.
        direction: Between which states.
        modules: Number of modules.
        loss: Increase of the loss, in nats per label.
        metric: Change of the metric that decides, in its stored unit, larger is better.
        divergence: Increase of the Kullback-Leibler divergence from the model without quantization, in nats.
    """

    group: str
    grouping: Grouping
    direction: Direction
    modules: int
    loss: Interval
    metric: Interval
    divergence: Interval


@dataclass(frozen=True)
class State:
    """A state of the model on the examples.

    Attributes:
        measured: Metrics and rows.
        changes: Of its predictions from those of the model without quantization; `None` for that model.
    """

    measured: Measured
    changes: PredictionChanges | None

    @property
    def losses(self) -> tuple[Array, Array]:
        """Loss and weight of each example; empty if the task has none."""
        rows = self.measured.rows
        if SCORE not in rows:
            return np.zeros(0), np.zeros(0)
        return -rows[SCORE].astype(np.float64), rows[WEIGHT].astype(np.float64)

    def divergences(self, count: int) -> tuple[Array, Array]:
        """Sum of the divergences and number of rows of each example; zeros for the model without quantization."""
        if self.changes is None:
            return np.zeros(count), np.ones(count)
        places = self.changes.examples
        return (
            np.bincount(places, weights=self.changes.divergences, minlength=count).astype(np.float64),
            np.bincount(places, minlength=count).astype(np.float64),
        )


class QuantizedParts:
    """Quantizes parts of a run's base, in place and for a while, and measures what that does.

    Args:
        opened: A run without quantization.
        weights: The dequantized weight of each module that the quantized base has, by name.
        metric: The metric that decides, without a split.
    """

    def __init__(self, opened: OpenedRun, weights: Mapping[str, Tensor], metric: str) -> None:
        self.opened, self.weights, self.metric = opened, weights, metric
        self.layers: dict[str, nn.Module] = opened.layers
        self._reference: list[Predictions] | None = None
        self._known: dict[frozenset[str], State] = {}
        self.none = self.state([])
        self.all = self.state(weights)

    def effect(self, group: str, grouping: Grouping, direction: Direction, modules: Sequence[str]) -> Effect:
        """Measures a group.

        Args:
            group: Its name.
            grouping: How it was made.
            direction: Between which states.
            modules: Names of its modules.

        Returns:
            What quantizing it adds.
        """
        if direction is Direction.IN:
            before, after = self.none, self.state(modules)
        else:
            before, after = self.state(self.weights.keys() - set(modules)), self.all
        return Effect(
            group,
            grouping,
            direction,
            len(modules),
            loss=loss_change(before, after),
            metric=metric_change(before, after, self.metric),
            divergence=divergence_change(before, after),
        )

    def state(self, modules: Iterable[str]) -> State:
        """The model with these modules quantized; measured once."""
        chosen = frozenset(modules)
        if chosen not in self._known:
            self._known[chosen] = self._measure(chosen)
        return self._known[chosen]

    def _measure(self, modules: Iterable[str]) -> State:
        opened = self.opened
        recorder = PredictionRecorder(opened.task, len(opened.examples.batches), self._reference)
        chosen = {name: self.weights[name] for name in modules}
        with weights_replaced(self.layers, chosen):
            measured = opened.examples.measure(opened.task.built_network, recorder.watch)
        if self._reference is None:
            self._reference = recorder.kept
            return State(measured, None)
        return State(measured, recorder.all_changes)


def loss_change(before: State, after: State) -> Interval:
    """The increase of the loss, with the jackknife's interval over examples."""
    losses, weights = before.losses
    others, _ = after.losses
    kept = weights > 0
    if not kept.any():
        return UNKNOWN
    value, without = weighted_means((others - losses)[kept], weights[kept])
    return jackknife_interval(value, without)


def divergence_change(before: State, after: State) -> Interval:
    """The increase of the divergence from the model without quantization, with an interval over examples."""
    known = [state.changes.examples for state in (before, after) if state.changes is not None]
    if not known:
        return UNKNOWN
    count = int(max(examples.max() for examples in known)) + 1
    (sums, _), (others, counts) = before.divergences(count), after.divergences(count)
    kept = counts > 0
    value, without = weighted_means((others - sums)[kept] / counts[kept], counts[kept])
    return jackknife_interval(value, without)


def metric_change(before: State, after: State, metric: str) -> Interval:
    """The change of a metric, larger is better, with an interval over examples if it is a mean over them."""
    sign = 1.0 if higher_is_better(metric) is not False else -1.0
    first, second = (state.measured.outcomes(metric) for state in (before, after))
    if first is None or second is None or len(first) != len(second):
        change = sign * (after.measured.stored_value(metric) - before.measured.stored_value(metric))
        return Interval(change, NOTHING, NOTHING)
    return example_difference(sign * (second - first), before.measured.largest_change(metric)).interval


def additivity(none: State, joint: State, parts: Sequence[State]) -> Interval:
    """The sum of the parts' increases of the loss minus the increase by all of them together.

    Args:
        none: The model without quantization.
        joint: With everything quantized.
        parts: With one group each, which together are everything.

    Returns:
        0 if effects add up; with the jackknife's interval over examples.
    """
    losses, weights = none.losses
    kept = weights > 0
    if not kept.any() or not parts:
        return UNKNOWN
    summed = np.sum([part.losses[0] - losses for part in parts], axis=0)
    value, without = weighted_means((summed - (joint.losses[0] - losses))[kept], weights[kept])
    return jackknife_interval(value, without)


def groups_of(modules: Iterable[str], grouping: Grouping) -> dict[str, list[str]]:
    """Groups modules.

    Args:
        modules: Dotted names.
        grouping: By kind or by layer.

    Returns:
        Names by group, in the model's order; layers are called `layer 3`, and those outside are left out.
    """
    groups: dict[str, list[str]] = {}
    for module in modules:
        number, kind = split_layer_number(module)
        if grouping is Grouping.KIND:
            groups.setdefault(kind, []).append(module)
        elif number is not None:
            prefix = module.removesuffix(kind).rstrip(".").rpartition(".")[0]
            groups.setdefault(f"{prefix} {number}", []).append(module)
    prefixes = {name.rpartition(" ")[0] for name in groups}
    if grouping is Grouping.LAYER and len(prefixes) == 1:  # one stack of layers
        return {f"layer {name.rpartition(' ')[2]}": own for name, own in groups.items()}
    return groups
