"""Adapters without a gradient are named once."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.delta import adapted_layers, adapter_factors
from lora_lightning.lora.injection import attach_lora
from lora_lightning.training.unused_adapters import UnusedAdapters
from tests.tiny_families import causal_model


def test_adapters_that_the_model_did_not_call_are_named_once(recwarn: pytest.WarningsRecorder) -> None:
    network: Any = attach_lora(causal_model("llama"), LoraSettings(r=2), [], "CAUSAL_LM", ["lm_head"])
    trainer: Any = SimpleNamespace()
    network(torch.arange(2, 9)[None]).logits.sum().backward()
    UnusedAdapters().on_before_optimizer_step(trainer, network, None)  # type: ignore[arg-type]
    assert not [warning for warning in recwarn if "no gradient" in str(warning.message)]
    for name, layer in adapted_layers(network).items():
        if name.endswith("q_proj"):
            adapter_factors(layer)[1].grad = None
    callback = UnusedAdapters()
    with pytest.warns(
        UserWarning, match=r"^2 adapters have no gradient.* first step: model\.layers\.\*\.self_attn\.q_proj\."
    ):
        callback.on_before_optimizer_step(trainer, network, None)  # type: ignore[arg-type]
    recwarn.clear()
    callback.on_before_optimizer_step(trainer, network, None)  # type: ignore[arg-type]
    assert not recwarn.list
