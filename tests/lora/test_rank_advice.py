"""The advice at the end of training: counts, the rank that is enough, and what to try."""

import torch

from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.rank_advice import rank_advice


def spectrum(k: int, r: int) -> torch.Tensor:
    """An update of rank k: k equal singular values, the others 0."""
    return torch.cat([torch.full((k,), 2.0), torch.zeros(r - k)]).double()


def advice(used: list[int], r: int = 16, use_rslora: bool = False) -> str:
    spectra = {f"layer.{number}.query": spectrum(k, r) for number, k in enumerate(used)}
    lora = LoraSettings(r=r, lora_alpha=24, use_rslora=use_rslora)
    return rank_advice(spectra, dict.fromkeys(spectra, r), lora)


def test_idle_ranks_are_counted_and_a_lower_one_is_proposed() -> None:
    assert advice([3] * 12 + [4] * 12) == (
        "12 of 24 adapters use less than a quarter of r = 16; r = 4 keeps 99 % of the energy of all dW; "
        "try --model.lora.r=4 --model.lora.lora_alpha=6, which keeps the scaling."
    )


def test_a_full_rank_asks_for_more() -> None:
    assert advice([16, 13]) == (
        "the adapters use 81 to 100 % of r = 16; r = 16 keeps 99 % of the energy of all dW; "
        "nothing is idle: if quality still matters more than size, try --model.lora.r=32 "
        "--model.lora.lora_alpha=48, which keeps the scaling."
    )


def test_the_proposed_options_keep_the_scaling() -> None:
    assert "try --model.lora.r=4 --model.lora.lora_alpha=12, which" in advice([4, 4], use_rslora=True)


def test_a_rank_that_fits_stays() -> None:
    assert advice([16, 8]).endswith("r = 16 keeps 99 % of the energy of all dW; r = 16 fits.")


def test_ranks_may_differ() -> None:
    spectra = {"a": spectrum(2, 4), "b": spectrum(3, 32)}
    assert rank_advice(spectra, {"a": 4, "b": 32}) == (
        "1 of 2 adapters uses less than a quarter of their rank (r = 4 to 32); r = 3 keeps 99 % of the energy of all "
        "dW; try r = 3, at the same scaling."
    )


def test_what_did_not_train_or_went_wrong_is_named_and_counts_for_nothing() -> None:
    spectra = {"a": spectrum(2, 8), "b": torch.zeros(8), "c": torch.full((8,), torch.nan)}
    text = rank_advice(spectra, dict.fromkeys(spectra, 8))
    assert text.startswith("the adapters use 25 to 25 % of r = 8; r = 2 keeps")
    assert text.endswith(
        "1 of 3 adapters hold NaN or infinity, c first. 1 of 3 adapters have not moved from dW = 0, b first."
    )
    assert rank_advice({"b": torch.zeros(8)}, {"b": 8}) == "1 of 1 adapters have not moved from dW = 0, b first."
