"""What sharding does without processes; that they train the same, tests/test_strategies.py shows."""

import pytest
import torch

from lora_lightning.lora.sharding import (
    full_state_dict,
    is_sharded,
    local_shard,
    run_as_forward,
    shard_like,
    shard_state_dict_like,
    transformer_layers,
)
from tests.conftest import TinyClassifier


@pytest.mark.parametrize(
    ("family", "first"),
    [("bert", "bert.encoder.layer.0"), ("distilbert", "distilbert.transformer.layer.0"), ("llama", "model.layers.0")],
)
def test_layers_are_the_members_of_the_outermost_list(family: str, first: str, tiny_classifier: TinyClassifier) -> None:
    model = tiny_classifier(family).model
    layers = transformer_layers(model)
    assert len(layers) == 2
    assert layers[0] is model.get_submodule(first)


def test_lists_inside_layers_belong_to_their_layer() -> None:
    inner = torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    model = torch.nn.Sequential(torch.nn.ModuleList([inner, torch.nn.Linear(2, 2)]))
    assert transformer_layers(model) == [inner, model[0][1]]
    assert transformer_layers(torch.nn.Linear(2, 2)) == []


def test_a_whole_model_stays_as_it_is() -> None:
    model = torch.nn.Linear(2, 3)
    model.bias.requires_grad = False
    assert not is_sharded(model)
    assert run_as_forward(model, lambda number: number + 1, 1) == 2
    assert shard_like(model.weight, model.weight) is model.weight
    assert local_shard(model.weight) is model.weight
    state = model.state_dict()
    assert shard_state_dict_like(state, state) == state
    kept = full_state_dict(model, keep=True)
    assert list(kept) == ["weight"]
    assert torch.equal(kept["weight"], model.weight)
    assert full_state_dict(model, keep=False)["weight"].is_meta
