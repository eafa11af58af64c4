"""Generation stops where the chat template closes a turn, in this program and in exported folders."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lora_lightning.backbones.end_tokens import end_token_ids, response_end_tokens
from lora_lightning.backbones.export import export_model
from lora_lightning.tasks.generation import GenerationSettings, complete
from tests import chat_templates as t

ENDS = {
    None: set(),
    t.CHATML: {"<|im_end|>"},
    t.TRIMS: {"</s>"},
    t.PROMPTS_THOUGHT: {"</s>"},
    t.CLOSES_THOUGHT: {"</s>"},
    t.LAST_THOUGHT: {"<|im_end|>"},
    t.TWO_ENDS: {"<|end|>", t.END_OF_TEXT},
    t.OTHER_END: {"<|end|>", "<|return|>"},
    t.NO_END: {"<|user|>"},
    t.NO_TOKENS: set(),
    t.NO_PROMPT: {"</s>"},
    t.ALWAYS_PROMPTS: {"<|end|>"},
    t.GENERATION: {"<|im_end|>"},
    t.TOOLS: {"<|end|>", "<|call|>"},
    t.JSON_TOOLS: {"<|end|>", "<|call|>"},
    "{{ raise_exception('no') }}": set(),
}


@pytest.mark.parametrize("template", ENDS)
def test_the_tokens_that_close_a_turn_are_found(template: str | None) -> None:
    assert response_end_tokens(t.chat_tokenizer(template)) == ENDS[template]


def counting_model(tokenizer: PreTrainedTokenizerFast, answer: str) -> LlamaForCausalLM:
    """A language model that writes `answer` after a question mark, and then digits."""
    torch.manual_seed(0)
    size = len(tokenizer)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=4,
        num_hidden_layers=1,
        num_attention_heads=1,
        eos_token_id=tokenizer.convert_tokens_to_ids(t.END_OF_TEXT),
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    tokens = tokenizer("?" + answer + "0123456789")["input_ids"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.zero_() if "layers" in name else parameter.fill_(1.0)
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.zero_()
        for token, following in pairwise(tokens):
            model.lm_head.weight[following, token] = 1.0
    return model


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("template", [t.CHATML, t.TWO_ENDS, t.OTHER_END, t.NO_END, t.TOOLS])
def test_a_completion_ends_where_the_template_closes_a_turn(template: str, special: bool) -> None:
    tokenizer = t.chat_tokenizer(template)
    tokenizer.pad_token = tokenizer.unk_token
    ends = sorted(ENDS[template]) if special else [t.END_OF_TEXT]
    for end in ends:
        model = counting_model(tokenizer, f"yes{end}")
        prompts = dict(tokenizer(["?"], return_tensors="pt"))
        assert complete(model, tokenizer, prompts, GenerationSettings(max_new_tokens=9)) == ["yes"]
    tokenizer.chat_template = None
    if special and template == t.CHATML:  # it was the template that made it stop
        assert complete(model, tokenizer, prompts, GenerationSettings(max_new_tokens=9))[0].startswith("yes012")


def own_settings(token: int) -> dict[str, object]:
    """What a backbone's `generation_config.json` may say, each with a value that changes completions of a token."""
    return {
        "no_repeat_ngram_size": 1,
        "num_beams": 3,
        "min_new_tokens": 8,
        "min_p": 0.9,
        "typical_p": 0.1,
        "suppress_tokens": [token],
        "begin_suppress_tokens": [token],
        "bad_words_ids": [[token]],
        "sequence_bias": [[[token], -50.0]],
        "encoder_repetition_penalty": 9.0,
        "exponential_decay_length_penalty": (1, 9.0),
        "forced_eos_token_id": 3,
        "guidance_scale": 3.0,
        "return_dict_in_generate": True,
        "max_time": 1e-9,
        "max_length": 2,
    }


@pytest.mark.parametrize("do_sample", [False, True])
def test_the_backbones_own_settings_change_no_completion(do_sample: bool) -> None:
    tokenizer = t.chat_tokenizer(t.CHATML)
    tokenizer.pad_token = tokenizer.unk_token
    model = counting_model(tokenizer, "yes<|im_end|>").eval()
    prompts = dict(tokenizer(["?", "y?"], return_tensors="pt", padding=True))
    settings = GenerationSettings(max_new_tokens=5, do_sample=do_sample, temperature=3.0)
    torch.manual_seed(1)
    expected = complete(model, tokenizer, prompts, settings)
    for name, value in own_settings(tokenizer("y")["input_ids"][-1]).items():
        own = GenerationConfig(**{name: value})
        model.generation_config = own
        torch.manual_seed(1)
        assert complete(model, tokenizer, prompts, settings) == expected, name
        assert model.generation_config is own


@pytest.mark.parametrize("adapted", [True, False])
def test_the_exported_folder_says_where_generation_stops(tmp_path: Path, adapted: bool) -> None:
    tokenizer = t.chat_tokenizer(t.OTHER_END)
    tokenizer.pad_token = tokenizer.unk_token
    model = counting_model(tokenizer, "yes<|return|>")
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.6, eos_token_id=[1])
    names = ["<|end|>", "<|return|>", t.END_OF_TEXT, "<s>"]
    expected = sorted(tokenizer.convert_tokens_to_ids(names))
    assert end_token_ids(model, tokenizer) == expected
    network = get_peft_model(model, LoraConfig(r=1, target_modules=["q_proj"])) if adapted else model
    export_model(network, tokenizer, tmp_path / "adapter", {})
    saved = json.loads((tmp_path / "adapter" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == expected
    assert saved["temperature"] == 0.6
    assert GenerationConfig.from_pretrained(tmp_path / "adapter").eos_token_id == expected
    assert model.generation_config.eos_token_id == [1]
    if not adapted:
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
        found = plain.generate(**tokenizer(["?"], return_tensors="pt"), max_new_tokens=9, do_sample=False)
        assert tokenizer.decode(found[0]) == "?yes<|return|>"
