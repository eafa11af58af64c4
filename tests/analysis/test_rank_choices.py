"""Ranks from spectra: against PEFT's own rule, against all combinations, and against equal sizes."""

import itertools

import pytest
import torch
from peft import LoraConfig, convert_to_lora, get_peft_model
from torch import nn

from lora_lightning.analysis.rank_choices import (
    adapter_parameters,
    budget_ranks,
    candidate_ranks,
    cumulative_ranks,
    energy_ranks,
    portable_rank,
    share_of_size,
    uniform_ranks,
)
from lora_lightning.lora.compression import decompose_adapters


class Two(nn.Module):
    """Two layers of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 20), nn.Linear(20, 9)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Both."""
        outputs: torch.Tensor = self.second(self.first(inputs))
        return outputs


@pytest.mark.filterwarnings("ignore:Converting a PEFT adapter")
@pytest.mark.parametrize("share", [0.3, 0.5, 0.75, 0.9, 0.97, 0.999])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_share_of_the_energy_is_pefts_rule(share: float, seed: int) -> None:
    torch.manual_seed(seed)
    network = get_peft_model(Two(), LoraConfig(r=7, lora_alpha=3, target_modules=["first", "second"]))
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            with torch.no_grad():
                parameter.normal_()
                scales = torch.tensor([1.0, 0.7, 0.4, 0.3, 0.2, 0.1, 0.05])
                parameter.mul_(scales[:, None] if "lora_A" in name else scales)
    config, state = convert_to_lora(network, rank=share)
    spectra = {name: layer.spectrum for name, layer in decompose_adapters(network).items()}
    ranks = energy_ranks(spectra, share)
    assert ranks == {name: config.rank_pattern[name] for name in spectra}
    for name, layer in decompose_adapters(network).items():
        a, b = layer.factors(ranks[name], ranks[name])
        theirs = state[f"base_model.model.{name}.lora_B.weight"] @ state[f"base_model.model.{name}.lora_A.weight"]
        torch.testing.assert_close(b @ a, theirs, atol=1e-5, rtol=1e-4)


def test_a_budget_keeps_as_much_energy_as_any_choice() -> None:
    torch.manual_seed(0)
    spectra = {name: torch.rand(4, dtype=torch.float64).sort(descending=True).values for name in "abc"}
    costs = dict.fromkeys(spectra, 10)
    for budget in (30, 50, 70, 110, 120, 500):
        found = budget_ranks(spectra, costs, budget)
        assert adapter_parameters(found, costs) <= budget
        best = max(
            sum(float(spectra[name][:rank].square().sum()) for name, rank in zip("abc", ranks, strict=True))
            for ranks in itertools.product(range(1, 5), repeat=3)
            if 10 * sum(ranks) <= budget
        )
        kept = sum(float(spectra[name][:rank].square().sum()) for name, rank in found.items())
        assert kept == pytest.approx(best)


def test_large_layers_pay_for_their_size() -> None:
    spectra = {"small": torch.tensor([1.0, 0.5]), "large": torch.tensor([1.0, 0.6])}
    assert budget_ranks(spectra, {"small": 1, "large": 10}, 12) == {"small": 2, "large": 1}
    assert budget_ranks(spectra, {"small": 1, "large": 10}, 5) == {"small": 1, "large": 1}  # never less than one


@pytest.mark.parametrize("rule", [energy_ranks, cumulative_ranks])
def test_a_share_uses_the_budget_and_no_more(rule) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    torch.manual_seed(0)
    spectra = {str(name): torch.rand(8, dtype=torch.float64).sort(descending=True).values for name in range(5)}
    costs = {name: 5 + int(name) for name in spectra}
    for k in range(1, 9):
        budget = adapter_parameters(uniform_ranks(spectra, k), costs)
        share, ranks = share_of_size(rule, spectra, costs, budget)
        assert adapter_parameters(ranks, costs) <= budget
        more = rule(spectra, min(1.0, share + 0.05))
        assert k == 8 or adapter_parameters(more, costs) > budget
    assert cumulative_ranks({"x": torch.tensor([3.0, 2.0, 1.0])}, 0.8) == {"x": 2}
    assert energy_ranks({"x": torch.tensor([3.0, 2.0, 1.0])}, 0.6) == {"x": 1}


def test_candidates_and_portable_ranks() -> None:
    assert candidate_ranks(16) == [8, 6, 4, 3, 2, 1]
    assert candidate_ranks(100)[:3] == [64, 32, 16]
    assert candidate_ranks(2) == [1]
    assert candidate_ranks(1) == []
    assert [portable_rank(k) for k in (1, 8, 9, 200, 256, 300)] == [8, 8, 16, 256, 256, 300]


def test_equal_gains_go_to_the_lowest_rank_then_to_the_first_layer() -> None:
    equal = {name: torch.ones(4) for name in ("layer.2", "layer.10", "layer.1")}
    assert budget_ranks(equal, dict.fromkeys(equal, 10), 75) == {"layer.2": 3, "layer.10": 2, "layer.1": 2}
