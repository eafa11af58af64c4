"""The tokens that end a response: where generation stops, in this program and in exported folders."""

from typing import cast

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lora_lightning.backbones.chat_layout import ChatLayout, mark_texts
from lora_lightning.backbones.chat_template import TEMPLATE_FAULTS, ChatTemplate, Message

_CALL = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {"x": "1"}}}
_TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "f",
        "parameters": {"type": "object", "properties": {"x": {"type": "string", "description": "x"}}},
    },
}
_EXCHANGE: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_CALLING: list[Message] = [
    _EXCHANGE[0],
    {"role": "assistant", "content": "", "tool_calls": [_CALL]},
    {"role": "tool", "content": "c", "name": "f", "tool_call_id": "call00000"},
    _EXCHANGE[1],
]
CHATS = ((_EXCHANGE, None), (_EXCHANGE * 2, None), (_CALLING, [_TOOL]))


def response_end_tokens(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """The special tokens with which a tokenizer's chat template closes the assistant's turns.

    Some templates close the last turn, an earlier one and a call of a tool with different tokens, so all are tried.

    Args:
        tokenizer: Any; one without a chat template has none.

    Returns:
        The tokens.
    """
    if not tokenizer.chat_template:
        return set()
    template = ChatTemplate(tokenizer)
    found: set[str] = set()
    for chat, tools in CHATS:
        messages, parts = mark_texts(chat)
        try:
            turns = ChatLayout(template, messages, [part.message for part in parts], tools).turns
        except TEMPLATE_FAULTS:  # a template that knows no tools may refuse them
            continue
        found |= {turn.end_token for turn in turns.values() if turn is not None}
    return found - {""}


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Where generation stops: at the pretrained model's own end tokens, the tokenizer's, and the chat template's.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.

    Returns:
        Token ids in ascending order; empty if there is no end token at all.
    """
    own = model.generation_config.eos_token_id
    closing = tokenizer.convert_tokens_to_ids(sorted(response_end_tokens(tokenizer)))
    ids = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own]), *cast("list[int]", closing)}
    return sorted(ids - {None})


def generation_config(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> GenerationConfig:
    """The pretrained model's generation settings with all tokens that end a response.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.

    Returns:
        A copy.
    """
    config = GenerationConfig.from_dict(model.generation_config.to_dict())
    config.eos_token_id = end_token_ids(model, tokenizer) or None
    return config
