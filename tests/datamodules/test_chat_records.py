"""Records in Alpaca's, OpenAI's and ShareGPT's formats become the same messages; what cannot be read is named."""

import json
from typing import Any

import pytest

from lora_lightning.datamodules.chat_records import Example, has_empty_response, parse_example, parse_prompt
from lora_lightning.datamodules.records import Record
from lora_lightning.errors import DataError


def say(role: str, content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


CHAT = [say("system", "be kind"), say("user", "hi"), say("assistant", "i"), say("user", "i"), say("assistant", "e d")]
SHAREGPT = [
    {"from": "system", "value": "be kind"},
    {"from": "human", "value": "hi"},
    {"from": "gpt", "value": "i"},
    {"from": "human", "value": "i"},
    {"from": "gpt", "value": "e d"},
]


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": CHAT},
        {"messages": CHAT[1:], "system": "be kind"},
        {"messages": json.dumps(CHAT)},  # as in a table
        {"messages": SHAREGPT},
        {"conversations": SHAREGPT},
        {"conversations": CHAT, "id": ""},
        {"conversations": SHAREGPT[1:], "system": "be kind"},
        {"messages": [say(m["role"], [{"type": "text", "text": m["content"]}]) for m in CHAT]},
        {"instruction": "i", "output": "e d", "history": [["hi", "i"]], "system": "be kind"},
        {"instruction": "i", "output": "e d", "history": '[["hi", "i"]]', "system": "be kind", "input": ""},
        {"messages": [{**message, "name": None, "tool_calls": None} for message in CHAT]},  # as Parquet fills columns
    ],
)
def test_the_same_chat_may_be_written_in_many_ways(fields: dict[str, Any]) -> None:
    assert parse_example(Record("f", fields)) == Example("f", CHAT, learnt_messages=(2, 4))


@pytest.mark.parametrize(
    "fields",
    [
        {"instruction": "x"},
        {"prompt": "x"},
        {"messages": [say("user", "x")]},
        {"conversations": [{"from": "human", "value": "x"}]},
        {"instruction": "x", "output": "what is asked for"},
    ],
)
def test_prompts_may_be_written_in_many_ways(fields: dict[str, object]) -> None:
    assert parse_prompt(Record("f", fields)).messages == parse_prompt("x").messages == [say("user", "x")]
    assert parse_prompt(Record("f", fields)).unread == ()


@pytest.mark.parametrize("chat", [CHAT, json.dumps(CHAT), SHAREGPT])
def test_the_response_at_the_end_of_a_prompt_is_left_out_and_named(chat: Any) -> None:
    prompt = parse_prompt(Record("f", {"messages": chat}))
    assert prompt.messages == CHAT[:-1]
    assert prompt.unread == ("the response at the end of messages",)


def test_a_response_alone_is_no_prompt() -> None:
    with pytest.raises(DataError, match="f: messages has a response only, and nothing to respond to"):
        parse_prompt(Record("f", {"messages": CHAT[-1:]}))


def test_prompts_may_have_a_system_message_and_a_history() -> None:
    prompt = parse_prompt(Record("f", {"prompt": "x", "input": "y", "history": [["a", "b"]], "system": "s"}))
    assert prompt.chat == [say("system", "s"), say("user", "a"), say("assistant", "b"), say("user", "x\n\ny")]


def test_several_texts_in_one_content_are_read_in_order() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert parse_prompt(Record("f", {"messages": [say("user", parts)]})).messages == [say("user", "one\ntwo")]


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Graz"}}}


@pytest.mark.parametrize(
    "message",
    [
        say("assistant", "", tool_calls=[CALL]),
        say("assistant", None, tool_calls=[CALL]),
        {"role": "assistant", "tool_calls": [CALL]},
        say("assistant", "", tool_calls=[CALL["function"]]),
        say("assistant", "", tool_calls=json.dumps([CALL])),
        say("assistant", "", tool_calls=[{"function": {"name": "weather", "arguments": '{"city": "Graz"}'}}]),
        say("assistant", None, function_call={"name": "weather", "arguments": '{"city": "Graz"}'}),
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Graz"}}'},
    ],
)
def test_calls_of_tools_may_be_written_in_many_ways(message: dict[str, Any]) -> None:
    fields = {"messages": [say("user", "x"), message]}
    read = parse_example(Record("f", fields))
    assert read.messages[1] == say("assistant", "", tool_calls=[CALL])
    assert read.learnt_messages == (1,)
    assert read.is_chat is False
    assert not has_empty_response(Record("f", fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "weather"}}]},
        {"tools": '[{"name": "weather"}]'},
        {"functions": [{"name": "weather"}]},
    ],
)
def test_tools_may_be_written_in_many_ways(fields: dict[str, Any]) -> None:
    read = parse_example(Record("f", {"messages": CHAT[1:3], **fields}))
    assert read.tools == [{"type": "function", "function": {"name": "weather"}}]
    assert read.is_chat  # tools have no place under headings


def test_fields_that_nothing_reads_are_named() -> None:
    message = say("assistant", "i", refusal="no", train=True)
    fields = {"messages": [say("user", "x", train=True, weight=0), message], "id": 7, "source": "", "output": "y"}
    read = parse_example(Record("f", fields))
    assert read.unread == ("id", "output", "messages.refusal", "messages.train of the role user")
    read = parse_example(Record("f", {"instruction": "x", "output": "y", "text": "x y", "train": False}))
    assert read.unread == ("text", "train")


def test_the_same_reasoning_under_two_names_is_read_once() -> None:
    message = say("assistant", "i", reasoning_content="a", reasoning="a", thinking="")
    assert parse_example(Record("f", {"messages": [*CHAT[:2], message]})).messages[2]["reasoning_content"] == "a"


def test_a_record_may_switch_all_of_its_responses_off() -> None:
    assert parse_example(Record("f", {"messages": [*CHAT[:2], say("assistant", "i", weight=0)]})).learnt_messages == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"input": "", "output": "x"},
            "f: the field 'instruction' is missing; the record has input, output; give every",
        ),
        ({"instruction": "x"}, "f: the field 'output' is missing"),
        ({"text": "x"}, "has text; give every record instruction and output, or messages with role and"),
        ({"instruction": "x", "output": " "}, "f: the field 'output' is empty"),
        ({"instruction": "x", "output": "y", "input": 3}, "f: the field 'input' must be a text, but it is 3"),
        ({"instruction": "x", "output": "y", "system": 3}, "f: the field 'system' must be a text"),
        ({"instruction": "x", "output": "y", "history": ["a"]}, "f: history must be a list of pairs"),
        ({"instruction": "x", "output": "y", "history": [["a", ""]]}, "f: history must be a list of pairs"),
        ({"instruction": "x", "output": "y", "history": "a"}, "f: history must be a list of pairs"),
        ({"messages": []}, "f: messages must be a list of objects"),
        ({"conversations": []}, "f: conversations must be a list of objects"),
        ({"messages": "hi"}, "f: messages must be a list of objects"),
        ({"messages": "[hi"}, "f: messages must be a list of objects"),
        ({"messages": ["hi"]}, "f, message 1: the field 'role' is missing"),
        ({"messages": [{"role": "user"}]}, "the record has role; give every message role and content"),
        ({"messages": [say("user", "x"), say("assistant", "")]}, "f, message 2: the field 'content' is empty"),
        ({"messages": [say("user", "x")]}, r"f: no message has the role assistant \(they have user\)"),
        (
            {"messages": [say("user", [{"type": "image_url"}])]},
            "message 1: the content has a part of the type 'image_url'",
        ),
        ({"messages": [say("user", {"a": 1})]}, "message 1: the field 'content' must be a text"),
        (
            {"messages": [*CHAT[:2], say("assistant", "i", weight=0.5)]},
            "message 3: weight is 0.5, but it must be 0 or false",
        ),
        ({"messages": [*CHAT[:2], say("assistant", "i", train="no")]}, "message 3: train is 'no', but it must be 0"),
        (
            {"messages": [*CHAT[:2], say("assistant", "i", thinking=["a"])]},
            "message 3: the field 'thinking' must be a text",
        ),
        ({"messages": [*CHAT[:2], say("assistant", "", tool_calls=[{}])]}, "message 3: a tool call must have a name"),
        (
            {"messages": [*CHAT[:2], say("assistant", "", tool_calls=[{"name": "a", "arguments": "{"}])]},
            "message 3: a tool call must have a name, and arguments that are an object",
        ),
        ({"messages": CHAT, "system": "be quick"}, "f: there is a field 'system' and a system message; keep one"),
        ({"messages": CHAT, "tools": [{"a": 1}]}, "f: tools must be a list of functions, each with a name"),
        ({"messages": CHAT, "tools": "weather"}, "f: tools must be a list of functions, each with a name"),
        (
            {"messages": CHAT, "tools": [{"name": "a"}], "functions": [{"name": "b"}]},
            "f: the fields tools and functions mean the same and differ; keep one",
        ),
        (
            {"messages": [*CHAT[:2], say("assistant", "i", reasoning_content="a", thinking="b")]},
            "message 3: the fields reasoning_content and thinking mean the same and differ",
        ),
        ({"messages": [*CHAT[:2], say("assistant", "i", value="j")]}, "message 3: the fields content and value mean"),
        (
            {"messages": [*CHAT[:2], say("assistant", "", tool_calls=[{"name": "a"}], function_call={"name": "b"})]},
            "message 3: the fields tool_calls and function_call mean the same and differ",
        ),
    ],
)
def test_malformed_records_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_example(Record("f", fields))


@pytest.mark.parametrize(
    ("fields", "empty"),
    [
        ({"output": ""}, True),
        ({"output": "x"}, False),
        ({}, False),  # a missing field is an error of its own
        ({"messages": [say("assistant", " ")]}, True),
        ({"messages": [say("assistant", None)]}, True),
        ({"messages": [say("user", " ")]}, False),
        ({"conversations": [{"from": "gpt", "value": ""}]}, True),
        ({"messages": "x"}, False),
        ({"messages": json.dumps([say("assistant", "")])}, True),  # as in a table
        ({"messages": [say("assistant", [{"type": "text", "text": " "}])]}, True),
        ({"messages": [say("assistant", [{"type": "text", "text": "x"}, {"type": "text", "text": ""}])]}, False),
        ({"messages": [say("assistant", [{"type": "image_url"}])]}, False),  # an error of its own
    ],
)
def test_empty_responses_are_known(fields: dict[str, Any], empty: bool) -> None:
    assert has_empty_response(Record("f", fields)) == empty


def test_only_more_than_one_exchange_is_a_chat() -> None:
    assert Example("f", CHAT).is_chat
    assert not Example("f", CHAT[1:3]).is_chat
    assert not parse_prompt("x").is_chat
    assert Example("f", CHAT[:2]).is_chat  # a system message has no place under headings


@pytest.mark.parametrize("role", ["model", "gpt", "bot", "chatgpt", "ai", "bing", "Bard", "GPT"])
def test_another_name_of_the_assistant_is_refused_not_left_unlearnt(role: str) -> None:
    chat = [say("user", "hi"), say(role, "i"), say("assistant", "e d")]
    with pytest.raises(DataError, match=f"the role '{role}' is not learnt, only that of 'assistant' is; rename it"):
        parse_example(Record("a.jsonl, line 1", {"messages": chat}))


@pytest.mark.parametrize(
    ("given", "role"),
    [("human", "user"), ("User", "user"), ("Assistant", "assistant"), (" SYSTEM", "system"), ("ipython", "ipython")],
)
def test_roles_are_read_whatever_their_letters(given: str, role: str) -> None:
    chat = [say(given, "a"), say("user", "b"), say("assistant", "c")]
    example = parse_example(Record("f", {"messages": chat}))
    assert example.messages == [say(role, "a"), *chat[1:]]
    assert example.learnt_messages == ((0, 2) if role == "assistant" else (2,))
    assert parse_prompt(Record("f", {"messages": chat})).messages == [say(role, "a"), chat[1]]


@pytest.mark.parametrize("role", [["assistant"], {"a": 1}, 3, None])
def test_a_role_that_is_no_text_is_refused_where_it_is_read(role: Any) -> None:
    record = Record("f", {"messages": [say("user", "a"), {"role": role, "content": "b"}, say("assistant", "c")]})
    assert not has_empty_response(record)
    with pytest.raises(DataError, match=r"f, message 2: the field 'role'"):
        parse_example(record)


def test_a_blank_response_is_one_whatever_its_letters() -> None:
    assert has_empty_response(Record("f", {"messages": [say("Assistant", " ")]}))
