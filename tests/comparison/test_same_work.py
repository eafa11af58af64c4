"""Sides that did not do the same work are refused, with what differs."""

from typing import Any

import pytest
from comparison.row import Row, Side, logged
from comparison.same_work import CommandError, check_same_work, work_of

HERE = {"torch": "2.13.0+cpu", "torch_build": "a", "threads": 2, "transformers": "5.24.0", "peft": "0.21.2"}


def log(**more: Any) -> dict[str, Any]:
    steps = 12
    found = {"ends": [0.0] * steps, "tokens": [1000] * steps, "labels": [800] * steps, "losses": [2.0] * 9 + [1.0] * 3}
    return {**found, "trainable": 100, "environment": HERE, **more}


def check(ours: dict[str, Any], peer: dict[str, Any], **options: Any) -> None:
    row = Row("a", "tokens/s", (Side("ours", (), logged("x")),), (Side("peer", (), logged("x")),), **options)
    check_same_work(row, {"ours": work_of(ours), "peer": work_of(peer)})


def test_the_same_work_passes() -> None:
    check(log(), log(tokens=[1100] * 12))
    assert work_of(log())["loss"] == 1.0
    short = log(ends=[0.0], tokens=[1000], labels=[1], losses=[3.0])
    check(short, log(ends=[0.0], tokens=[300], labels=[100], losses=[3.0]))  # one batch says nothing


@pytest.mark.parametrize(
    ("peer", "message"),
    [
        ({"environment": {**HERE, "torch": "2.13.0"}}, r"torch is 2\.13\.0\+cpu, the peer's 2\.13\.0"),
        ({"environment": {**HERE, "threads": 1}}, "threads is 2, the peer's 1"),
        ({"environment": {**HERE, "peft": "0.1"}}, "peft is"),
        ({"trainable": 147_940}, "100 trained parameters, the peer's 147,940"),
        ({"tokens": [4096] * 12}, "1000 tokens a step, the peer's 4096"),
        ({"labels": [600] * 12}, "800 labels a step, the peer's 600"),
        ({"losses": [1.0] * 11 + [float("nan")]}, "peer had a loss that is not a finite number"),
    ],
)
def test_other_work_is_refused(peer: dict[str, Any], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        check(log(), log(**peer))


def test_another_model_is_allowed_where_the_row_says_so() -> None:
    check(log(), log(trainable=7), same_model=False)
    of_litgpt = {name: value for name, value in HERE.items() if name != "transformers"} | {"peft": "0.1"}
    check(log(), log(environment=of_litgpt))
