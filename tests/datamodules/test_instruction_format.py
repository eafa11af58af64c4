"""What of an instruction or a chat is learnt, checked character by character on real templates' habits."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lora_lightning.datamodules.instruction_format import (
    ChatTemplate,
    Example,
    Message,
    learnt_tokens,
    parse_example,
    parse_prompt,
    plain_prompt,
    render_chat,
    render_plain,
)
from lora_lightning.datamodules.records import Record
from lora_lightning.errors import DataError

# Written for these tests, each with a habit of a family of templates.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRIMS = (  # trims contents and writes a begin-of-text token
    "<s>{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
THINKS = (  # an empty thought before the last response only
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPEN_END = (  # nothing closes a turn
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
REWRITES = "{{ messages | length }} messages: {% for m in messages %}{{ m.content }} {% endfor %}"
CLOSING = {CHATML: "<|im_end|>", TRIMS: "</s>", THINKS: "<|im_end|>", OPEN_END: ""}


def template(source: str) -> ChatTemplate:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def render(messages: Sequence[Message], *, response_follows: bool) -> str:
        return environment.from_string(source).render(messages=list(messages), add_generation_prompt=response_follows)

    return render


def say(role: str, content: str) -> Message:
    return {"role": role, "content": content}


CHAT = [say("system", "be kind"), say("user", "hi"), say("assistant", "i"), say("user", "i"), say("assistant", "e d")]


@pytest.mark.parametrize("source", CLOSING)
def test_every_response_is_learnt_with_its_end_and_nothing_else(source: str) -> None:
    text, spans = render_chat(Example("f", CHAT), template(source))
    assert text == template(source)(CHAT, response_follows=False)
    thought = "<think>\n\n</think>\n\n" if source == THINKS else ""
    assert [text[start:end] for start, end in spans] == [f"i{CLOSING[source]}", f"{thought}e d{CLOSING[source]}"]
    for number, (start, _) in zip((2, 4), spans, strict=True):  # what generation will be given
        assert text[:start] == template(source)(CHAT[:number], response_follows=True)


contents = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Co", "Cc"]), min_size=1, max_size=8).filter(
    lambda text: text.strip() and "<" not in text
)


@given(st.lists(st.tuples(contents, contents), min_size=1, max_size=4))
def test_spans_hold_the_responses_of_any_chat(turns: list[tuple[str, str]]) -> None:
    messages = [message for asked, said in turns for message in (say("user", asked), say("assistant", said))]
    for source in (CHATML, TRIMS):
        text, spans = render_chat(Example("f", messages), template(source))
        written = [said.strip() if source == TRIMS else said for _, said in turns]
        assert [text[start:end] for start, end in spans] == [said + CLOSING[source] for said in written]


@pytest.mark.parametrize("source", [REWRITES, "{{ messages[-1].content | upper }}"])
def test_a_template_that_hides_its_turns_is_an_error_with_the_place(source: str) -> None:
    with pytest.raises(DataError, match="f, line 3: the chat template writes message 3 so that it cannot be found"):
        render_chat(Example("f, line 3", CHAT), template(source))


def test_a_template_that_refuses_a_chat_is_an_error_with_the_place() -> None:
    def refuse(messages: Sequence[Message], *, response_follows: bool) -> str:
        msg = "roles must alternate"
        raise TemplateError(msg)

    with pytest.raises(
        DataError, match=r"f, line 3: the chat template refuses these messages \(roles must alternate\)"
    ):
        render_chat(Example("f, line 3", CHAT), refuse)


def test_what_an_instruction_works_on_goes_into_the_users_turn() -> None:
    example = parse_example(Record("f", {"instruction": "add", "input": "1 2", "output": "3"}))
    text, spans = render_chat(example, template(CHATML))
    assert "<|im_start|>user\nadd\n\n1 2<|im_end|>" in text
    assert [text[start:end] for start, end in spans] == ["3<|im_end|>"]


@pytest.mark.parametrize("context", ["", "1 2"])
def test_a_plain_response_is_learnt_with_the_end_of_text(context: str) -> None:
    example = parse_example(Record("f", {"instruction": "add", "input": context, "output": "3"}))
    text, [(start, end)] = render_plain(example, "<end>")
    assert text[start:end] == "3<end>"
    assert text[:start] == plain_prompt("add", context)
    assert end == len(text)
    assert ("### Input:\n1 2\n\n" in text) == bool(context)
    assert text.startswith("### Instruction:\nadd\n\n")


def test_messages_after_the_last_response_are_left_out() -> None:
    fields = {"messages": [*CHAT, say("user", "thanks")]}
    assert parse_example(Record("f", fields)).messages == CHAT


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"input": "", "output": "x"},
            "f: the field 'instruction' is missing; the record has input, output; give every",
        ),
        ({"instruction": "x"}, "f: the field 'output' is missing"),
        (
            {"conversations": []},
            "has conversations; give every record instruction and output, or messages with role and",
        ),
        ({"instruction": "x", "output": " "}, "f: the field 'output' is empty"),
        ({"instruction": "x", "output": "y", "input": 3}, "f: the field 'input' holds 3"),
        ({"messages": []}, "f: messages must be a list of objects"),
        ({"messages": "hi"}, "f: messages must be a list of objects"),
        ({"messages": ["hi"]}, "f, message 1: the field 'role' is missing"),
        ({"messages": [{"role": "user"}]}, "the record has role; give every message role and content"),
        ({"messages": [say("user", "x"), say("assistant", "")]}, "f, message 2: the field 'content' is empty"),
        ({"messages": [say("user", "x")]}, "f: no message has the role assistant"),
    ],
)
def test_malformed_records_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_example(Record("f", fields))


@pytest.mark.parametrize("fields", [{"instruction": "x"}, {"prompt": "x"}, {"messages": [say("user", "x")]}])
def test_prompts_may_be_written_in_three_ways(fields: dict[str, object]) -> None:
    assert parse_prompt(Record("f", fields)).messages == parse_prompt("x").messages == [say("user", "x")]


def test_only_more_than_one_exchange_is_a_chat() -> None:
    assert Example("f", CHAT).is_chat
    assert not Example("f", CHAT[1:3]).is_chat
    assert not parse_prompt("x").is_chat
    assert Example("f", CHAT[:2]).is_chat  # a system message has no place under headings


def test_learnt_tokens_by_hand() -> None:
    offsets = [(0, 3), (3, 5), (5, 6), (6, 6), (6, 9), (9, 12)]
    assert learnt_tokens(offsets, [(5, 7)]).tolist() == [False, False, True, True, True, False]
    assert learnt_tokens(offsets, [(0, 1), (11, 12)]).tolist() == [True, False, False, False, False, True]
    assert learnt_tokens([], [(0, 1)]).tolist() == []
