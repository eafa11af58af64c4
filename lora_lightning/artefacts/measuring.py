"""Compares a merged model with the adapter model on the same examples."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel

from lora_lightning.analysis.outputs import OutputComparison, Outputs, example_scores
from lora_lightning.artefacts.observers import JackknifeMetrics, Observer
from lora_lightning.artefacts.results import DtypeName, MergeMeasurement, MetricEstimate
from lora_lightning.lora.merging import MergeTarget, without_adapters
from lora_lightning.metrics.direction import metric_range
from lora_lightning.statistics import Recovery, jackknife_interval, recovery_ratio

Values = tuple[float, NDArray[np.float64]]  # a metric over all examples, and without each group
AT_ONCE = 8  # batches whose outputs are held together; PiSSA's base is restored once for them


def measure_merge(
    observer: Observer, merged: PreTrainedModel, target: MergeTarget, dtype: DtypeName, size: int
) -> MergeMeasurement:
    """Runs the adapter model, its base and the merged model over all batches.

    Args:
        observer: Has the batches and the adapter model.
        merged: The merged model, in evaluation mode, on the adapter model's device.
        target: What it was merged into.
        dtype: In which its folder keeps the weights.
        size: Bytes of its weight files.

    Returns:
        The measurement, not judged yet.
    """
    to_merged, to_base = OutputComparison(), OutputComparison()
    scores: list[list[list[Outputs]]] = []
    metrics = observer.new_metrics(), observer.new_metrics()
    for adapted, base, found in _observations(observer, merged, metrics):
        for left, without, right in zip(adapted, base, found, strict=True):
            to_merged.update(left, right, without)
            to_base.update(left, without)
        scores.append([[_without_logits(each) for each in part] for part in (base, adapted, found)])
    return MergeMeasurement(
        target=target,
        dtype=dtype,
        difference=to_merged.result(),
        adapter_effect=to_base.result(),
        recovery=_recovery(scores) if observer.has_labels else None,
        metrics=_estimates(*metrics),
        size=size,
    )


def _observations(
    observer: Observer, merged: PreTrainedModel, metrics: tuple[JackknifeMetrics | None, JackknifeMetrics | None]
) -> Iterator[tuple[list[Outputs], list[Outputs], list[Outputs]]]:
    with observer.isolated():
        for start in range(0, len(observer.batches), AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, len(observer.batches)))
            adapted = observer.observe(numbers, metrics[0])
            with without_adapters(observer.network):
                base = observer.observe(numbers)
            with observer.replaced(merged):
                found = observer.observe(numbers, metrics[1])
            yield adapted, base, found


def _without_logits(outputs: Outputs) -> Outputs:
    return outputs._replace(logits=outputs.logits[:0])


def _recovery(scores: list[list[list[Outputs]]]) -> Recovery:
    base, adapted, merged = (example_scores([each for part in scores for each in part[state]]) for state in range(3))
    return recovery_ratio(base[0], adapted[0], merged[0], base[1])


def _estimates(adapter: JackknifeMetrics | None, merged: JackknifeMetrics | None) -> tuple[MetricEstimate, ...]:
    if adapter is None or merged is None:
        return ()
    before, after = adapter.values(), merged.values()
    return tuple(_estimate(*place, before[place], after[place]) for place in before if place in after)


def _estimate(split: str, name: str, before: Values, after: Values) -> MetricEstimate:
    least, greatest = metric_range(name)
    change = jackknife_interval(after[0] - before[0], after[1] - before[1])
    return MetricEstimate(
        split,
        name,
        jackknife_interval(*before).clipped(least, greatest),
        jackknife_interval(*after).clipped(least, greatest),
        change.clipped(least - greatest, greatest - least),
    )
