"""Names of parameters, on models that PEFT itself has named, wherever it keeps a parameter."""

from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from torch import nn

from lora_lightning.lora import parameter_names as names
from lora_lightning.lora.delta import adapted_layers

MODULES = {"embeddings", "layer.0.query", "layer.0.value", "head"}
CONFIGS: dict[str, Any] = {
    "lora": LoraConfig(r=2, target_modules=["query", "embeddings"], modules_to_save=["head"]),
    "dora": LoraConfig(r=2, target_modules=["query"], use_dora=True, trainable_token_indices={"embeddings": [1]}),
    "adalora": AdaLoraConfig(init_r=3, target_r=2, total_step=9, target_modules=["query", "value"]),
}


class Model(nn.Module):
    """A small model with everything that PEFT wraps."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(5, 4)
        layer = nn.ModuleDict({"query": nn.Linear(4, 4), "value": nn.Linear(4, 4)})
        self.layer = nn.ModuleList([layer])
        self.head = nn.Linear(4, 2)


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> PeftModel:
    return get_peft_model(Model(), CONFIGS[request.param])


def test_every_parameter_is_found_in_the_pretrained_model(model: PeftModel) -> None:
    pretrained = dict(Model().named_parameters())
    task = nn.Module()
    task.network = model
    counted = []
    for name, parameter in task.named_parameters():
        module = names.adapted_module_name(name)
        assert module in MODULES, name
        if not names.is_added_by_peft(name):
            own = f"{module}.{name.rpartition('.')[2]}"
            assert pretrained[own].shape == parameter.shape
            counted.append(own)
    assert sorted(counted) == sorted(pretrained)


def test_what_peft_trains_is_trainable_by_name(model: PeftModel) -> None:
    for name, parameter in model.named_parameters():
        if "ranknum" not in name:  # which PEFT's cast makes trainable, and `attach_lora` freezes
            assert names.is_trainable_by_name(name) is parameter.requires_grad, name


def test_adapters_and_their_factors(model: PeftModel) -> None:
    state = model.state_dict()
    for name in state:
        assert names.is_adapter_parameter(name) is ("lora_" in name)
        assert names.is_factor_b(name) is (".lora_B." in name)
    for module, layer in adapted_layers(model).items():
        assert names.peft_name(module) in dict(model.named_modules())
        if isinstance(layer.get_base_layer(), nn.Embedding):
            continue
        if model.peft_config["default"].peft_type == "ADALORA":  # type: ignore[union-attr]
            assert set(names.adalora_weight_names(module)) < state.keys()
        else:
            assert {names.weight_name(module, "A"), names.weight_name(module, "B")} < state.keys()


def test_adaloras_choice_is_found_by_its_key() -> None:
    model = get_peft_model(Model(), CONFIGS["adalora"])
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
    allocator = model.base_model.rankallocator  # type: ignore[union-attr]
    _, pattern = allocator.update_and_allocate(model.base_model.model, 1)  # type: ignore[union-attr]
    assert set(pattern) == {names.adalora_rank_key(module) for module in adapted_layers(model)}


@pytest.mark.parametrize("name", ["a.b", "base_model.model.a.b", "network.base_model.model.a.b", "network.a.b"])
def test_wrappers_are_stripped(name: str) -> None:
    assert names.pretrained_name(name) == "a.b"
