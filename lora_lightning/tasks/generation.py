"""Continue prompts with a causal language model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lora_lightning.backbones.end_tokens import end_token_ids
from lora_lightning.errors import ConfigurationError


@dataclass
class GenerationSettings:
    """How completions are generated, with transformers' option names.

    Args:
        max_new_tokens: Maximum number of tokens in a completion. It ends earlier at the end-of-text token, or at the
            token with which the tokenizer's chat template closes a turn.
        do_sample: Sample each token, reproducibly for a seed; otherwise the most likely one is taken.
        temperature: Divides the logits before sampling; below 1 it favours likely tokens.
        top_p: Samples from the smallest set of tokens whose probabilities add up to this share.
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
            msg = f"model.generation.max_new_tokens is {self.max_new_tokens}, but it must be at least 1."
            raise ConfigurationError(msg)
        if not self.temperature > 0:
            msg = (
                f"model.generation.temperature is {self.temperature}, but it must be above 0; for the most likely "
                "token set do_sample: false."
            )
            raise ConfigurationError(msg)
        if not 0 < self.top_p <= 1:
            msg = f"model.generation.top_p is {self.top_p}, but it must be in (0, 1]."
            raise ConfigurationError(msg)
        for name, value in (("temperature", self.temperature), ("top_p", self.top_p)):
            if value != 1 and not self.do_sample:
                rank_zero_warn(
                    f"model.generation.{name} is {value}, but nothing reads it, because the most likely token is "
                    "taken; set model.generation.do_sample: true to sample, or leave it out."
                )


def complete(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[str, Tensor],
    settings: GenerationSettings,
) -> list[str]:
    """Continues a batch of prompts, with the model in evaluation mode meanwhile.

    Args:
        model: The language model, adapters in place.
        tokenizer: Its tokenizer, whose chat template says where a response ends.
        prompts: `input_ids` and `attention_mask`, (prompts, tokens), int64, padded on the right.
        settings: How to generate.

    Returns:
        The completion of each prompt, without the prompt and without special tokens.
    """
    completions = complete_tokens(model, tokenizer, prompts, settings)
    return tokenizer.batch_decode(completions, skip_special_tokens=True)


def complete_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[str, Tensor],
    settings: GenerationSettings,
) -> list[list[int]]:
    """The same as tokens.

    Args:
        model: The language model, adapters in place.
        tokenizer: Its tokenizer, whose chat template says where a response ends.
        prompts: `input_ids` and `attention_mask`, (prompts, tokens), int64, padded on the right.
        settings: How to generate.

    Returns:
        The tokens of each completion, without the prompt and without the token that ends it.
    """
    to_the_right = prompts["attention_mask"].argsort(dim=1, stable=True)  # padding first, as generation needs it
    input_ids = prompts["input_ids"].gather(1, to_the_right)
    ends = end_token_ids(model, tokenizer)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _without_own_settings(model):
            tokens: Tensor = cast("Any", model).generate(
                input_ids,
                attention_mask=prompts["attention_mask"].gather(1, to_the_right),
                generation_config=_generation_config(ends, cast("int | None", tokenizer.pad_token_id), settings),
            )
    finally:
        model.train(was_training)
    return [_up_to_end(row, ends) for row in tokens[:, input_ids.shape[1] :].tolist()]


def _generation_config(ends: Sequence[int], pad_token_id: int | None, settings: GenerationSettings) -> GenerationConfig:
    """The user's settings; whatever is not given here is transformers' default."""
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=settings.do_sample,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=0 if settings.do_sample else 50,  # 50 is transformers' default, 0 switches it off
        repetition_penalty=1.0,
        eos_token_id=list(ends) or None,
        pad_token_id=pad_token_id,
    )


@contextmanager
def _without_own_settings(model: PreTrainedModel) -> Iterator[None]:
    """Takes the backbone's own settings (penalties, beams, suppressed tokens) away for a while.

    Transformers takes every option that a given configuration leaves at `None` from the model's own one.
    """
    own = model.generation_config
    model.generation_config = GenerationConfig(bos_token_id=own.bos_token_id)
    try:
        yield
    finally:
        model.generation_config = own


def _up_to_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """An end token need not be a special one, which decoding would leave out."""
    length = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:length]
