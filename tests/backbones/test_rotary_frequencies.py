"""Frequencies that depend on a row's length: what a model saw before changes neither its logits nor its buffers."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from lora_lightning.backbones.rotary_frequencies import reset_frequencies_after_each_pass
from lora_lightning.callbacks.frozen_base import fingerprint, first_difference, frozen_tensors
from tests.family_trials.tiny_architectures import tiny_config

DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 4,
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 8,
}


def model_with(rope: dict[str, Any]) -> PreTrainedModel:
    torch.manual_seed(0)
    config = tiny_config("llama")
    config.max_position_embeddings = 8 if rope is DYNAMIC else 64
    config.rope_parameters = rope
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.mul_(5.0 if weight.dim() > 1 else 1.0)
    return model


@pytest.mark.parametrize("rope", [DYNAMIC, LONG], ids=["dynamic", "longrope"])
def test_a_row_has_the_logits_that_it_has_in_a_fresh_model(rope: dict[str, Any]) -> None:
    longer, shorter = torch.arange(24)[None], torch.arange(12)[None]
    expected = model_with(rope)(shorter).logits
    plain, model = model_with(rope), model_with(rope)
    reset_frequencies_after_each_pass(model)
    for network in (plain, model):
        with torch.inference_mode():
            network(longer)
    assert torch.equal(model(shorter).logits, expected)
    if rope is DYNAMIC:  # without the hooks the longer row's frequencies stay
        assert not torch.allclose(plain(shorter).logits, expected, atol=1e-4)


@pytest.mark.parametrize("rope", [DYNAMIC, LONG], ids=["dynamic", "longrope"])
def test_the_frozen_base_has_the_buffers_that_it_had(rope: dict[str, Any]) -> None:
    model = model_with(rope)
    reset_frequencies_after_each_pass(model)
    before = {name: fingerprint(tensor) for name, tensor in frozen_tensors(model)}
    assert any(name.endswith("rotary_emb.inv_freq") for name in before)
    for mode in (torch.inference_mode, torch.enable_grad, torch.inference_mode):
        with mode():
            model(torch.arange(24)[None])
        assert first_difference(before, dict(frozen_tensors(model))) is None


def test_other_models_get_no_hooks() -> None:
    model = model_with({"rope_type": "default", "rope_theta": 10000.0})
    reset_frequencies_after_each_pass(model)
    assert not any(module._forward_hooks for module in model.modules())
