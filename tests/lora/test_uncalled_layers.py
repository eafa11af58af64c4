"""Layers that a model reads without calling them get no adapter, whatever the architecture calls itself."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.delta import adapted_layers, adapter_factors
from lora_lightning.lora.injection import attach_lora
from lora_lightning.lora.merging import merged_adapters
from lora_lightning.lora.target_modules import resolve_target_modules
from lora_lightning.lora.uncalled_layers import is_never_called
from tests.family_trials.tiny_architectures import tiny_config

# Of the layers of their mixers, those that Mamba's kernels take as weights.
READ = {
    "bamba": {"out_proj"},
    "falcon_h1": {"out_proj"},
    "falcon_mamba": {"x_proj", "dt_proj", "out_proj"},
    "granitemoehybrid": {"out_proj"},
    "jamba": {"dt_proj"},
    "mamba": {"x_proj", "dt_proj", "out_proj"},
    "mamba2": {"out_proj"},
    "nemotron_h": {"out_proj"},
}


@pytest.mark.parametrize("family", list(READ))
def test_every_adapter_of_a_state_space_model_has_an_effect(family: str) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.float32)
    left = set(resolve_target_modules(model, "all-linear", ["lm_head"]))
    mixers = [name for name, module in model.named_modules() if hasattr(module, "A_log")]
    layers = {f"{mixer}.{name}" for mixer in mixers for name in READ[family]}
    assert layers
    assert not left & layers
    network = attach_lora(model, LoraSettings(r=2, lora_dropout=0.0), [], "CAUSAL_LM", ["lm_head"])
    tokens = torch.arange(2, 16).view(2, 7)
    network(tokens).logits.square().sum().backward()
    for name, layer in adapted_layers(network).items():
        b = adapter_factors(layer)[1]
        assert b.grad is not None, name
        assert b.grad.any(), name
        b.data.normal_(0, 0.1)
    network.eval()
    with torch.no_grad():
        adapted = network(tokens).logits
        with merged_adapters(network, "base"):
            merged = network(tokens).logits
    torch.testing.assert_close(merged, adapted, atol=1e-5, rtol=1e-5)


def test_the_projection_of_torchs_attention_is_read_and_dtypes_do_not_count() -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A_log = nn.Parameter(torch.zeros(2))
            self.called, self.read = nn.Linear(2, 2), nn.Linear(2, 2)
            nn.init.zeros_(self.called.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.called(x.to(self.called.weight.dtype)) @ self.read.weight

    model = nn.ModuleDict({"mixer": Mixer(), "attention": nn.MultiheadAttention(4, 2)})
    model.config = tiny_config("llama")  # type: ignore[assignment]
    assert is_never_called(model, "mixer.read")
    assert not is_never_called(model, "mixer.called")
    assert is_never_called(model, "attention.out_proj")
