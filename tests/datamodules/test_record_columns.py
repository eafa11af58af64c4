"""Records with other people's names for their fields are read with `columns`, which the error without it names."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_lightning.datamodules import InstructionDataModule
from lora_lightning.datamodules.chat_records import Example, parse_example, parse_prompt
from lora_lightning.datamodules.record_columns import check_columns, rename_fields
from lora_lightning.datamodules.records import Record
from lora_lightning.errors import ConfigurationError, DataError
from tests.conftest import TinyBackbone

ASKED, SAID = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "prompt and completion": ({"prompt": "q", "completion": "a"}, {"instruction": "prompt", "output": "completion"}),
    "prompt and completion, chats": (
        {"prompt": [ASKED], "completion": [SAID]},
        {"messages": ["prompt", "completion"]},
    ),
    "chats as JSON text": (
        {"prompt": json.dumps([ASKED]), "completion": json.dumps([SAID])},
        {"messages": ["prompt", "completion"]},
    ),
    "DPO": ({"prompt": "q", "chosen": "a", "rejected": "b"}, {"instruction": "prompt", "output": "chosen"}),
    "DPO, chats": ({"chosen": [ASKED, SAID], "rejected": [ASKED, ASKED]}, {"messages": "chosen"}),
    "DPO, chats with their prompt": (
        {"prompt": [ASKED], "chosen": [SAID], "rejected": [ASKED]},
        {"messages": ["prompt", "chosen"]},
    ),
    "questions": ({"question": "q", "answer": "a"}, {"instruction": "question", "output": "answer"}),
    "input and output": ({"input": "q", "output": "a"}, {"instruction": "input"}),
    "chats under another name": ({"dialogue": [ASKED, SAID]}, {"messages": "dialogue"}),
}
OTHER_KEYS = {"turns": [{"speaker": "user", "text": "q"}, {"speaker": "assistant", "text": "a"}]}


def content(example: Example) -> list[tuple[str, Any]]:
    return [(message["role"], message["content"]) for message in example.messages]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_give_fields_our_names(layout: str) -> None:
    fields, columns = LAYOUTS[layout]
    check_columns(columns)
    (renamed,) = rename_fields([Record("f", fields)], columns)
    example = parse_example(renamed)
    assert content(example) == [("user", "q"), ("assistant", "a")]
    assert example.learnt_messages == (1,)
    assert set(example.unread) == {"rejected"} & fields.keys()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_error_without_columns_names_the_option_that_helps(layout: str) -> None:
    fields, columns = LAYOUTS[layout]
    with pytest.raises(DataError) as caught:
        parse_example(Record("f, line 1", fields))
    found = re.search(r"--data\.columns '(\{.*\})'", str(caught.value))
    assert found is not None
    assert yaml.safe_load(found[1]) == columns


def test_unknown_layouts_get_an_example_of_the_option() -> None:
    with pytest.raises(DataError, match=r"--data\.columns '\{instruction: prompt, output: completion\}'"):
        parse_example(Record("f", {"text": "x"}))
    with pytest.raises(DataError, match=r"--data\.columns '\{role: speaker, content: text\}'"):
        parse_example(Record("f", {"messages": OTHER_KEYS["turns"]}))


def test_fields_of_messages_are_renamed_too() -> None:
    columns: dict[str, str | list[str]] = {"messages": "turns", "role": "speaker", "content": "text"}
    check_columns(columns)
    (renamed,) = rename_fields([Record("f", OTHER_KEYS)], columns)
    assert content(parse_example(renamed)) == [("user", "q"), ("assistant", "a")]


def test_fields_may_change_places() -> None:
    (renamed,) = rename_fields(
        [Record("f", {"instruction": "a", "output": "q"})], {"instruction": "output", "output": "instruction"}
    )
    assert renamed.fields == {"instruction": "q", "output": "a"}


def test_a_field_that_some_records_lack_is_left_out() -> None:
    records = [Record("f, line 1", {"q": "x", "hint": "y"}), Record("f, line 2", {"q": "x"})]
    renamed = rename_fields(records, {"instruction": "q", "input": "hint"})
    assert [record.fields for record in renamed] == [{"instruction": "x", "input": "y"}, {"instruction": "x"}]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"instrution": "prompt"}, r"has the field 'instrution'; did you mean 'instruction'"),
        ({"output": ["a", "b"]}, "only `messages` may be several columns"),
        ({"instruction": "a", "output": "a"}, "names the column 'a' for two fields"),
        ({"instruction": ""}, "names the column '' for two fields, or for none"),
    ],
)
def test_wrong_columns_are_refused_before_any_data_is_read(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        InstructionDataModule(train_file="nowhere.jsonl", columns=columns)


@pytest.mark.parametrize(
    ("fields", "columns", "message"),
    [
        ({"prompt": "q"}, {"output": "completion"}, "names 'completion', which no record has; there are prompt"),
        ({"messages": [ASKED]}, {"role": "speaker"}, "names 'speaker' for messages, but no message has it"),
        ({"messages": [{**ASKED, "speaker": "x"}]}, {"role": "speaker"}, "message 1: it has both 'speaker' and 'role'"),
        ({"q": "x", "a": "y", "messages": [ASKED]}, {"instruction": "q", "output": "a"}, "the record has messages too"),
        ({"prompt": [ASKED], "chosen": [ASKED, SAID]}, {"messages": ["prompt", "chosen"]}, "'chosen' begins with the"),
        ({"prompt": "q", "instruction": "q"}, {"instruction": "prompt"}, "the record has both; keep one"),
        (
            {"prompt": "q", "chosen": [SAID]},
            {"messages": ["prompt", "chosen"]},
            "'prompt' a part of messages, but it is",
        ),
    ],
)
def test_columns_that_do_not_fit_are_named(fields: dict[str, Any], columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        rename_fields([Record("f, line 1", fields)], columns)


def test_a_chat_without_one_of_its_parts_is_refused_but_not_a_prompt() -> None:
    records = [Record("f, line 1", {"prompt": [ASKED], "chosen": [SAID]}), Record("f, line 2", {"prompt": [ASKED]})]
    columns: dict[str, str | list[str]] = {"messages": ["prompt", "chosen"]}
    with pytest.raises(DataError, match="line 2: 'chosen', a part of messages"):
        rename_fields(records, columns)
    assert rename_fields(records[1:], columns, are_prompts=True)[0].fields == {"messages": [ASKED]}


def test_a_field_beside_messages_keeps_its_name() -> None:
    turns = [{"role": "user", "text": "q"}, {"role": "assistant", "text": "a"}]
    (renamed,) = rename_fields([Record("f", {"messages": turns, "text": "x"})], {"content": "text"})
    assert parse_example(renamed).unread == ("text",)


def test_a_mapped_instruction_comes_before_a_field_named_prompt() -> None:
    record = Record("f", {"question": "q", "prompt": "x"})
    (renamed,) = rename_fields([record], {"instruction": "question"}, are_prompts=True)
    example = parse_prompt(renamed)
    assert content(example) == [("user", "q")]
    assert example.unread == ("prompt",)


def test_a_response_that_repeats_its_prompt_is_the_whole_chat() -> None:
    with pytest.raises(DataError, match=r"'\{messages: chosen\}'"):
        parse_example(Record("f", {"prompt": [ASKED], "chosen": [ASKED, SAID]}))


def test_training_and_prediction_read_the_same_columns(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    rows = [{"question": f"w{n}", "answer": f"w{n + 50}"} for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "prompts.jsonl").write_text('{"question": "w1"}')
    module = InstructionDataModule(
        train_file=str(tmp_path / "rows.jsonl"),
        predict_file=str(tmp_path / "prompts.jsonl"),
        columns={"instruction": "question", "output": "answer"},
        validation_share=0.25,
        context_length=40,
        backbone=str(tiny_backbone("gpt2")),
    )
    splits = module.read_splits()
    assert sum(map(len, splits.values())) == len(rows)
    assert {content(example)[1][1] for examples in splits.values() for example in examples} == {
        row["answer"] for row in rows
    }
    (prompt,) = module.load_prediction_splits()["predict"]
    assert prompt.shown == "w1"


@pytest.mark.parametrize("fields", [{"instruction": "hi"}, {"messages": [{"role": "user", "content": "hi"}]}])
def test_a_prompt_need_not_have_the_columns_of_messages(fields: dict[str, Any]) -> None:
    columns: dict[str, str | list[str]] = {"messages": "turns", "role": "speaker", "content": "text"}
    [renamed] = rename_fields([Record("p", fields)], columns, are_prompts=True)
    assert renamed.fields == fields
