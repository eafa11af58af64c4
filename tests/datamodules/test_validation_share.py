"""Held-out rows: the asked share of every class, the same for a seed."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lightning.datamodules.validation_share import held_out


@given(st.lists(st.integers(0, 6), min_size=1, max_size=300), st.floats(0.01, 0.99), st.integers(0, 5))
@settings(deadline=None, max_examples=200)
def test_every_class_gives_its_share_and_keeps_a_row(classes: list[int], share: float, seed: int) -> None:
    chosen = held_out(len(classes), share, seed, classes)
    labels = np.array(classes)
    for label in set(classes):
        size, taken = (labels == label).sum(), chosen[labels == label].sum()
        assert size - taken >= 1
        assert abs(taken - share * size) <= 1 or taken == size - 1
    small_classes = sum(share * (labels == label).sum() > (labels == label).sum() - 1 for label in set(classes))
    assert round(share * len(classes)) - small_classes <= chosen.sum() <= round(share * len(classes))


@given(st.integers(2, 300), st.floats(0.01, 0.9))
@settings(deadline=None, max_examples=100)
def test_without_classes_the_share_of_all_rows(rows: int, share: float) -> None:
    assert held_out(rows, share, 0).sum() == min(round(share * rows), rows - 1)


def test_the_choice_follows_the_seed() -> None:
    classes = [0, 1] * 50
    assert (held_out(100, 0.2, 1, classes) == held_out(100, 0.2, 1, classes)).all()
    assert (held_out(100, 0.2, 1, classes) != held_out(100, 0.2, 2, classes)).any()


def test_rows_are_chosen_from_everywhere() -> None:
    counts = sum(held_out(20, 0.25, seed).astype(int) for seed in range(400))
    assert counts.min() > 60  # 100 expected of each
    assert counts.max() < 140
