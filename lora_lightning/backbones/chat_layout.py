"""Where a chat template puts each message, found by rendering the chat with a mark in place of every text.

What a template writes depends on the roles and on which parts a message has, hardly ever on their words. The text
between the marks is therefore the same for every chat of that form, and shows where each response begins and ends.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lora_lightning.backbones.chat_template import TEMPLATE_FAULTS, ChatTemplate, Message, Span, Tools

MARK = re.compile(r"Qzx(\d+)mQ")
ASSISTANT = "assistant"
THINKING = re.compile(r"(</?think>)")  # written inside a content, where templates split it
OPEN_TAG = re.compile(r"[<\[][^<>\[\]]*$")


@dataclass(frozen=True)
class Part:
    """A text of a message that a mark stands for.

    Attributes:
        message: Index of the message.
        field: `content`, `reasoning_content`, `tool_calls` or `name`.
        value: The text, without the space around it.
    """

    message: int
    field: str
    value: str


@dataclass(frozen=True)
class Turn:
    """What the assistant generates in one turn, as characters of the marked text.

    Attributes:
        start: The first one.
        end: The one after the last.
        end_token: The special token that it ends in, where generation stops; empty if the template writes none.
    """

    start: int
    end: int
    end_token: str


def mark_texts(messages: Sequence[Message]) -> tuple[list[Message], list[Part]]:
    """Puts a mark in place of every text of a chat and keeps the space around it.

    Args:
        messages: The chat.

    Returns:
        The marked chat, and what each mark stands for, in the order of their numbers.
    """
    parts: list[Part] = []

    def mark(message: int, field: str, value: str) -> str:
        text = value.strip()
        if not text:
            return value
        parts.append(Part(message, field, text))
        start = len(value) - len(value.lstrip())
        return f"{value[:start]}Qzx{len(parts) - 1}mQ{value[start + len(text) :]}"

    return [_marked_message(number, message, mark) for number, message in enumerate(messages)], parts


def _marked_message(number: int, message: Message, mark: Callable[[int, str, str], str]) -> Message:
    marked = dict(message)
    if "reasoning_content" in marked:
        marked["reasoning_content"] = mark(number, "reasoning_content", marked["reasoning_content"])
    if "content" in marked:
        pieces = THINKING.split(marked["content"]) if marked["role"] == ASSISTANT else [marked["content"]]
        marked["content"] = "".join(
            piece if THINKING.fullmatch(piece) else mark(number, "content", piece) for piece in pieces
        )
    if "name" in marked and marked["role"] != "tool":  # a tool's must stay that of its call
        marked["name"] = mark(number, "name", marked["name"])
    if "tool_calls" in marked:
        marked["tool_calls"] = [_marked_call(number, call, mark) for call in marked["tool_calls"]]
    return marked


def _marked_call(number: int, call: Mapping[str, Any], mark: Callable[[int, str, str], str]) -> dict[str, Any]:
    def marked(value: Any) -> Any:
        if isinstance(value, str):
            return mark(number, "tool_calls", value)
        if isinstance(value, dict):
            return {name: marked(inner) for name, inner in value.items()}
        return [marked(inner) for inner in value] if isinstance(value, list) else value

    function = {name: marked(call["function"][name]) for name in ("name", "arguments")}
    return {**call, "function": function}


class ChatLayout:
    """The text that a template writes around the marks of a chat, and the assistant's turns in it.

    Args:
        template: The chat template.
        messages: The marked chat, from `mark_texts`.
        owners: Index of the message that each mark belongs to.
        tools: Those of the chat.

    Raises:
        TemplateError: If the template refuses the chat; a faulty template may raise other errors too.
    """

    def __init__(
        self, template: ChatTemplate, messages: Sequence[Message], owners: Sequence[int], tools: Tools | None
    ) -> None:
        self.template = template
        self.messages = messages
        self.owners = owners
        self.tools = tools
        self.text = template.render(messages, tools)
        self.places = [(int(found[1]), found.start(), found.end()) for found in MARK.finditer(self.text)]
        self._first_place = {mark: (start, end) for mark, start, end in reversed(self.places)}

    @cached_property
    def missing(self) -> list[int]:
        """The marks that the template leaves out."""
        return [mark for mark in range(len(self.owners)) if mark not in self._first_place]

    @cached_property
    def reads_tools(self) -> bool:
        """Whether the template writes the tools anywhere."""
        try:
            return self.template.render(self.messages) != self.text
        except TEMPLATE_FAULTS:
            return True

    @cached_property
    def turns(self) -> dict[int, Turn | None]:
        """The assistant's turns by index of the message; `None` for one that cannot be told from other messages."""
        speakers = enumerate(message["role"] for message in self.messages)
        return {number: self._turn(number) for number, role in speakers if role == ASSISTANT}

    def _turn(self, message: int) -> Turn | None:
        own = [place for mark, place in self._first_place.items() if self.owners[mark] == message]
        if not own:
            return None
        first, last = min(start for start, _ in own), max(end for _, end in own)
        if self._owners_between(first, last) != {message}:
            return None
        start = self._start(message, first)
        end, token = self._end(message, last)
        around = [(opened, closed) for opened, closed in self._generated if opened < last and closed > first]
        if around and self._owners_between(around[0][0], around[-1][1]) <= {message}:
            start = min(around[0][0], first)
            generated = self.text[: max(around[-1][1], last)].rstrip()
            if found := self._end_token(generated):
                end, token = len(generated), found
        return Turn(start, end, token)

    def _owners_between(self, start: int, end: int) -> set[int]:
        """The messages of which a mark occurs for the first time between two characters."""
        return {self.owners[mark] for mark, (place, _) in self._first_place.items() if start <= place < end}

    @cached_property
    def _generated(self) -> list[Span]:
        return self.template.generation_spans(self.messages, self.tools)

    def _start(self, message: int, first: int) -> int:
        """Where generation starts: after as much of the generation prompt as the template writes before the turn."""
        before_it = [(end, mark) for mark, _, end in self.places if end <= first]
        start, previous = max(before_it, default=(0, None))
        before = self.text[start:first]
        prompt = self._rendered(self.messages[:message])
        shown = list(MARK.finditer(prompt))
        if shown and int(shown[-1][1]) == previous:
            shared = _shared_prefix(before, prompt[shown[-1].end() :])
            if shared:
                return start + len(shared)
        return start + self._after_generation_prompt(before)

    def _rendered(self, messages: Sequence[Message], *, response_follows: bool = True) -> str:
        """A part of the chat; nothing if the template refuses it."""
        try:
            return self.template.render(messages, self.tools, response_follows=response_follows)
        except TEMPLATE_FAULTS:
            return ""

    def _after_generation_prompt(self, before: str) -> int:
        """For a turn with nothing before it to compare with, such as the first one."""
        prompt = self.generation_prompt
        for length in range(len(prompt), 0, -1):
            begun = length < len(prompt) and OPEN_TAG.search(prompt[:length])
            if not begun and prompt[:length] in before:
                return before.rindex(prompt[:length]) + length
        return len(before)

    @cached_property
    def generation_prompt(self) -> str:
        """What the template adds when a response follows; empty for templates like Mistral's."""
        question = [{"role": "user", "content": "Qzx0mQ"}]
        closed, opened = (
            MARK.split(self._rendered(question, response_follows=follows))[-1] for follows in (False, True)
        )
        return opened[len(_shared_prefix(closed, opened)) :]

    def _end(self, message: int, last: int) -> tuple[int, str]:
        """Where the turn ends, and the special token it ends in."""
        after = MARK.split(self.text[last:])[0]
        is_last = message == len(self.messages) - 1
        closing = (after if is_last else _shared_prefix(after, self._closing(message))).rstrip()
        closing = self._up_to_end_of_text(closing)
        if token := self._end_token(closing):
            return last + len(closing), token
        if is_last or self.messages[message + 1]["role"] not in {"user", "tool"}:
            return last + len(closing), ""
        rest = after[len(closing) :]
        header = rest.lstrip()  # GLM's turns end in the next message's header
        token = max((token for token in self.template.special_tokens if header.startswith(token)), key=len, default="")
        return last + len(closing) + (len(rest) - len(header) + len(token) if token else 0), token

    def _up_to_end_of_text(self, closing: str) -> str:
        """What can be generated of a closing, and no header that a template adds even if no response follows."""
        tokens = {self.template.end_of_text} if self.generation_prompt else self.template.special_tokens
        ends = [closing.index(token) + len(token) for token in tokens if token and token in closing]
        return closing[: min(ends)] if ends else closing

    def _end_token(self, text: str) -> str:
        return max((token for token in self.template.special_tokens if text.endswith(token)), key=len, default="")

    def _closing(self, message: int) -> str:
        """What the template writes after a turn if another response follows, without the generation prompt."""
        return MARK.split(self._rendered(self.messages[: message + 1]))[-1].removesuffix(self.generation_prompt)


def _shared_prefix(one: str, other: str) -> str:
    """What two texts begin with alike, without a tag that only begins alike."""
    differs = (number for number, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    shared = one[: next(differs, min(len(one), len(other)))]
    return OPEN_TAG.sub("", shared) if len(shared) < min(len(one), len(other)) else shared
