"""Merged models compute what adapted models compute, for every family and variant, and are restored bit for bit."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.delta import adapted_layers, pretrained_weight
from lora_lightning.lora.fused import fuse_lora_layers
from lora_lightning.lora.injection import attach_lora
from lora_lightning.lora.merging import (
    merge_targets,
    merged_adapters,
    merged_weight,
    quantization_errors,
    without_adapters,
)
from lora_lightning.lora.quantized import dequantized_weight, keep_4bit_weights_in_order
from tests.conftest import TinyBackbone, TinyClassifier
from tests.tiny_models import FAMILIES
from tests.tiny_quantized import quantized_causal_lm

TOKENS = torch.arange(24).view(3, 8) + 10
VARIANTS: dict[str, Callable[[list[str]], LoraConfig]] = {
    "lora": lambda targets: LoraConfig(r=4, lora_alpha=9, target_modules=targets),
    "rslora": lambda targets: LoraConfig(r=4, lora_alpha=9, use_rslora=True, target_modules=targets),
    "dora": lambda targets: LoraConfig(r=4, lora_alpha=9, use_dora=True, target_modules=targets),
    "lora_bias": lambda targets: LoraConfig(r=4, lora_alpha=9, lora_bias=True, target_modules=targets),
    "rank_pattern": lambda targets: LoraConfig(r=4, rank_pattern={targets[0]: 2}, target_modules=targets),
    "adalora": lambda targets: AdaLoraConfig(init_r=4, target_r=4, total_step=10, target_modules=targets),
}


def randomized(model: nn.Module) -> Any:
    """Every trained tensor moved away from its start, so that the adapter does something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def bytes_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in [*model.state_dict().items(), *model.named_buffers()]}


def assert_untouched(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = bytes_of(model)
    assert list(after) == list(before)
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name


@torch.no_grad()
def logits_of(model: nn.Module) -> Tensor:
    logits: Tensor = model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_the_same_merged_and_is_restored(tiny_classifier: TinyClassifier, family: str) -> None:
    loaded = tiny_classifier(family)
    model = randomized(attach_lora(loaded.model, LoraSettings(r=4), loaded.lacked, "SEQ_CLS"))
    fuse_lora_layers(model)
    before, random_state = bytes_of(model), torch.get_rng_state()
    modules = [id(module) for module in model.modules()]
    adapted = logits_of(model)
    assert merge_targets(model) == ["base"]
    with merged_adapters(model, "base"):
        assert not adapted_layers(model)
        found = logits_of(model)
    with without_adapters(model):
        base = logits_of(model)
    torch.testing.assert_close(found, adapted, rtol=0, atol=2e-5)
    assert (base - adapted).abs().max() > 1e-3  # or the test would prove nothing
    assert torch.equal(logits_of(model), adapted)
    assert_untouched(model, before)
    assert [id(module) for module in model.modules()] == modules
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("family", ["gpt2", "llama", "bert"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_merges(tiny_classifier: TinyClassifier, family: str, variant: str) -> None:
    targets = {"gpt2": ["c_attn", "c_fc"], "llama": ["q_proj", "down_proj"], "bert": ["query", "dense"]}[family]
    if variant == "lora_bias" and family == "llama":
        pytest.skip("Llama's layers have no bias to merge one into")
    config = VARIANTS[variant](targets)
    config.fan_in_fan_out = family == "gpt2"
    model = randomized(get_peft_model(tiny_classifier(family).model, config))
    before, adapted = bytes_of(model), logits_of(model)
    with merged_adapters(model, "base"):
        torch.testing.assert_close(logits_of(model), adapted, rtol=0, atol=5e-5)
    with without_adapters(model):
        assert (logits_of(model) - adapted).abs().max() > 1e-3
    assert_untouched(model, before)


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapted_embedding_merges_unless_the_head_shares_its_weight(tiny_backbone: TinyBackbone, tied: bool) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_backbone("gpt2"))
    if not tied:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    wrapped = randomized(get_peft_model(model, LoraConfig(r=4, target_modules=["wte"])))
    before, adapted = bytes_of(wrapped), logits_of(wrapped)
    with merged_adapters(wrapped, "base"):
        moved = (logits_of(wrapped) - adapted).abs().max()
    # The adapter changes the embedding alone, a merge both: this must show.
    assert moved > 0.01 if tied else moved < 1e-5
    assert_untouched(wrapped, before)


def test_a_merged_weight_equals_numpys() -> None:
    layer = nn.Linear(6, 5)
    for variant in ("lora", "rslora", "dora"):
        model = randomized(get_peft_model(nn.Sequential(copy.deepcopy(layer)), VARIANTS[variant](["0"])))
        (lora,) = adapted_layers(model).values()
        a, b = (lora.lora_A["default"].weight, lora.lora_B["default"].weight)
        weight, a, b = (x.detach().double().numpy() for x in (layer.weight, a, b))
        expected = weight + 9 / (2 if variant == "rslora" else 4) * b @ a
        if variant == "dora":
            magnitude = lora.lora_magnitude_vector["default"].weight.detach().double().numpy()
            expected *= (magnitude / np.linalg.norm(expected, axis=1))[:, None]
        found = merged_weight("0", lora, pretrained_weight(lora))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(64, 64, bias=False)).to(dtype)
    model = randomized(get_peft_model(plain, VARIANTS["lora"](["0"])).to(dtype))
    (lora,) = adapted_layers(model).values()
    a, b = (lora.lora_A["default"].weight, lora.lora_B["default"].weight)
    weight, a, b = (x.detach().float().numpy().astype(np.float64) for x in (lora.weight, a, b))
    expected = torch.from_numpy(weight + 9 / 4 * b @ a).to(dtype)
    with merged_adapters(model, "base"):
        assert (model.base_model.model[0].weight == expected).float().mean() > 0.99  # ties may round either way


def interrupted(model: nn.Module, error: type[BaseException]) -> None:
    with merged_adapters(model, "base"):
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_whatever_happens_inside_the_weights_come_back(
    tiny_classifier: TinyClassifier, error: type[BaseException]
) -> None:
    model = randomized(get_peft_model(tiny_classifier("bert").model, VARIANTS["lora"](["query", "value"])))
    before = bytes_of(model)
    with pytest.raises(error):
        interrupted(model, error)
    assert_untouched(model, before)
    # A layer that cannot be merged, after others were.
    last = list(adapted_layers(model).values())[-1]
    last.lora_bias["default"], last.get_base_layer().bias = True, None
    before = bytes_of(model)
    with pytest.raises(ConfigurationError, match=r"layer\.1.*value: the adapter has a bias \(lora_bias\) but its base"):
        interrupted(model, error)
    assert_untouched(model, before)


def quantized(folder: Path, bits: int, variant: str = "lora", targets: tuple[str, ...] = ("q_proj", "up_proj")) -> Any:
    model = quantized_causal_lm(folder, bits)
    keep_4bit_weights_in_order(model)
    return randomized(get_peft_model(model, VARIANTS[variant](list(targets))))


def original_weights(folder: Path, model: PeftModel) -> dict[str, Tensor]:
    original: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder)
    return {name: original.get_submodule(name).weight.detach() for name in adapted_layers(model)}


@pytest.mark.parametrize(("bits", "variant"), [(4, "lora"), (4, "dora"), (4, "rslora"), (8, "lora")])
def test_a_quantized_base_has_three_targets(tiny_backbone: TinyBackbone, bits: int, variant: str) -> None:
    pytest.importorskip("bitsandbytes")
    model = quantized(tiny_backbone("llama"), bits, variant)
    originals = original_weights(tiny_backbone("llama"), model)
    adapted = logits_of(model)
    before, random_state = bytes_of(model), torch.get_rng_state()
    moved = {}
    for target in merge_targets(model, originals):
        with merged_adapters(model, target, originals):
            assert not adapted_layers(model)
            moved[target] = float((logits_of(model) - adapted).abs().max())
    assert list(moved) == ["dequantized", "original", "requantized"]
    # Inputs of 8-bit layers are rounded to 8 bits as well.
    assert moved["dequantized"] < (1e-5 if bits == 4 else 0.05 * float(adapted.abs().max()))
    if bits == 4:
        assert moved["requantized"] > 100 * moved["dequantized"]
        assert moved["original"] > 100 * moved["dequantized"]
    assert torch.equal(logits_of(model), adapted)
    assert_untouched(model, before)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_gpt2s_layers_stop_being_transposed_where_they_are_quantized(tiny_backbone: TinyBackbone) -> None:
    pytest.importorskip("bitsandbytes")
    model = quantized(tiny_backbone("gpt2"), 4, targets=("c_attn", "c_fc"))
    adapted = logits_of(model)
    with merged_adapters(model, "dequantized"):
        torch.testing.assert_close(logits_of(model), adapted, rtol=0, atol=1e-5)


def test_errors_of_quantizing_equal_numpys(tiny_backbone: TinyBackbone) -> None:
    pytest.importorskip("bitsandbytes")
    model = quantized(tiny_backbone("llama"), 4)
    originals = original_weights(tiny_backbone("llama"), model)
    name, layer = next(iter(adapted_layers(model).items()))
    found = quantization_errors(name, layer, originals[name])
    a, b = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
    a, b, original, base = (
        x.detach().double().numpy() for x in (a, b, originals[name], dequantized_weight(layer.get_base_layer()))
    )
    expected = np.linalg.norm(original - base) / np.linalg.norm(9 / 4 * b @ a)
    assert found["quantization_error"] == pytest.approx(expected, rel=1e-5)
    assert found["requantization_error"] > 0
    assert "quantization_error" not in quantization_errors(name, layer)
    with pytest.raises(ConfigurationError, match=r"q_proj: `originals` does not hold its original weight"):  # noqa: SIM117
        with merged_adapters(model, "original", {}):
            pass


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_a_merged_weight_is_what_peft_merges(kind: str, dora: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 9) if kind == "linear" else Conv1D(9, 6)
    config = LoraConfig(target_modules=["0"], r=2, use_dora=dora, fan_in_fan_out=kind == "conv1d")
    model = get_peft_model(nn.Sequential(layer), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    (adapted,) = adapted_layers(model).values()
    weight = merged_weight("0", adapted, pretrained_weight(adapted))
    theirs = model.merge_and_unload()[0].weight.detach()
    torch.testing.assert_close(weight, theirs if kind == "linear" else theirs.T, rtol=1e-5, atol=1e-5)
