"""Logits of two models are compared: what is not a number is never equal."""

import math

import torch

from lora_lightning.artefacts.plain_adapter import compare_logits

NAN, INF = math.nan, math.inf


def test_what_is_not_a_number_is_infinitely_far_away() -> None:
    numbers, broken = torch.tensor([1.0, -3.0]), torch.tensor([1.0, NAN])
    assert compare_logits([numbers], [numbers + 0.5]) == (0.5, 3.0)
    for pair in ((numbers, broken), (broken, numbers), (broken, broken)):
        assert compare_logits([pair[0]], [pair[1]])[0] == INF
    empty = torch.tensor([NAN, NAN])
    assert compare_logits([empty], [empty]) == (INF, 0.0)


def test_padding_is_not_compared() -> None:
    padded = torch.tensor([2.0, -INF])
    assert compare_logits([padded], [padded]) == (0.0, 2.0)
    assert compare_logits([torch.tensor([-INF])], [torch.tensor([-INF])]) == (0.0, 0.0)
