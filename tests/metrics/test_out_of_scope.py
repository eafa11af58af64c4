"""The out-of-scope score and the threshold on it, against NumPy and brute force."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_lightning.metrics import best_threshold, in_scope_prediction, out_of_scope_score
from lora_lightning.metrics.out_of_scope import ABOVE_EVERY_SCORE

Rows = tuple[Tensor, Tensor, Tensor]


def as_rows(values: list[tuple[float, bool, bool]]) -> Rows:
    scores, outside, correct = zip(*values, strict=True)
    return torch.tensor(scores, dtype=torch.float32), torch.tensor(outside), torch.tensor(correct)


# Few distinct values give ties; neighbouring floats have no float32 between them.
TIED = st.sampled_from([0.0, 0.25, 0.5, 1.0])
NEIGHBOURS = st.integers(0, 6).map(lambda step: 1 - step * 2.0**-24)
ANY = st.floats(0, 1, width=32)
ROWS = st.one_of(
    *(
        st.lists(st.tuples(score, st.booleans(), st.booleans()), min_size=1, max_size=30)
        for score in (TIED, NEIGHBOURS, ANY)
    )
).map(as_rows)


def right_rows(rows: Rows, threshold: float) -> int:
    """What the threshold is chosen for, applied as the task applies it: a float32 buffer against float32 scores."""
    scores, outside, correct = rows
    called = scores >= torch.tensor(threshold, dtype=torch.float32)
    return int(torch.where(outside, called, correct & ~called).sum())


@given(ROWS)
@settings(deadline=None, max_examples=500)
def test_no_other_threshold_gets_more_rows_right(rows: Rows) -> None:
    threshold = best_threshold(*rows)
    assert math.isfinite(threshold)
    chosen = right_rows(rows, threshold)
    assert chosen == max(right_rows(rows, candidate) for candidate in [*rows[0].tolist(), math.inf])


@given(ROWS)
@settings(deadline=None, max_examples=300)
def test_of_equally_good_thresholds_the_highest(rows: Rows) -> None:
    threshold = best_threshold(*rows)
    best = right_rows(rows, threshold)
    higher = [candidate for candidate in [*rows[0].tolist(), math.inf] if candidate > threshold]
    called = int((rows[0] >= threshold).sum())
    for candidate in higher:
        if int((rows[0] >= candidate).sum()) < called:
            assert right_rows(rows, candidate) < best


@given(ROWS)
@settings(deadline=None, max_examples=200)
def test_threshold_survives_float32_and_scalar_comparison(rows: Rows) -> None:
    threshold = best_threshold(*rows)
    assert float(torch.tensor(threshold, dtype=torch.float32)) == threshold
    by_scalar = rows[0] >= threshold
    assert by_scalar.tolist() == [score >= threshold for score in rows[0].tolist()]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([(0.25, False, True), (0.75, True, False)], 0.5),
        ([(0.25, False, True), (0.5, False, True)], ABOVE_EVERY_SCORE),  # nothing is out of scope
        ([(0.75, False, True), (0.5, True, False)], ABOVE_EVERY_SCORE),  # as much lost as won
        ([(0.5, False, True), (0.5, True, False)], ABOVE_EVERY_SCORE),  # a tie cannot be cut
        ([(0.25, True, False), (0.5, True, False)], 0.25),  # everything is
        ([(0.75, False, False), (0.5, True, False), (0.25, False, True)], 0.375),  # a wrong intent costs nothing
        ([(0.5, True, True)], 0.5),  # in_scope_correct of an out-of-scope row is ignored
    ],
)
def test_threshold_by_hand(values: list[tuple[float, bool, bool]], expected: float) -> None:
    assert best_threshold(*as_rows(values)) == expected


def test_without_a_query_nothing_is_called_out_of_scope() -> None:
    nothing = torch.empty(0)
    assert best_threshold(nothing, nothing.bool(), nothing.bool()) == ABOVE_EVERY_SCORE


@pytest.mark.parametrize("index", [None, 0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_score_is_one_minus_the_largest_in_scope_probability(index: int | None, dtype: torch.dtype) -> None:
    logits = (torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    before = logits.clone()
    exponents = np.exp(logits.double().numpy())
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    in_scope = [label for label in range(5) if label != index]
    score = out_of_scope_score(logits, index)
    assert score.dtype == torch.float32
    assert score.numpy() == pytest.approx(1 - probabilities[:, in_scope].max(axis=1), abs=1e-6)
    assert ((score >= 0) & (score <= 1)).all()
    expected = np.array(in_scope)[probabilities[:, in_scope].argmax(axis=1)]
    assert in_scope_prediction(logits, index).tolist() == expected.tolist()
    assert logits.equal(before)  # neither changes what it is given


def test_score_is_exact_for_large_logits() -> None:
    logits = torch.tensor([[1000.0, 0.0, 0.0], [0.0, 0.0, 1000.0]])
    assert out_of_scope_score(logits, 2).tolist() == [0.0, 1.0]
    assert out_of_scope_score(logits, None).tolist() == [0.0, 0.0]
