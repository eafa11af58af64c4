"""What of an instruction or a chat is learnt, checked character by character on the constructs of real templates."""

from functools import cache
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lora_lightning.backbones.chat_template import ChatTemplate
from lora_lightning.datamodules.chat_records import parse_example, parse_prompt
from lora_lightning.datamodules.instruction_format import ChatFormat, learnt_tokens, plain_prompt, render_plain
from lora_lightning.datamodules.records import Record
from lora_lightning.errors import DataError
from tests import chat_templates as t


def chat_format(template: str, end_of_text: str | None = t.END_OF_TEXT) -> ChatFormat:
    return ChatFormat(ChatTemplate(t.chat_tokenizer(template, end_of_text)))


kept_format = cache(chat_format)


def say(role: str, content: str, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


def learnt(template: str, messages: list[dict[str, Any]], **fields: Any) -> list[str]:
    """What is learnt of a chat, once every message is known to be in the text."""
    chat = kept_format(template)
    read = parse_example(Record("f, line 1", {"messages": messages, **fields}))
    assert chat.check(read) == []
    text, spans = chat.render(read)
    for message in messages:
        assert str(message["content"]).strip() in text
    assert spans == sorted(spans)
    return [text[start:end] for start, end in spans]


EXCHANGE = [say("user", "hi"), say("assistant", "<i")]
CHAT = [
    say("user", "hi"),
    say("assistant", "i"),
    say("user", "i"),
    say("assistant", "i"),
    say("user", "i"),
    say("assistant", "e d"),
]
SYSTEM = say("system", "be kind")
THOUGHT = "<think>\n\n</think>\n\n"

SPANS = {
    t.CHATML: ["i<|im_end|>", "i<|im_end|>", "e d<|im_end|>"],
    t.TRIMS: ["i</s>", "i</s>", "e d</s>"],
    t.EMPTY_THOUGHT: ["i<|im_end|>", "i<|im_end|>", f"{THOUGHT}e d<|im_end|>"],
    t.PROMPTS_THOUGHT: ["i</s>", "i</s>", "e d</s>"],
    t.CLOSES_THOUGHT: ["</think>i</s>", "</think>i</s>", "</think>e d</s>"],
    t.LAST_THOUGHT: ["i<|im_end|>", "i<|im_end|>", "\n</think>\n\ne d<|im_end|>"],
    t.TWO_ENDS: ["i<|end|>", "i<|end|>", f"e d<|end|>\n{t.END_OF_TEXT}"],
    t.OTHER_END: [
        "<|channel|>final<|message|>i<|end|>",
        "<|channel|>final<|message|>i<|end|>",
        "<|channel|>final<|message|>e d<|return|>",
    ],
    t.NO_END: ["\ni<|user|>", "\ni<|user|>", f"\ne d{t.END_OF_TEXT}"],
    t.NO_TOKENS: [f"i{t.END_OF_TEXT}", f"i{t.END_OF_TEXT}", f"e d{t.END_OF_TEXT}"],
    t.NO_PROMPT: [" i</s>", " i</s>", " e d</s>"],
    t.ALWAYS_PROMPTS: ["i<|end|>", "i<|end|>", "e d<|end|>"],
    t.GENERATION: ["i<|im_end|>", "i<|im_end|>", "e d<|im_end|>"],
    t.LEAVES_OUT: [f"i{t.END_OF_TEXT}", f"i{t.END_OF_TEXT}", f"e d{t.END_OF_TEXT}"],
}


@pytest.mark.parametrize("template", SPANS)
def test_every_response_is_learnt_with_its_end_and_nothing_else(template: str) -> None:
    assert learnt(template, CHAT) == SPANS[template]
    [single] = learnt(template, EXCHANGE)
    assert single == SPANS[template][-1].replace("e d", "<i")


@pytest.mark.parametrize("template", SPANS)
def test_the_text_is_the_templates_own_but_for_the_ends_it_lacks(template: str) -> None:
    chat = chat_format(template)
    text, _ = chat.render(parse_example(Record("f", {"messages": CHAT})))
    own = chat.template.tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert text == own or template in {t.NO_END, t.NO_TOKENS}
    assert text.replace(t.END_OF_TEXT, "") == str(own).replace(t.END_OF_TEXT, "")


@pytest.mark.parametrize("template", SPANS)
def test_a_prompt_is_what_precedes_the_response(template: str) -> None:
    chat = chat_format(template)
    text, spans = chat.render(parse_example(Record("f", {"messages": EXCHANGE})))
    prompt = chat.render_prompt(parse_prompt(Record("f", {"messages": EXCHANGE[:1]})))
    before = text[: spans[0][0]]
    if template == t.GENERATION:
        before = before.removesuffix("Reply: ")
    assert prompt.startswith(before)
    assert prompt.removeprefix(before) in {"", "<think>\n"}


contents = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Co", "Cc"]), min_size=1, max_size=8).filter(
    lambda text: text.strip() and "<" not in text
)


@example([(" a", "b "), ("c\u2003", "\u2003d e ")])
@example([("Qzx0mQ", "Qzx1mQ"), ('{"a": [1]}', '"\\n')])
@settings(deadline=None)
@given(st.lists(st.tuples(contents, contents), min_size=1, max_size=4))
def test_spans_hold_the_responses_of_any_chat(turns: list[tuple[str, str]]) -> None:
    messages = [message for asked, said in turns for message in (say("user", asked), say("assistant", said))]
    for template, end in ((t.CHATML, "<|im_end|>"), (t.TRIMS, "</s>"), (t.OTHER_END, "")):
        found = learnt(template, messages)
        written = [said.strip() if template == t.TRIMS else said for _, said in turns]
        if template == t.OTHER_END:
            found = [
                text.partition("<|message|>")[2].removesuffix("<|end|>").removesuffix("<|return|>") for text in found
            ]
        assert found == [said + end for said in written]


@pytest.mark.parametrize("template", [t.CHATML, t.TRIMS, t.OTHER_END, t.NO_END, t.LAST_THOUGHT, t.GENERATION])
def test_the_assistant_may_speak_first_or_twice(template: str) -> None:
    first, *_ = learnt(template, [say("assistant", "hello"), *EXCHANGE])
    assert first.replace("<|channel|>final<|message|>", "").strip().startswith("hello<")
    found = learnt(template, [*EXCHANGE, say("assistant", "and more")])
    assert ["<i" in text for text in found] == [True, False]
    assert ["and more" in text for text in found] == [False, True]


@pytest.mark.parametrize("template", SPANS)
def test_messages_after_the_last_response_are_read_but_not_learnt(template: str) -> None:
    found = learnt(template, [*EXCHANGE, say("user", "thanks")])
    assert len(found) == 1
    assert "<i" in found[0]
    assert "thanks" not in found[0]


@pytest.mark.parametrize(
    "off",
    [{"weight": 0}, {"weight": 0.0}, {"weight": False}, {"train": False}, {"train": 0}, {"weight": 1, "train": False}],
)
@pytest.mark.parametrize("template", SPANS)
def test_responses_that_are_switched_off_are_read_but_not_learnt(template: str, off: dict[str, Any]) -> None:
    for switched in (1, 3, 5):
        messages = [
            {**m, **(off if n == switched else {"train": True} if m["role"] == "assistant" else {})}
            for n, m in enumerate(CHAT)
        ]
        expected = [span for number, span in zip((1, 3, 5), SPANS[template], strict=True) if number != switched]
        assert learnt(template, messages) == expected


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (SYSTEM, "the content of message 1 .role system"),
        (say("developer", "be kind"), "the content of message 1 .role developer"),
        (say("tool", "7"), "the content of message 1 .role tool"),
        (say("system", "no </think>"), "the content of message 1 .role system"),
    ],
)
def test_a_message_that_the_template_leaves_out_is_refused(message: dict[str, Any], what: str) -> None:
    for chat in ([message, *EXCHANGE], [message, *CHAT]):
        with pytest.raises(DataError, match=f"^f, line 3: the chat template leaves out {what}"):
            chat_format(t.LEAVES_OUT).check(parse_example(Record("f, line 3", {"messages": chat})))
    with pytest.raises(DataError, match=r"^f: the chat template leaves out"):
        chat_format(t.LEAVES_OUT).check(parse_prompt(Record("f", {"messages": [message, EXCHANGE[0]]})))
    assert learnt(t.CHATML, [message, *EXCHANGE]) == ["<i<|im_end|>"]


def test_the_last_message_may_be_the_one_that_is_left_out() -> None:
    hides_last = "{% for m in messages %}{% if not loop.last %}" + t.CHATML.split("%}", 1)[1].replace(
        "{% endfor", "{% endif %}{% endfor", 1
    )
    with pytest.raises(DataError, match=r"leaves out the content of message 2 \(role assistant\)"):
        chat_format(hides_last).check(parse_example(Record("f", {"messages": EXCHANGE})))


REASONED = "<think>\nsix times seven\n</think>\n\n42"


@pytest.mark.parametrize(
    "response", [say("assistant", REASONED), say("assistant", "42", reasoning_content="six times seven")]
)
def test_reasoning_is_learnt_where_the_template_writes_it(response: dict[str, Any]) -> None:
    assert learnt(t.LAST_THOUGHT, [EXCHANGE[0], response]) == ["six times seven\n</think>\n\n42<|im_end|>"]
    with pytest.raises(DataError, match=r"leaves out the reasoning of message 2 \(role assistant\)"):
        learnt(t.LAST_THOUGHT, [EXCHANGE[0], response, *CHAT])


def test_reasoning_that_a_template_cuts_from_the_content_is_refused() -> None:
    with pytest.raises(DataError, match=r"leaves out the reasoning of message 2 \(role assistant\)"):
        learnt(t.PROMPTS_THOUGHT, [EXCHANGE[0], say("assistant", REASONED)])
    assert learnt(t.CHATML, [EXCHANGE[0], say("assistant", REASONED)]) == [f"{REASONED}<|im_end|>"]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_has_several_names(name: str) -> None:
    expected = "<|channel|>analysis<|message|>because<|end|><|start|>assistant<|channel|>final<|message|>42<|return|>"
    assert learnt(t.OTHER_END, [EXCHANGE[0], say("assistant", "42", **{name: "because"})]) == [expected]


def test_fields_without_a_place_in_the_template_are_named() -> None:
    call = {"function": {"name": "weather", "arguments": {}}}
    messages = [say("user", "hi", name="Ada"), say("assistant", "i", reasoning_content="why", tool_calls=[call])]
    read = parse_example(Record("f", {"messages": messages, "tools": [{"name": "weather", "parameters": {}}]}))
    unread = ["messages.name", "messages.reasoning_content", "messages.tool_calls", "tools"]
    assert chat_format(t.CHATML).check(read) == unread


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
ARGUMENTS = {"city": 'Sankt "Pölten"', "days": 2, "units": ["C", "mm"]}


@pytest.mark.parametrize("template", [t.TOOLS, t.JSON_TOOLS])
@pytest.mark.parametrize("content", ["", None, "I look."])
@pytest.mark.parametrize(
    "call",
    [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}},
        {
            "function": {
                "name": "weather",
                "arguments": '{"city": "Sankt \\"P\\u00f6lten\\"", "days": 2, "units": ["C", "mm"]}',
            }
        },
        {"name": "weather", "arguments": ARGUMENTS},
        {"name": "weather"},
    ],
)
def test_tools_and_their_calls_are_written(template: str, content: str | None, call: dict[str, Any]) -> None:
    chat = chat_format(template)
    messages = [
        say("user", "warm?"),
        {"role": "assistant", "content": content, "tool_calls": [call]},
        say("tool", '{"t": "28 °C"}', tool_call_id="c1", name="weather"),
        say("assistant", "Yes."),
    ]
    for tools in ([TOOL], [TOOL["function"]]):
        read = parse_example(Record("f", {"messages": messages, "tools": tools}))
        assert chat.check(read) == []
        text, [first, second] = chat.render(read)
        assert "weather" in text.partition("<|user|>")[0]
        assert text[first[0] : first[1]].startswith(f"{content or ''}<call>weather\n")
        assert text[first[0] : first[1]].endswith("</call><|call|>")
        assert ("Pölten" in text[first[0] : first[1]]) == ("arguments" in call.get("function", call))
        assert text[second[0] : second[1]] == "Yes.<|end|>"


def test_a_call_that_the_template_leaves_out_is_refused_if_it_is_the_whole_response() -> None:
    call = {"function": {"name": "weather", "arguments": {}}}
    read = parse_example(Record("f", {"messages": [EXCHANGE[0], say("assistant", "", tool_calls=[call])]}))
    with pytest.raises(
        DataError, match=r"f: the chat template leaves out the tool calls of message 2 \(role assistant\)"
    ):
        chat_format(t.CHATML).check(read)


def test_a_template_that_refuses_a_chat_is_an_error_with_place_and_roles() -> None:
    for act in (
        lambda read: chat_format(t.NO_PROMPT).check(read),
        lambda read: chat_format(t.NO_PROMPT).render_prompt(read),
    ):
        with pytest.raises(
            DataError,
            match=r"^f, line 3: .* refuses .* the roles system, user, assistant \(roles must alternate user",
        ):
            act(parse_example(Record("f, line 3", {"messages": [SYSTEM, *EXCHANGE]})))


def test_a_template_that_changes_words_is_an_error_with_the_place() -> None:
    chat = chat_format(t.CHATML.replace("m.content", "m.content.replace('cat', 'dog')"))
    with pytest.raises(DataError, match=r"^f, line 3: .* changes the content of message 2 \(role assistant\)"):
        chat.render(parse_example(Record("f, line 3", {"messages": [say("user", "pet?"), say("assistant", "a cat")]})))


def test_a_template_that_adds_words_to_some_contents_is_an_error_with_the_place() -> None:
    chat = chat_format(t.CHATML.replace("m.content", "(m.content + ('!' if 'cat' in m.content else ''))"))
    with pytest.raises(DataError, match=r"^f, line 3: .* writes this chat differently because of the words in it"):
        chat.render(parse_example(Record("f, line 3", {"messages": [say("user", "pet?"), say("assistant", "a cat")]})))


def test_a_template_that_mixes_up_messages_is_an_error_with_the_place() -> None:
    chat = chat_format("{% for m in messages | reverse %}{{ m.content }}{% endfor %}{{ messages[0].content }}")
    mixed = [say("assistant", "<think>a</think>b"), say("user", "c")]
    chat_of_parts = chat_format(
        "{{ messages[0].content.split('</think>')[0] + messages[1].content + messages[0].content }}"
    )
    read = parse_example(Record("f, line 3", {"messages": mixed}))
    with pytest.raises(DataError, match=r"^f, line 3: the chat template writes message 1 \(role assistant\) so that"):
        chat_of_parts.render(read)
    assert chat.check(read) == []


def test_a_date_in_the_template_may_change_while_data_is_read() -> None:
    chat = chat_format("{{ today }}" + t.CHATML)
    read = parse_example(Record("f", {"messages": EXCHANGE}))
    for today in ("Monday", "Tuesday"):
        chat.template.tokenizer.chat_template = today + t.CHATML
        text, [(start, end)] = chat.render(read)
        assert text.startswith(today)
        assert text[start:end] == "<i<|im_end|>"


def test_without_any_end_token_a_chat_is_refused() -> None:
    with pytest.raises(DataError, match=r"^f: neither the chat template nor the tokenizer has a token that ends"):
        chat_format(t.NO_TOKENS, None).render(parse_example(Record("f", {"messages": EXCHANGE})))


def test_what_an_instruction_works_on_goes_into_the_users_turn() -> None:
    record = Record("f", {"instruction": "add", "input": "1 2", "output": "3", "history": [["a", "b"]], "system": "s"})
    text, spans = chat_format(t.CHATML).render(parse_example(record))
    assert "<|im_start|>user\nadd\n\n1 2<|im_end|>" in text
    assert [text[start:end] for start, end in spans] == ["b<|im_end|>", "3<|im_end|>"]
    assert text.startswith("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\na<|im_end|>")


@pytest.mark.parametrize("context", ["", "1 2"])
def test_a_plain_response_is_learnt_with_the_end_of_text(context: str) -> None:
    example = parse_example(Record("f", {"instruction": "add", "input": context, "output": "3"}))
    text, [(start, end)] = render_plain(example, "<end>")
    assert text[start:end] == "3<end>"
    assert text[:start] == plain_prompt("add", context)
    assert end == len(text)
    assert ("### Input:\n1 2\n\n" in text) == bool(context)
    assert text.startswith("### Instruction:\nadd\n\n")


def test_learnt_tokens_by_hand() -> None:
    offsets = [(0, 3), (3, 5), (5, 6), (6, 6), (6, 9), (9, 12)]
    assert learnt_tokens(offsets, [(5, 7)]).tolist() == [False, False, True, True, True, False]
    assert learnt_tokens(offsets, [(0, 1), (11, 12)]).tolist() == [True, False, False, False, False, True]
    assert learnt_tokens([], [(0, 1)]).tolist() == []
