"""The modules of a head beside those of the base, whatever the model calls its base."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from lora_lightning.backbones.head_modules import modules_beside_base
from lora_lightning.backbones.unused_options import check_idle_options
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from tests.family_trials.tiny_architectures import tiny_config


@pytest.mark.parametrize(
    ("family", "auto_class", "expected"),
    [
        ("bert", AutoModelForSequenceClassification, ["classifier"]),
        ("t5", AutoModelForQuestionAnswering, ["qa_outputs"]),  # beside shared, encoder and decoder
        ("t5", AutoModelForSequenceClassification, ["classification_head"]),
        ("llama4_text", AutoModelForCausalLM, ["lm_head"]),  # its base_model_prefix names no child
        ("llama", AutoModelForQuestionAnswering, ["qa_outputs"]),
    ],
)
def test_modules_beside_the_base(family: str, auto_class: type, expected: list[str]) -> None:
    with torch.device("meta"):
        model = auto_class.from_config(tiny_config(family))  # type: ignore[attr-defined]
    found = modules_beside_base(model)
    assert [name for name in found if list(model.get_submodule(name).parameters())] == expected


@pytest.mark.parametrize(
    ("family", "auto_class", "has_biases"),
    [
        ("t5", AutoModelForQuestionAnswering, False),
        ("llama4_text", AutoModelForCausalLM, False),
        ("bert", AutoModelForQuestionAnswering, True),
    ],
)
def test_options_are_checked_on_the_adapted_layers(family: str, auto_class: Any, has_biases: bool) -> None:
    """The layers of a base that lies beside its head's children are those that get adapters."""
    config = tiny_config(family)
    settings = LoraSettings(bias="all")
    if has_biases:
        check_idle_options(config, settings, None, auto_class)
        return
    with pytest.raises(ConfigurationError, match=rf"bias is all, but no module of {family} has a bias"):
        check_idle_options(config, settings, None, auto_class)


def test_loftq_finds_the_quantized_layers_of_a_base_beside_its_head() -> None:
    settings = LoraSettings(init_lora_weights="loftq")
    check_idle_options(tiny_config("t5"), settings, QuantizationSettings(), AutoModelForQuestionAnswering)
