"""PiSSA and OLoRA: W_res + s B0 A0 is the pretrained weight, dW is the change from it, another SVD changes nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from lora_lightning.backbones.export import export_model
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.delta import adapted_layers, adapter_deltas, layer_delta, pretrained_weight
from lora_lightning.lora.initial_factors import follow_initial_factors, initial_factor_names, pretrained_base
from lora_lightning.lora.injection import attach_lora, trainable_parameter_names
from lora_lightning.lora.merging import merged_adapters, without_adapters
from tests.conftest import TinyBackbone, TinyClassifier

CASES = [("bert", "pissa"), ("bert", "pissa_niter_4"), ("bert", "olora"), ("gpt2", "pissa")]
every_case = pytest.mark.parametrize(("family", "initialization"), CASES)


def weights_of(model: nn.Module, names: list[str]) -> dict[str, Tensor]:
    return {name: model.get_submodule(name).weight.detach().clone() for name in names}


def logits_of(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model.eval()(input_ids=torch.arange(5, 25).view(2, 10)).logits
    return logits


def build(tiny_classifier: TinyClassifier, family: str, initialization: str, **more: object) -> PeftModel:
    loaded = tiny_classifier(family)
    settings = LoraSettings(r=3, lora_alpha=5.0, init_lora_weights=initialization, lora_dropout=0.0, **more)  # type: ignore[arg-type]
    return attach_lora(loaded.model, settings, loaded.lacked, "SEQ_CLS")


def move(model: nn.Module) -> None:
    """As training would."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))


@every_case
def test_it_starts_as_the_pretrained_model(tiny_classifier: TinyClassifier, family: str, initialization: str) -> None:
    before = logits_of(tiny_classifier(family).model)
    model = build(tiny_classifier, family, initialization)
    torch.testing.assert_close(logits_of(model), before, rtol=0, atol=2e-6)
    for delta in adapter_deltas(model):
        assert float(delta.dense().abs().max()) < 1e-6


@every_case
def test_the_residual_is_what_the_paper_says(tiny_classifier: TinyClassifier, family: str, initialization: str) -> None:
    """In NumPy float64: W = W_res + s B A; PiSSA's s B A is the best approximation of W of rank r."""
    original = tiny_classifier(family).model
    layers = adapted_layers(build(tiny_classifier, family, initialization))
    for name, layer in layers.items():
        weight = original.get_submodule(name).weight.detach().double().numpy()
        weight = weight.T if family == "gpt2" else weight
        residual = layer.get_base_layer().weight.detach().double().numpy()
        residual = residual.T if family == "gpt2" else residual
        a, b = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
        part = 5.0 / 3 * b.detach().double().numpy() @ a.detach().double().numpy()
        np.testing.assert_allclose(residual + part, weight, atol=1e-6)
        np.testing.assert_allclose(pretrained_weight(layer).numpy(), weight, atol=1e-6)
        if initialization == "pissa":
            u, s, vh = np.linalg.svd(weight, full_matrices=False)
            np.testing.assert_allclose(part, (u[:, :3] * s[:3]) @ vh[:3], atol=1e-5)


@every_case
def test_the_update_is_the_change_from_the_pretrained_weight(
    tiny_classifier: TinyClassifier, family: str, initialization: str
) -> None:
    original = tiny_classifier(family).model
    model = build(tiny_classifier, family, initialization)
    move(model)
    for name, layer in adapted_layers(model).items():
        now = layer.get_base_layer().weight + layer.get_delta_weight("default")
        change = (now - original.get_submodule(name).weight).detach()
        delta = layer_delta(name, layer)
        assert delta.r == 6
        torch.testing.assert_close(delta.dense(), change.T if family == "gpt2" else change, rtol=0, atol=1e-6)


@every_case
def test_merging_and_the_base_alone_are_exact(
    tiny_classifier: TinyClassifier, family: str, initialization: str
) -> None:
    pretrained = logits_of(tiny_classifier(family).model)
    model = build(tiny_classifier, family, initialization)
    move(model)
    adapted = logits_of(model)
    assert (adapted - pretrained).abs().max() > 1e-3
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with merged_adapters(model, "base"):
        torch.testing.assert_close(logits_of(model), adapted, rtol=0, atol=2e-6)
    with without_adapters(model):
        torch.testing.assert_close(logits_of(model), pretrained, rtol=0, atol=2e-6)
    with model.disable_adapter(), pretrained_base(model):
        torch.testing.assert_close(logits_of(model), pretrained, rtol=0, atol=2e-6)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@every_case
@pytest.mark.parametrize("variant", [{}, {"use_rslora": True}, {"use_dora": True}, {"rank_pattern": {"query": 2}}])
def test_the_export_is_plain_lora_on_the_pretrained_model(
    tiny_classifier: TinyClassifier,
    tiny_backbone: TinyBackbone,
    tmp_path: Path,
    family: str,
    initialization: str,
    variant: dict[str, object],
) -> None:
    if family == "gpt2" and "rank_pattern" in variant:
        pytest.skip("has no module called query")
    model = build(tiny_classifier, family, initialization, **variant)
    move(model)
    expected = logits_of(model)
    export_model(model, None, tmp_path / "adapter", {})
    config = AutoConfig.from_pretrained(tmp_path / "adapter", subfolder="config")
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_backbone(family), config=config)
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    assert loaded.peft_config["default"].init_lora_weights is True
    assert loaded.peft_config["default"].r == 6
    torch.testing.assert_close(logits_of(loaded), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=0)  # and nothing of it changed


@every_case
def test_other_signs_of_the_singular_vectors_change_nothing(
    tiny_classifier: TinyClassifier, family: str, initialization: str
) -> None:
    """What another platform's SVD, or another seed of a randomized one, would have given."""
    first = build(tiny_classifier, family, initialization)
    with torch.no_grad():  # W_res is the same, A0 and B0 are not
        for layer in adapted_layers(first).values():
            signs = torch.tensor([-1.0, 1.0, -1.0])
            for factor in (layer.initial_A, layer.lora_A["default"].weight):
                factor.mul_(signs[:, None])
            for factor in (layer.initial_B, layer.lora_B["default"].weight):
                factor.mul_(1.25 * signs)  # and another split
            part = 5.0 / 3 * layer.initial_B @ layer.initial_A * (1 - 1 / 1.25)
            layer.get_base_layer().weight.sub_(part.T if family == "gpt2" else part)
    move(first)
    expected = logits_of(first)
    names = {*trainable_parameter_names(first), *initial_factor_names(first)}
    state = {name: tensor.clone() for name, tensor in first.state_dict().items() if name in names}
    second = build(tiny_classifier, family, initialization)
    follow_initial_factors(second, state)
    second.load_state_dict(state, strict=False)
    torch.testing.assert_close(logits_of(second), expected, rtol=0, atol=5e-6)


def test_the_same_factors_leave_the_base_bit_for_bit(tiny_classifier: TinyClassifier) -> None:
    model = build(tiny_classifier, "bert", "pissa")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    follow_initial_factors(model, before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
