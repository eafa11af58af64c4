"""The limits of a merge, each on its own."""

from dataclasses import replace
from typing import Any

import pytest

from lora_lightning.analysis.outputs import OutputDifference
from lora_lightning.artefacts.merge_gate import (
    find_fresh_process_failure,
    find_merge_failure,
    find_no_op,
    recommend_target,
)
from lora_lightning.artefacts.results import FreshProcessCheck, MergeMeasurement
from lora_lightning.statistics import Interval, Recovery

FULL = Interval(1.0, 0.99, 1.01)
JUDGED = Recovery(FULL, Interval(0.5, 0.4, 0.6), Interval(0.0, 0.0, 0.0), judged=True)
HARMFUL = replace(JUDGED, ratio=Interval(5.9, 5.7, 6.1), gain=Interval(-0.2, -0.3, -0.1))  # a loss six times as large
UNJUDGED = replace(JUDGED, ratio=Interval(0.1, 0.0, 0.2), judged=False)
EFFECT = OutputDifference(1e-2, 1e-3, 1e-3, 1e-4, 0.0, 20.0, 100)
DIFFERENCE = OutputDifference(1e-6, 1e-7, 1e-7, 1e-12, 0.0, 20.0, 100, lost_share=0.0, effect_norm=50.0)


def measurement(target: Any = "base", dtype: Any = "float32", recovery: Any = JUDGED, **difference: float) -> Any:
    return MergeMeasurement(target, dtype, replace(DIFFERENCE, **difference), EFFECT, recovery, (), 1)


@pytest.mark.parametrize(
    ("measured", "failure"),
    [
        (measurement(), None),
        (measurement(max_logit_difference=1.9e-3), None),  # 1e-4 of 20
        (measurement(max_logit_difference=2.1e-3), "2.0e-03 is allowed"),
        (measurement(max_logit_difference=1.1e-4, largest_logit=0.1), "1.0e-04 is allowed"),
        (measurement("dequantized", max_logit_difference=2.1e-3), "2.0e-03 is allowed"),
        (measurement("original", max_logit_difference=2.1e-1), None),
        (measurement(dtype="bfloat16", max_logit_difference=2.1e-1), None),
        (measurement(max_logit_difference=float("nan")), "not finite"),
        (measurement(max_logit_difference=float("inf"), dtype="float16"), "not finite"),
        (measurement(lost_share=0.01), "99 % of the adapter's effect"),
        (measurement(lost_share=0.01, effect_norm=1e-2), None),  # rounding by chance
        (measurement(recovery=replace(JUDGED, ratio=Interval(0.97, 0.951, 0.99))), None),
        (measurement(recovery=replace(JUDGED, ratio=Interval(0.97, 0.949, 0.99))), "must be above 0.95"),
        (measurement(recovery=UNJUDGED), None),
        (measurement(recovery=None), None),
        (measurement("requantized", recovery=None, lost_share=0.049), None),
        (measurement("requantized", recovery=None, lost_share=0.27), "73 % of the adapter's effect"),
        (measurement("requantized", recovery=None, lost_share=-0.06), "106 % of the adapter's effect"),
        (measurement("original", recovery=UNJUDGED, lost_share=0.06), "95 to 105 % must be"),
        (measurement("original", recovery=UNJUDGED, lost_share=float("nan")), "of the adapter's effect"),
        (measurement("requantized", lost_share=0.27), None),  # the gain decides
        (measurement("requantized", recovery=HARMFUL, lost_share=0.27), "73 % of the adapter's effect"),
        (measurement(dtype="bfloat16", recovery=HARMFUL, rms_logit_difference=1.1e-3), "moves them by 1.0e-03 only"),
        (measurement(dtype="bfloat16", recovery=HARMFUL, rms_logit_difference=0.9e-3), None),
        (measurement(dtype="bfloat16", recovery=None, rms_logit_difference=0.9e-3), None),
        (measurement(dtype="bfloat16", recovery=None, rms_logit_difference=1.1e-3), "moves them by 1.0e-03 only"),
    ],
)
def test_each_limit(measured: MergeMeasurement, failure: str | None) -> None:
    found = find_merge_failure(measured)
    assert (found is None) if failure is None else (found is not None and failure in found)


def test_an_8_bit_base_rounds_its_activations() -> None:
    assert find_merge_failure(measurement("dequantized", max_logit_difference=0.9), tolerance=5e-2) is None
    assert find_merge_failure(measurement("dequantized", max_logit_difference=1.1), tolerance=5e-2) is not None


def test_an_adapter_without_any_effect() -> None:
    assert find_no_op(replace(DIFFERENCE, max_logit_difference=1.9e-5)) is not None
    assert find_no_op(replace(DIFFERENCE, max_logit_difference=2.1e-5)) is None


@pytest.mark.parametrize(
    ("first", "again", "passes"),
    [(1e-3, 0.0, True), (3e-3, 0.0, False), (0.0, 3e-3, False), (0.0, None, True), (float("nan"), 0.0, False)],
)
def test_the_fresh_process_has_the_same_limit(first: float, again: float | None, passes: bool) -> None:
    assert (find_fresh_process_failure(FreshProcessCheck(first, again, 20.0), 1e-4) is None) is passes


def test_the_target_that_changes_least_is_recommended_if_it_passes() -> None:
    found = [
        measurement("dequantized", mean_logit_difference=1e-7),
        measurement("original", mean_logit_difference=1e-2),
        measurement("requantized", mean_logit_difference=2e-2),
    ]
    assert recommend_target(found) == "dequantized"
    assert recommend_target([replace(found[0], failure="broken"), *found[1:]]) == "original"
    assert recommend_target([measurement(mean_logit_difference=float("nan")), found[2]]) == "requantized"
