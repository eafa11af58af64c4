"""Tied embeddings train as one, or not at all; `ensure_weight_tying` is refused if it would do nothing."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from lora_lightning.backbones.loading import build_without_storage, load_config
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.injection import modules_trained_in_full
from lora_lightning.lora.weight_tying import check_weight_tying, modules_tied_with_embeddings
from tests.conftest import TinyBackbone


def check(model: PreTrainedModel, **settings: Any) -> None:
    lora = LoraSettings(**settings)
    check_weight_tying(model, lora, modules_trained_in_full(model, lora, []))


@pytest.fixture
def gpt2(tiny_backbone: TinyBackbone) -> PreTrainedModel:
    return build_without_storage(AutoModelForCausalLM, load_config(str(tiny_backbone("gpt2"))))


@pytest.fixture
def t5() -> PreTrainedModel:
    with torch.device("meta"):
        return T5ForConditionalGeneration(T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=20))


def test_which_modules_have_the_weights_of_the_embeddings(
    gpt2: PreTrainedModel, t5: PreTrainedModel, tiny_backbone: TinyBackbone
) -> None:
    assert modules_tied_with_embeddings(gpt2) == ["transformer.wte", "lm_head"]
    assert set(modules_tied_with_embeddings(t5)) == {
        "shared",
        "encoder.embed_tokens",
        "decoder.embed_tokens",
        "lm_head",
    }
    for family, auto_class in (
        ("llama", AutoModelForCausalLM),
        ("gpt2", AutoModelForSequenceClassification),
        ("bert", AutoModelForQuestionAnswering),
    ):
        assert (
            modules_tied_with_embeddings(build_without_storage(auto_class, load_config(str(tiny_backbone(family)))))
            == []
        )


@pytest.mark.parametrize("name", ["wte", "lm_head"])
def test_tied_modules_train_together(gpt2: PreTrainedModel, name: str) -> None:
    check(gpt2, modules_to_save=[name], ensure_weight_tying=True)
    both = LoraSettings(modules_to_save=[name], ensure_weight_tying=True)
    assert set(modules_trained_in_full(gpt2, both, [])) == {"transformer.wte", "lm_head"}
    with pytest.raises(ConfigurationError, match="would part the two; set ensure_weight_tying to true"):
        check(gpt2, modules_to_save=[name])
    check(gpt2, trainable_token_indices=[3], ensure_weight_tying=True)


def test_without_effect_it_is_refused(gpt2: PreTrainedModel, t5: PreTrainedModel, tiny_backbone: TinyBackbone) -> None:
    with pytest.raises(ConfigurationError, match=r"none of transformer.wte, lm_head is trained, so they stay tied"):
        check(gpt2, ensure_weight_tying=True)
    llama = build_without_storage(AutoModelForCausalLM, load_config(str(tiny_backbone("llama"))))
    with pytest.raises(ConfigurationError, match="no weights of LlamaForCausalLM are tied to its embeddings"):
        check(llama, modules_to_save=["embed_tokens"], ensure_weight_tying=True)
    check(llama, modules_to_save=["embed_tokens"])
    with pytest.raises(ConfigurationError, match=r"PEFT ties linear layers alone, and .*embed_tokens is of type"):
        check(t5, modules_to_save=["shared"], ensure_weight_tying=True)
    with pytest.raises(ConfigurationError, match="would part the two; leave it out"):
        check(t5, modules_to_save=["shared"])
