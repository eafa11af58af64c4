"""Instructions and chats as text, with the parts of it that are learnt."""

import json
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lora_lightning.backbones.chat_layout import ASSISTANT, ChatLayout, Part, Turn, mark_texts
from lora_lightning.backbones.chat_template import ChatTemplate, Span, template_errors_named
from lora_lightning.backbones.end_tokens import response_end_tokens
from lora_lightning.datamodules.chat_records import Example
from lora_lightning.errors import DataError

LAYOUTS_KEPT = 1024  # most data sets have far fewer forms of chat


def plain_prompt(instruction: str, context: str) -> str:
    """An instruction under headings, up to where the response begins."""
    parts = {"Instruction": instruction, **({"Input": context} if context else {})}
    return "".join(f"### {heading}:\n{text}\n\n" for heading, text in parts.items()) + "### Response:\n"


def render_plain(example: Example, end: str) -> tuple[str, list[Span]]:
    """One instruction and its response under headings.

    Args:
        example: Not a chat.
        end: The model's end-of-text token, which is learnt as well.

    Returns:
        The text, and the characters that are learnt.
    """
    instruction, response = (message["content"] for message in example.messages)
    prompt = plain_prompt(instruction, example.context)
    text = prompt + response + end
    return text, [(len(prompt), len(text))]


class ChatFormat:
    """Writes chats in the model's own format and finds the responses in them.

    Args:
        template: The tokenizer's chat template.
    """

    def __init__(self, template: ChatTemplate) -> None:
        self.template = template
        self._layouts: dict[str, ChatLayout] = {}

    def _layout_of(self, example: Example) -> tuple[ChatLayout, list[Part]]:
        messages, parts = mark_texts(example.chat)
        owners = [part.message for part in parts]
        form = repr((messages, example.tools))
        if form not in self._layouts:
            if len(self._layouts) >= LAYOUTS_KEPT:
                self._layouts.clear()
            with template_errors_named(example.where or "a prompt", example.chat):
                self._layouts[form] = ChatLayout(self.template, messages, owners, example.tools)
        return self._layouts[form], parts

    def check(self, example: Example) -> list[str]:
        """Refuses a chat of which the template leaves out a text.

        Args:
            example: With or without its response.

        Returns:
            The fields that this template never writes, and that the chat is complete without.

        Raises:
            DataError: If the template refuses the chat or leaves out a message, or reasoning or a call that belongs
                to a response.
        """
        layout, parts = self._layout_of(example)
        unread = set()
        for part in (parts[mark] for mark in layout.missing):
            if part.field == "name":
                unread.add("messages.name")
            elif part.field != "content" and self._can_do_without(part, layout, parts):
                unread.add(f"messages.{part.field}")
            else:
                raise _left_out(example, part)
        if example.tools and not layout.reads_tools:
            unread.add("tools")
        return sorted(unread)

    def _can_do_without(self, part: Part, layout: ChatLayout, parts: Sequence[Part]) -> bool:
        """Whether the template has no place for a field at all, and the message has a content besides."""
        if part.field == "reasoning_content" and self._takes_reasoning:
            return False
        missing = set(layout.missing)
        return any(
            other.message == part.message and other.field == "content" and mark not in missing
            for mark, other in enumerate(parts)
        )

    @cached_property
    def _takes_reasoning(self) -> bool:
        response = {"role": "assistant", "content": "a", "reasoning_content": "b"}
        layout, _ = self._layout_of(Example("", [{"role": "user", "content": "c"}, response]))
        return not layout.missing

    def render(self, example: Example) -> tuple[str, list[Span]]:
        """Writes a chat.

        Args:
            example: With at least one response.

        Returns:
            The text, and the characters that are learnt: each response with the token that ends it. If the template
            closes a turn with no such token, the tokenizer's end-of-text token is inserted there.

        Raises:
            DataError: If the template refuses the chat, or a response cannot be found in the text.
        """
        with template_errors_named(example.where, example.chat):
            text = self.template.render(example.chat, example.tools)
        layout, parts = self._layout_of(example)
        places = find_parts(layout, parts, text)
        if places is None:
            self._layouts.clear()  # a template may write today's date
            layout, _ = self._layout_of(example)
            places = find_parts(layout, parts, text)
        if places is None:
            raise _changed(example, parts, text)
        written, copied = "", 0
        spans: list[Span] = []
        for number in example.learnt_messages:
            turn = self._turn(example, layout, number)
            start, end = (_actual(position, layout, places) for position in (turn.start, turn.end))
            written += text[copied:end]
            start += len(written) - end
            if turn.end_token not in self._end_tokens:
                written += self._end_of_text(example.where)
            spans.append((start, len(written)))
            copied = end
        return written + text[copied:], spans

    @cached_property
    def _end_tokens(self) -> set[str]:
        """Where generation will stop."""
        return response_end_tokens(self.template.tokenizer) | ({self.template.end_of_text or ""} - {""})

    def _turn(self, example: Example, layout: ChatLayout, number: int) -> Turn:
        turn = layout.turns[number]
        if turn is None:
            msg = (
                f"{example.where}: the chat template writes message {number + 1} (role assistant) so that it cannot be "
                "told from the messages around it; use a backbone with another template."
            )
            raise DataError(msg)
        return turn

    def _end_of_text(self, where: str) -> str:
        if self.template.end_of_text is None:
            msg = (
                f"{where}: neither the chat template nor the tokenizer has a token that ends a response, so generation "
                "would never stop; use a backbone whose tokenizer has an eos_token."
            )
            raise DataError(msg)
        return self.template.end_of_text

    def render_prompt(self, example: Example) -> str:
        """Writes a chat up to where the response begins.

        Args:
            example: Without its response.

        Returns:
            The text.

        Raises:
            DataError: If the template refuses the chat.
        """
        with template_errors_named(example.where or "a prompt", example.chat):
            return self.template.render(example.chat, example.tools, response_follows=True)


def find_parts(layout: ChatLayout, parts: Sequence[Part], text: str) -> list[Span] | None:
    """Finds the texts of a chat in what the template wrote.

    Args:
        layout: Of the chat's form.
        parts: What the marks stand for.
        text: The chat, rendered.

    Returns:
        The place of each occurrence of a mark; `None` if the template writes anything else than the layout says.
    """
    places: list[Span] = []
    ends = [start for _, start, _ in layout.places[1:]] + [len(layout.text)]
    if layout.places and text[: layout.places[0][1]] != layout.text[: layout.places[0][1]]:
        return None
    position = layout.places[0][1] if layout.places else 0
    for (mark, _, marked), end in zip(layout.places, ends, strict=True):
        after = layout.text[marked:end]
        value = parts[mark].value
        forms = (value, json.dumps(value, ensure_ascii=False)[1:-1], json.dumps(value)[1:-1])
        found = next((form for form in forms if text.startswith(form + after, position)), None)
        if found is None:
            return None
        places.append((position, position + len(found)))
        position += len(found) + len(after)
    return places if position == len(text) else None


def _actual(position: int, layout: ChatLayout, places: Sequence[Span]) -> int:
    """The character of the rendered chat that a character of the marked text stands for."""
    shift = 0
    for (_, start, end), (actual_start, actual_end) in zip(layout.places, places, strict=True):
        if position <= start:
            break
        if position < end:
            return actual_start
        shift = actual_end - end
    return position + shift


def _left_out(example: Example, part: Part) -> DataError:
    message = example.messages[part.message]
    role = message["role"]
    thought = part.field == "content" and role == ASSISTANT and "</think>" in message["content"]
    if thought or part.field == "reasoning_content":
        what, remedy = "reasoning", "end the record with this response, remove its reasoning, or use another backbone"
    elif part.field == "tool_calls":
        what, remedy = "tool calls", "remove the record, or use a backbone whose template writes them"
    else:
        what = "content"
        remedy = "give it a role that the template writes, put it into the user's message, or use another backbone"
    return DataError(
        f"{example.where or 'a prompt'}: the chat template leaves out the {what} of message {part.message + 1} (role "
        f"{role}); {remedy}."
    )


def _changed(example: Example, parts: Sequence[Part], text: str) -> DataError:
    changed = next((part for part in parts if part.value not in text), None)
    if changed is None:
        what = "writes this chat differently because of the words in it, so its responses"
    else:
        role = example.messages[changed.message]["role"]
        what = f"changes the {changed.field} of message {changed.message + 1} (role {role}), so it"
    return DataError(
        f"{example.where}: the chat template {what} cannot be found in the text; reword the record, or use a backbone "
        "with a plainer template."
    )


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
