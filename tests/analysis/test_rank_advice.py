"""The advice at the end of training: counts, the rank that is enough, and what to try."""

import pytest
import torch

from lora_lightning.analysis.rank_advice import Validation, rank_advice, rank_to_truncate_to
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.variants.adalora import AdaLoraSettings


def spectrum(k: int, r: int) -> torch.Tensor:
    """An update of rank k: k equal singular values, the others 0."""
    return torch.cat([torch.full((k,), 2.0), torch.zeros(r - k)]).double()


def advice(used: list[int], r: int = 16, use_rslora: bool = False) -> str:
    spectra = {f"layer.{number}.query": spectrum(k, r) for number, k in enumerate(used)}
    lora = LoraSettings(r=r, lora_alpha=24, use_rslora=use_rslora)
    return rank_advice(spectra, dict.fromkeys(spectra, r), lora)


def test_idle_ranks_are_counted_and_a_lower_one_is_proposed() -> None:
    assert advice([3] * 12 + [4] * 12) == (
        "12 of 24 adapters use less than a quarter of r = 16; r = 4 keeps 99 % of the energy of every dW of this "
        "adapter; try --model.lora.r=4 --model.lora.lora_alpha=6, which keeps the scaling."
    )


def test_a_full_rank_asks_for_more() -> None:
    assert advice([16, 13]) == (
        "the adapters use 81 to 100 % of r = 16; r = 16 keeps 99 % of the energy of every dW of this adapter; "
        "nothing is idle: if quality still matters more than size, try --model.lora.r=32 "
        "--model.lora.lora_alpha=48, which keeps the scaling."
    )


def test_the_proposed_options_keep_the_scaling() -> None:
    assert "try --model.lora.r=4 --model.lora.lora_alpha=12, which" in advice([4, 4], use_rslora=True)


def test_a_rank_that_fits_stays() -> None:
    assert advice([16, 8]).endswith("r = 16 keeps 99 % of the energy of every dW of this adapter; r = 16 fits.")


def test_ranks_may_differ() -> None:
    spectra = {"a": spectrum(2, 4), "b": spectrum(3, 32)}
    assert rank_advice(spectra, {"a": 4, "b": 32}) == (
        "1 of 2 adapters uses less than a quarter of their rank (r = 4 to 32); r = 3 keeps 99 % of the energy of every "
        "dW of this adapter; try r = 3, at the same scaling."
    )


def test_what_did_not_train_or_went_wrong_is_named_and_counts_for_nothing() -> None:
    spectra = {"a": spectrum(2, 8), "b": torch.zeros(8), "c": torch.full((8,), torch.nan)}
    text = rank_advice(spectra, dict.fromkeys(spectra, 8))
    assert text.startswith("the adapters use 25 to 25 % of r = 8; r = 2 keeps")
    assert text.endswith(
        "1 of 3 adapters hold NaN or infinity, c first. 1 of 3 adapters have not moved from dW = 0, b first."
    )
    assert rank_advice({"b": torch.zeros(8)}, {"b": 8}) == "1 of 1 adapters have not moved from dW = 0, b first."


@pytest.mark.parametrize(("init", "name"), [("pissa", "PiSSA"), ("pissa_niter_4", "PiSSA"), ("olora", "OLoRA")])
def test_a_difference_of_rank_2_r_proposes_no_r(init: str, name: str) -> None:
    spectra = {"a": spectrum(12, 16), "b": spectrum(8, 16)}
    text = rank_advice(spectra, dict.fromkeys(spectra, 16), LoraSettings(r=8, init_lora_weights=init))
    assert text == (
        "the adapters use 50 to 75 % of 2 r = 16; plain LoRA of r = 12 would keep 99 % of the energy of every dW of "
        f"this adapter, but as dW is what {name} learnt less what it started with, that does not tell which r to "
        "train; compare runs with another r."
    )


def adalora_advice(used: dict[str, int], ranks: dict[str, int]) -> str:
    lora = LoraSettings(lora_alpha=24, adalora=AdaLoraSettings(target_r=8, init_r=12))
    return rank_advice({name: spectrum(k, 12) for name, k in used.items()}, ranks, lora)


def test_adaloras_budget_is_what_is_proposed() -> None:
    """The r of other variants it ignores: a run with another one is refused."""
    assert adalora_advice({"a": 6, "b": 2}, {"a": 12, "b": 4}) == (
        "the adapters use 50 to 50 % of the ranks that AdaLoRA left them (4 to 12, of adalora.init_r = 12); an average "
        "rank of 4 keeps 99 % of the energy of each dW; try --model.lora.adalora.target_r=4 "
        "--model.lora.adalora.init_r=6 --model.lora.lora_alpha=12, which keeps the scaling."
    )
    assert adalora_advice({"a": 12, "b": 4}, {"a": 12, "b": 4}).endswith(
        "nothing is idle: if quality still matters more than size, try --model.lora.adalora.target_r=16 "
        "--model.lora.adalora.init_r=24 --model.lora.lora_alpha=48, which keeps the scaling."
    )
    assert adalora_advice({"a": 11, "b": 3}, {"a": 12, "b": 6}).endswith("each dW; adalora.target_r = 8 fits.")


def test_adapters_that_adalora_took_away_count_in_the_average_alone() -> None:
    text = adalora_advice({"a": 12, "b": 0}, {"a": 12, "b": 0})
    assert text.startswith("the adapters use 100 to 100 % of the ranks that AdaLoRA left them (12 to 12, of")
    assert "an average rank of 6 keeps" in text
    assert text.endswith("1 of 2 adapters have no rank left, b first.")


def test_options_are_named_only_where_r_is_what_the_adapters_have() -> None:
    """Every layer may have its rank from rank_pattern, where another r would change nothing."""
    spectra = {"a": spectrum(2, 4), "b": spectrum(2, 4)}
    lora = LoraSettings(r=8, rank_pattern={"a|b": 4})
    assert rank_advice(spectra, dict.fromkeys(spectra, 4), lora).endswith("try r = 2, at the same scaling.")


def validation(**changes: object) -> Validation:
    found = {"metric": "val/accuracy", "value": 0.91, "constant": 0.5, "is_better": True, "examples": 200}
    return Validation(**{**found, **changes})  # type: ignore[arg-type]


def test_a_loud_adapter_does_not_decide_for_36_others() -> None:
    spectra = {**{str(n): spectrum(16, 16) for n in range(36)}, "loud": 1000 * spectrum(1, 16)}
    text = rank_advice(spectra, dict.fromkeys(spectra, 16), LoraSettings(r=16))
    assert "r = 16 keeps 99 % of the energy of every dW of this adapter; " in text
    assert "try r = 1" not in text
    assert "--model.lora.r=1 " not in text
    quiet = {**{str(n): spectrum(2, 16) for n in range(36)}, "odd": spectrum(16, 16)}
    text = rank_advice(quiet, dict.fromkeys(quiet, 16), LoraSettings(r=16))
    assert "r = 2 keeps 99 % of the energy of 36 of the 37 dW of this adapter; try --model.lora.r=2 " in text


def test_nothing_is_said_about_ranks_where_nothing_was_learnt() -> None:
    spectra = {"a": spectrum(2, 8), "b": torch.full((8,), torch.nan)}
    text = rank_advice(spectra, dict.fromkeys(spectra, 8), None, validation(value=0.52, is_better=False))
    assert text == (
        "no advice: val/accuracy is 0.52, not clearly better than the 0.5 of a constant answer (200 validation "
        "examples), so the spectra cannot show which r to use. 1 of 2 adapters hold NaN or infinity, b first."
    )


def test_the_truncated_adapters_metric_stands_beside_the_energy_and_decides() -> None:
    spectra = {"a": spectrum(2, 8)}
    ranks, lora = {"a": 8}, LoraSettings(r=8)
    assert rank_to_truncate_to(spectra, ranks, lora) == 2
    text = rank_advice(spectra, ranks, lora, validation(r=2, truncated=0.905))
    assert (
        "r = 2 keeps 99 % of the energy of every dW of this adapter, and truncated to it, this adapter has "
        "val/accuracy 0.905 instead of 0.91 (200 validation examples); try --model.lora.r=2 "
    ) in text
    text = rank_advice(spectra, ranks, lora, validation(r=2, truncated=0.86, is_worse=True))
    assert text.endswith("0.86 instead of 0.91 (200 validation examples): what it leaves out matters, so keep r = 8.")


@pytest.mark.parametrize(
    "lora", [LoraSettings(r=4, init_lora_weights="pissa"), LoraSettings(adalora=AdaLoraSettings(target_r=4, init_r=8))]
)
def test_other_variants_are_not_truncated(lora: LoraSettings) -> None:
    assert rank_to_truncate_to({"a": spectrum(2, 8)}, {"a": 8}, lora) is None
    assert rank_to_truncate_to({"a": spectrum(8, 8)}, {"a": 8}) is None  # nothing to leave out
    assert rank_to_truncate_to({"a": torch.zeros(8)}, {"a": 8}) is None
