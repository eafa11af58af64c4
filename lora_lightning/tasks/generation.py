"""Continue prompts with a causal language model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lora_lightning.errors import ConfigurationError


@dataclass
class GenerationSettings:
    """How completions are chosen; the words are transformers' own.

    Args:
        max_new_tokens: Longest completion; it ends earlier at the model's end-of-text token.
        do_sample: Draw each token, reproducibly for a seed; otherwise the most likely one is taken.
        temperature: Divides the logits before drawing; below 1 is bolder towards the likely tokens.
        top_p: Draws from the smallest set of tokens that has this share of the probability.
    """

    max_new_tokens: int = 64
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Rejects values that cannot generate.

        Raises:
            ConfigurationError: If a value is out of its range.
        """
        if self.max_new_tokens < 1:
            msg = f"model.generation.max_new_tokens is {self.max_new_tokens}, but a completion has at least 1 token."
            raise ConfigurationError(msg)
        if not self.temperature > 0:
            msg = (
                f"model.generation.temperature is {self.temperature}, but it must be above 0; for the most likely "
                "token set do_sample: false."
            )
            raise ConfigurationError(msg)
        if not 0 < self.top_p <= 1:
            msg = f"model.generation.top_p is {self.top_p}, but a share in (0, 1] is needed."
            raise ConfigurationError(msg)


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[str, Tensor],
    settings: GenerationSettings,
) -> list[str]:
    """Continues a batch of prompts; the model is put into evaluation mode meanwhile.

    Args:
        model: The language model, adapters in place.
        tokenizer: Its tokenizer.
        prompts: `input_ids` and `attention_mask`, (prompts, tokens), int64, padded on the right.
        settings: Length and choice.

    Returns:
        The completion of each prompt, without the prompt and without special tokens.
    """
    to_the_right = prompts["attention_mask"].argsort(dim=1, stable=True)  # padding first, as generation needs it
    input_ids = prompts["input_ids"].gather(1, to_the_right)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            tokens: Tensor = cast("Any", model).generate(
                input_ids,
                attention_mask=prompts["attention_mask"].gather(1, to_the_right),
                generation_config=_generation_config(model, tokenizer, settings),
            )
    finally:
        model.train(was_training)
    return tokenizer.batch_decode(tokens[:, input_ids.shape[1] :], skip_special_tokens=True)


def _generation_config(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, settings: GenerationSettings
) -> GenerationConfig:
    """Everything set, so that the checkpoint's own habits (sampling, penalties) change nothing."""
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=settings.do_sample,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=0 if settings.do_sample else 50,  # 50 is transformers' default, 0 switches it off
        repetition_penalty=1.0,
        eos_token_id=sorted(ends) or None,
        pad_token_id=tokenizer.pad_token_id,
    )
