"""Instructions and chats as text, with the places in it that are learnt."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from lora_lightning.datamodules.records import Record, text_field
from lora_lightning.errors import DataError

MARK = "\ue000\ue001"  # for private use, so in no text

FIELDS = "give every record instruction and output, or messages with role and content"
PROMPT_FIELDS = "give every record instruction (or prompt), or messages with role and content"
MESSAGE_FIELDS = "give every message role and content"

Span = tuple[int, int]  # characters from, up to but without
Message = dict[str, str]  # role and content


class ChatTemplate(Protocol):
    """Writes messages as one text, up to where the assistant's turn begins if one is to follow."""

    def __call__(self, messages: Sequence[Message], *, response_follows: bool) -> str:
        """The text."""


@dataclass(frozen=True)
class Example:
    """An instruction with its response, or a chat.

    Attributes:
        where: File and line, for messages.
        messages: The chat, the last message an assistant's; or user and assistant.
        context: What the instruction works on; empty where there is nothing, and in a chat.
    """

    where: str
    messages: list[Message]
    context: str = ""

    @property
    def is_chat(self) -> bool:
        """Whether this is more than one instruction with or without its response."""
        return [message["role"] for message in self.messages] not in (["user"], ["user", "assistant"])


def has_empty_response(record: Record) -> bool:
    """Whether the output, or a message of the assistant, is a text without a letter."""
    messages = record.fields.get("messages")
    turns = [turn for turn in messages if isinstance(turn, dict)] if isinstance(messages, list) else []
    said = [turn.get("content") for turn in turns if turn.get("role") == "assistant"]
    responses = said if "messages" in record.fields else [record.fields.get("output")]
    return any(isinstance(response, str) and not response.strip() for response in responses)


def parse_example(record: Record) -> Example:
    """Reads a record with `instruction`, `input` (may be empty or missing) and `output`, or one with `messages`.

    Args:
        record: From a file or the hub.

    Returns:
        The example; messages after the last response are left out, since nothing is learnt from them.

    Raises:
        DataError: If a field is missing, empty or of another kind.
    """
    if "messages" in record.fields:
        messages = parse_messages(record)
        last = max((n for n, message in enumerate(messages) if message["role"] == "assistant"), default=-1)
        if last < 0:
            msg = f"{record.where}: no message has the role assistant, so there is no response to learn."
            raise DataError(msg)
        return Example(record.where, messages[: last + 1])
    instruction, response = (text_field(record, name, remedy=FIELDS) for name in ("instruction", "output"))
    messages = [{"role": "user", "content": instruction}, {"role": "assistant", "content": response}]
    return Example(record.where, messages, _context(record))


def parse_messages(record: Record) -> list[Message]:
    """Reads the `messages` of a record.

    Args:
        record: Of a chat.

    Returns:
        At least one message, each with a role and a content that is not empty.

    Raises:
        DataError: If they are of another form.
    """
    messages = record.fields["messages"]
    if not isinstance(messages, list) or not messages:
        msg = f"{record.where}: messages must be a list of objects with role and content, and it is {messages!r:.60}."
        raise DataError(msg)
    parsed = []
    for number, message in enumerate(messages, start=1):
        inner = Record(f"{record.where}, message {number}", message if isinstance(message, dict) else {})
        parsed.append({name: text_field(inner, name, remedy=MESSAGE_FIELDS) for name in ("role", "content")})
    return parsed


def plain_prompt(instruction: str, context: str) -> str:
    """An instruction under headings, up to where the response begins."""
    parts = {"Instruction": instruction, **({"Input": context} if context else {})}
    return "".join(f"### {heading}:\n{text}\n\n" for heading, text in parts.items()) + "### Response:\n"


def render_plain(example: Example, end: str) -> tuple[str, list[Span]]:
    """One instruction and its response under headings.

    Args:
        example: No chat.
        end: The model's end-of-text token, which is learnt as well.

    Returns:
        The text, and the characters that are learnt.
    """
    instruction, response = (message["content"] for message in example.messages)
    prompt = plain_prompt(instruction, example.context)
    text = prompt + response + end
    return text, [(len(prompt), len(text))]


def as_chat(example: Example) -> list[Message]:
    """The messages of an example; what an instruction works on follows it after an empty line."""
    if not example.context:
        return example.messages
    first, *others = example.messages
    return [{**first, "content": f"{first['content']}\n\n{example.context}"}, *others]


def render_chat(example: Example, template: ChatTemplate) -> tuple[str, list[Span]]:
    """A chat in the model's own format.

    Most templates do not mark what the assistant says, so it is found: a turn begins where the template stops when
    asked for the assistant's turn, and ends with its content and what the template closes a turn with.

    Args:
        example: Its last message is an assistant's.
        template: The tokenizer's chat template.

    Returns:
        The text, and the characters that are learnt: the assistant's turns with their ends.

    Raises:
        DataError: If the template refuses the chat, or writes a turn in a way that cannot be found again.
    """
    messages = as_chat(example)
    last = len(messages) - 1
    with _refusals_named(example.where):
        text = template(messages, response_follows=False)
        marked = [*messages[:last], {"role": "assistant", "content": MARK}]
        closing = template(marked, response_follows=False).partition(MARK)[2]
        spans = []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = template(messages[:number], response_follows=True)
            if number == last:
                end = len(text) - len(closing) + len(closing.rstrip())
            else:
                end = _end_of(text, len(before), (message["content"].strip(), closing.strip()))
            if not text.startswith(before) or end <= len(before):
                msg = (
                    f"{example.where}: the chat template writes message {number + 1} so that it cannot be found in the "
                    "text; keep one assistant's turn a record, or use a backbone with a plainer template."
                )
                raise DataError(msg)
            spans.append((len(before), end))
    return text, spans


def render_chat_prompt(example: Example, template: ChatTemplate) -> str:
    """A chat in the model's own format, up to where the response begins.

    Args:
        example: Without its response.
        template: The tokenizer's chat template.

    Returns:
        The text.

    Raises:
        DataError: If the template refuses the chat.
    """
    with _refusals_named(example.where or "a prompt"):
        return template(as_chat(example), response_follows=True)


@contextmanager
def _refusals_named(where: str) -> Iterator[None]:
    try:
        yield
    except (TemplateError, TypeError, ValueError) as error:  # transformers' own refusals, such as of no message at all
        msg = f"{where}: the chat template refuses these messages ({error}); mend or remove the record."
        raise DataError(msg) from error


def _end_of(text: str, place: int, parts: Sequence[str]) -> int:
    """Where `parts` end that follow one another at `place`, with nothing but space before each; 0 if they do not."""
    for part in filter(None, parts):  # a template that closes no turn adds no space to it either
        place = len(text) - len(text[place:].lstrip())
        if not text.startswith(part, place):
            return 0
        place += len(part)
    return place


def learnt_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> NDArray[np.bool_]:
    """Which tokens are learnt.

    Args:
        offsets: Characters of each token, in order.
        spans: Characters that are learnt.

    Returns:
        (tokens,), True for a token with a character in one of the spans, so that no character goes unlearnt.
    """
    places = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    learnt = np.zeros(len(places), dtype=np.bool_)
    for start, end in spans:
        learnt |= (places[:, 0] < end) & (places[:, 1] > start)
    return learnt


def parse_prompt(prompt: str | Record) -> Example:
    """Reads something to respond to.

    Args:
        prompt: An instruction, or a record with `messages`, or with `instruction` (or `prompt`) and perhaps `input`.

    Returns:
        An example without its response.

    Raises:
        DataError: If a field is missing, empty or of another kind.
    """
    if isinstance(prompt, str):
        return Example("", [{"role": "user", "content": prompt}])
    if "messages" in prompt.fields:
        return Example(prompt.where, parse_messages(prompt))
    name = "prompt" if "prompt" in prompt.fields else "instruction"
    messages = [{"role": "user", "content": text_field(prompt, name, remedy=PROMPT_FIELDS)}]
    return Example(prompt.where, messages, _context(prompt))


def _context(record: Record) -> str:
    return text_field(record, "input", may_be_empty=True) if record.fields.get("input") is not None else ""
