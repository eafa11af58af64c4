"""Whatever was raised becomes the sentence behind it, or nothing."""

from itertools import pairwise

import pytest

from lora_lightning.errors import ConfigurationError, TrainingError
from lora_lightning.training.refusals import as_refusal, own_error


def raised(*errors: Exception) -> Exception:
    """The last of some errors, each raised from the one before."""
    for inner, outer in pairwise(errors):
        outer.__cause__ = inner
    return errors[-1]


def test_our_own_error_is_found_below_others() -> None:
    ours = ConfigurationError("r is 0.")
    assert own_error(raised(ours, ValueError("wrapped"), TypeError("and again"))) is ours


def test_a_chain_that_leads_back_has_an_end() -> None:
    first, second = OSError("a"), OSError("b")
    first.__context__, second.__context__ = second, first
    assert own_error(first) is None


def test_too_little_memory_is_a_sentence() -> None:
    found = as_refusal(
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes")
    )
    assert isinstance(found, TrainingError)
    assert "lower data.batch_size" in str(found)


def test_a_defect_of_ours_stays_what_it_is() -> None:
    with pytest.raises(KeyError) as caught:
        _ = {}["x"]
    assert as_refusal(caught.value) is None


def test_an_error_that_was_never_raised_has_no_place() -> None:
    assert as_refusal(ValueError("nowhere")) is None
