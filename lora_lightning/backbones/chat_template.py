"""A tokenizer's chat template as a function from messages to text."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, cast

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from lora_lightning.errors import DataError

Message = dict[str, Any]  # role and content; perhaps reasoning_content, tool_calls, tool_call_id and name
Tools = Sequence[Mapping[str, Any]]
Span = tuple[int, int]  # first character, and the one after the last

TEMPLATE_FAULTS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


class ChatTemplate:
    """Writes messages as one text.

    Args:
        tokenizer: Its `chat_template` is used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def special_tokens(self) -> frozenset[str]:
        """The tokens that mean structure rather than text; only these can end a response."""
        added = cast("Any", self.tokenizer).added_tokens_decoder.values()
        return frozenset({token.content for token in added if token.special} | set(self.tokenizer.all_special_tokens))

    @property
    def end_of_text(self) -> str | None:
        """The tokenizer's end-of-text token, for a template that closes the assistant's turn with no token."""
        return cast("str | None", self.tokenizer.eos_token)

    def render(self, messages: Sequence[Message], tools: Tools | None = None, *, response_follows: bool = False) -> str:
        """Writes a chat.

        Args:
            messages: At least one.
            tools: JSON schemas of the functions that the assistant may call.
            response_follows: Whether the text ends where the assistant's response begins.

        Returns:
            The text.

        Raises:
            TemplateError: If the template refuses the chat; a faulty template may raise other errors too.
        """
        return cast("str", self._apply(messages, tools, add_generation_prompt=response_follows, tokenize=False))

    def generation_spans(self, messages: Sequence[Message], tools: Tools | None = None) -> list[Span]:
        """What the template itself marks as generated, with `{% generation %}`.

        Args:
            messages: At least one.
            tools: As above.

        Returns:
            Characters of the rendered chat, rounded to tokens; none if the template has no such marks.
        """
        template = self.tokenizer.get_chat_template(tools=cast("Any", tools))
        if "endgeneration" not in template:
            return []
        encoded = self._apply(
            messages,
            tools,
            return_dict=True,
            return_assistant_tokens_mask=True,
            tokenizer_kwargs={"return_offsets_mapping": True, "verbose": False},
        )
        learnt = np.array([0, *encoded["assistant_masks"], 0])
        edges = np.flatnonzero(np.diff(learnt)).reshape(-1, 2)
        offsets = encoded["offset_mapping"]
        return [(offsets[first][0], offsets[after - 1][1]) for first, after in edges]

    def _apply(self, messages: Sequence[Message], tools: Tools | None, **options: Any) -> Any:
        messages = [_with_reasoning_names(message) for message in messages]
        given = list(tools) if tools else None
        try:
            return self.tokenizer.apply_chat_template(messages, tools=cast("Any", given), **options)
        except TypeError:  # some templates, such as DeepSeek's, add the arguments to a text and need JSON
            as_json = [_with_json_arguments(message) for message in messages]
            if as_json == messages:
                raise
            return self.tokenizer.apply_chat_template(as_json, tools=cast("Any", given), **options)


@contextmanager
def template_errors_named(where: str, messages: Sequence[Message]) -> Iterator[None]:
    """Turns whatever a template raises into an error that names the record.

    Args:
        where: The record's place.
        messages: What was rendered.

    Raises:
        DataError: If the body raises an error of the template.
    """
    try:
        yield
    except TEMPLATE_FAULTS as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        msg = (
            f"{where}: the chat template refuses these messages with the roles {roles} ({error}); change or remove "
            "the record, or use a backbone whose template accepts it."
        )
        raise DataError(msg) from error


def _with_reasoning_names(message: Message) -> Message:
    """Families disagree on the name of the field; recent versions of transformers copy it as well."""
    reasoning = message.get("reasoning_content")
    return message if reasoning is None else {**message, "thinking": reasoning}


def _with_json_arguments(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = [
        {
            **call,
            "function": {
                **call["function"],
                "arguments": json.dumps(call["function"]["arguments"], ensure_ascii=False),
            },
        }
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}
