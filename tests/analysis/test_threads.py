"""Results come in order, errors come through, and torch's threads are as before."""

import time

import pytest
import torch

from lora_lightning.analysis.threads import map_in_threads


def test_results_are_in_order_and_each_ran_on_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:

        def work(number: int) -> tuple[int, int]:
            time.sleep(0.01 * (3 - number))
            return number, torch.get_num_threads()

        assert map_in_threads(work, range(4)) == [(number, 1) for number in range(4)]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_an_error_comes_through_and_threads_are_restored() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError):
        map_in_threads(lambda number: 1 / number, [1, 0])
    assert torch.get_num_threads() == before
    assert map_in_threads(len, []) == []
