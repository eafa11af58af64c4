"""Derived values: arithmetic is evaluated, and nothing else can be."""

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_lightning.errors import ConfigurationError
from lora_lightning.studies.arithmetic import evaluate_expression

VALUES = {"r": 8, "rate": 1e-3, "modules": ["query"], "kind": "nf4", "flag": True}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 * r", 16),
        (" r ", 8),
        ("-(r + 1) % 4", 3),
        ("r / 2", 4),
        ("r / 3", 8 / 3),
        ("r // 3 + r ** 2", 66),
        ("max(r, 16) + min(r, 2)", 18),
        ("round(r / 3)", 3),
        ("16 * sqrt(r)", 16 * math.sqrt(8)),
        ("rate * r", 8e-3),
        ("64", 64),
    ],
)
def test_arithmetic(text: str, expected: float) -> None:
    found = evaluate_expression(text, VALUES)
    assert found == pytest.approx(expected)
    assert isinstance(found, int) == float(expected).is_integer()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os').system('true')", "is not arithmetic"),
        ("r.__class__", "is not arithmetic"),
        ("(lambda: 1)()", "is not arithmetic"),
        ("[r for r in (1, 2)]", "is not arithmetic"),
        ("'a' * 3", "is not arithmetic"),
        ("True", "is not arithmetic"),
        ("open('x')", "is not arithmetic"),
        ("max(r, key=r)", "is not arithmetic"),
        ("r < 3", "is not arithmetic"),
        ("r if r else 1", "is not arithmetic"),
        ("2 * rank", "names 'rank', but the axes are r, rate, modules, kind, flag"),
        ("2 * modules", "'modules', whose value .* is no number"),
        ("2 * flag", "is no number"),
        ("2 *", "is no arithmetic expression"),
        ("", "is no arithmetic expression"),
        ("import os", "is no arithmetic expression"),
        ("r / 0", "cannot be evaluated"),
        ("sqrt(-r)", "cannot be evaluated"),
        ("(-r) ** 0.5", "a real, finite number is needed"),
        ("9 ** 9 ** 9", "exponent 387420489, which may be at most 64"),
        ("((9 ** 64) ** 64) ** 64", "a number beyond 1e"),
        ("1e400", "a number beyond 1e"),
        ("9" * 150, "a number beyond 1e"),
        ("r + " * 60 + "r", "longer than 200 characters"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        evaluate_expression(text, VALUES)


@given(st.text(max_size=30))
def test_any_text_is_a_number_or_a_sentence(text: str) -> None:
    with suppress(ConfigurationError):
        assert math.isfinite(evaluate_expression(text, VALUES))
