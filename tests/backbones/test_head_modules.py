"""The modules of a head beside those of the base, whatever the model calls its base."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForQuestionAnswering, AutoModelForSequenceClassification

from lora_lightning.backbones.head_modules import modules_beside_base
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
