"""A module's weights come from the adapter's file or from the base, and never in part from each."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from lora_lightning.errors import CheckpointError
from lora_lightning.lora.adapter_state import load_adapter_state
from tests.conftest import TinyBackbone


@pytest.fixture(scope="module")
def new_network(tiny_backbone: TinyBackbone) -> Callable[[], PeftModel]:
    base: Path = tiny_backbone("bert")

    def build() -> PeftModel:
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
        config = LoraConfig(target_modules=["query"], modules_to_save=["classifier"])
        network: PeftModel = get_peft_model(model, config)  # type: ignore[assignment]
        return network

    return build


def other_weights(network: PeftModel, *without: str) -> dict[str, Tensor]:
    """Weights of a file that lacks some."""
    state = get_peft_model_state_dict(network, save_embedding_layers=False)
    return {name: torch.ones_like(tensor) for name, tensor in state.items() if not name.endswith(without or ("?",))}


@pytest.mark.parametrize("part", ["classifier.weight", "classifier.bias"])
def test_a_part_of_a_module_is_refused(part: str, new_network: Callable[[], PeftModel]) -> None:
    network = new_network()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of the 6 weights that this model trains, .* {part}"):
        load_adapter_state(network, other_weights(network, part), "A", ["classifier"])


def test_all_of_a_module_may_come_from_the_base_or_from_the_file(new_network: Callable[[], PeftModel]) -> None:
    network = new_network()
    head = network.get_submodule("base_model.model.classifier.modules_to_save.default")
    before = torch.clone(head.weight)  # type: ignore[arg-type]
    load_adapter_state(network, other_weights(network, "classifier.weight", "classifier.bias"), "A", ["classifier"])
    assert torch.equal(head.weight, before)  # type: ignore[arg-type]
    load_adapter_state(network, other_weights(network), "A", ["classifier"])
    assert torch.equal(head.weight, torch.ones_like(before))  # type: ignore[arg-type]
