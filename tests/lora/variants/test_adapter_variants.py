"""Norms and spectra are right for every kind of adapter and base: DoRA, rsLoRA, AdaLoRA, quantized, half precision."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from lora_lightning.analysis.norms import base_norm, delta_norms
from lora_lightning.analysis.spectrum import singular_values
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.delta import adapted_layers, adapter_deltas, adapter_factors, pretrained_weight
from lora_lightning.lora.injection import attach_lora
from lora_lightning.lora.quantized import keep_4bit_weights_in_order
from tests.conftest import TinyBackbone, TinyClassifier
from tests.tiny_models import FAMILIES

Build = Callable[[TinyBackbone], PeftModel]
TARGETS = ["query", "value", "intermediate.dense"]


def move_from_zero(model: nn.Module) -> nn.Module:
    """Random factors: a fresh adapter is a zero update, on which nothing could go wrong."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape))
    return model


def bert(backbone: TinyBackbone, dtype: torch.dtype = torch.float32, **quantization: Any) -> Any:
    config = (
        BitsAndBytesConfig(**quantization, llm_int8_skip_modules=["classifier", "bert.pooler"])
        if quantization
        else None
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        backbone("bert"), dtype=dtype, quantization_config=config
    )
    keep_4bit_weights_in_order(model)
    return model


def lora(model: Any, dtype_of_base: bool = False, **settings: Any) -> PeftModel:
    config = LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": TARGETS, **settings})
    return get_peft_model(model, config, autocast_adapter_dtype=not dtype_of_base)


def gpt2(backbone: TinyBackbone) -> PeftModel:
    model = AutoModelForCausalLM.from_pretrained(backbone("gpt2"))
    return lora(model, target_modules=["c_attn", "wte"], fan_in_fan_out=True)


VARIANTS: dict[str, Build] = {
    "LoRA": lambda backbone: lora(bert(backbone)),
    "DoRA": lambda backbone: lora(bert(backbone), use_dora=True),
    "rsLoRA": lambda backbone: lora(bert(backbone), use_rslora=True),
    "rank_pattern": lambda backbone: lora(bert(backbone), rank_pattern={"value": 2}, alpha_pattern={"value": 5}),
    "AdaLoRA": lambda backbone: get_peft_model(
        bert(backbone), AdaLoraConfig(init_r=6, lora_alpha=12, target_modules=TARGETS, total_step=10)
    ),
    "Conv1D and embedding": gpt2,
    "4-bit": lambda backbone: lora(bert(backbone, load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "8-bit": lambda backbone: lora(bert(backbone, load_in_8bit=True)),
    "bfloat16": lambda backbone: lora(bert(backbone, torch.bfloat16), dtype_of_base=True),
    "float16": lambda backbone: lora(bert(backbone, torch.float16), dtype_of_base=True),
}


@pytest.fixture(params=VARIANTS)
def variant(request: pytest.FixtureRequest, tiny_backbone: TinyBackbone) -> nn.Module:
    torch.manual_seed(0)
    return move_from_zero(VARIANTS[request.param](tiny_backbone))


def numpy_delta(layer: Any) -> np.ndarray:
    """PEFT's own dW, (out, in); in half precision it rounds, so there the factors are multiplied in float64."""
    factors = [factor.detach() for factor in adapter_factors(layer)]
    if factors[0].dtype in {torch.float16, torch.bfloat16}:
        a, b = (factor.double().numpy() for factor in factors)
        return layer.scaling["default"] * (b @ a)
    dense = layer.get_delta_weight("default").detach().double().numpy()
    return dense.T if getattr(layer, "fan_in_fan_out", False) or dense.shape[0] != factors[1].shape[0] else dense


def test_norms_and_spectra_are_those_of_pefts_own_update(variant: nn.Module) -> None:
    layers, found = adapted_layers(variant), adapter_deltas(variant)
    assert [delta.module for delta in found] == list(layers)
    together = zip(found, singular_values(found), delta_norms(found), layers.values(), strict=True)
    for delta, spectrum, norm, layer in together:
        dense = numpy_delta(layer)
        assert delta.dense().shape == dense.shape == (delta.B.shape[0], delta.A.shape[1])
        sigma = np.linalg.svd(dense, compute_uv=False)[: delta.r]
        np.testing.assert_allclose(spectrum, sigma, rtol=1e-5, atol=1e-6 * sigma[0])
        assert norm == pytest.approx(np.linalg.norm(dense), rel=1e-5)


def test_the_base_weight_is_what_the_layer_multiplies_with(variant: nn.Module) -> None:
    torch.manual_seed(0)
    for delta, layer in zip(adapter_deltas(variant), adapted_layers(variant).values(), strict=True):
        base = layer.get_base_layer()
        weight = pretrained_weight(layer)
        assert weight.shape == (delta.B.shape[0], delta.A.shape[1])
        assert base_norm(weight) == pytest.approx(np.linalg.norm(weight.double().numpy()), rel=1e-5)
        if isinstance(base, nn.Embedding):
            assert torch.equal(weight, base.weight.T)
            continue
        inputs = torch.randn(3, weight.shape[1])
        with torch.no_grad():
            outputs = base(inputs.to(getattr(layer, "compute_dtype", None) or base.bias.dtype)).float() - base.bias
        error = torch.linalg.vector_norm(outputs - inputs @ weight.T) / torch.linalg.vector_norm(outputs)
        assert error < 0.02  # bitsandbytes rounds the inputs of an 8-bit layer too


def test_looking_changes_nothing(variant: nn.Module) -> None:
    variant.eval()
    tokens = torch.tensor([[2, 7, 9, 3]])
    with torch.no_grad():
        before = variant(input_ids=tokens).logits
        state = torch.get_rng_state()
        singular_values(adapter_deltas(variant))
        _ = [base_norm(pretrained_weight(layer)) for layer in adapted_layers(variant).values()]
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.equal(variant(input_ids=tokens).logits, before)


def test_a_pruned_adalora_has_as_much_rank_as_it_kept(tiny_backbone: TinyBackbone) -> None:
    model = move_from_zero(VARIANTS["AdaLoRA"](tiny_backbone))
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.lora_E["default"][2:] = 0  # what AdaLoRA's mask does
    for spectrum in singular_values(adapter_deltas(model)):
        assert (spectrum > 1e-9 * spectrum[0]).sum() == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(tiny_classifier: TinyClassifier, family: str) -> None:
    loaded = tiny_classifier(family)
    model = move_from_zero(attach_lora(loaded.model, LoraSettings(r=3), loaded.lacked, "SEQ_CLS"))
    layers = adapted_layers(model)
    assert layers
    for delta, spectrum, layer in zip(
        adapter_deltas(model), singular_values(adapter_deltas(model)), layers.values(), strict=True
    ):
        sigma = np.linalg.svd(numpy_delta(layer), compute_uv=False)[:3]
        np.testing.assert_allclose(spectrum, sigma, rtol=1e-5)
        assert pretrained_weight(layer).shape == (delta.B.shape[0], delta.A.shape[1])
    assert any(delta.layer is not None for delta in adapter_deltas(model))
