"""Instructions become packed blocks in which only the responses are learnt; nothing is lost silently."""

import json
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lora_lightning.datamodules import InstructionDataModule
from lora_lightning.datamodules.instruction_format import plain_prompt
from lora_lightning.errors import ConfigurationError, DataError
from tests.conftest import TinyBackbone

CHATML = (
    "{% for m in messages %}<|endoftext|>{{ m.role }} {{ m.content }} <|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<|endoftext|>assistant {% endif %}"
)
END = 1


@pytest.fixture
def gpt2(tiny_backbone: TinyBackbone) -> str:
    return str(tiny_backbone("gpt2"))


@pytest.fixture
def chatty(tiny_backbone: TinyBackbone, tmp_path: Path) -> str:
    """A tiny GPT-2 whose tokenizer has a chat template."""
    folder = Path(shutil.copytree(tiny_backbone("gpt2"), tmp_path / "chatty"))
    (folder / "chat_template.jinja").write_text(CHATML)
    return str(folder)


def save_records(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


def instructions(count: int, words: int = 3) -> list[dict[str, str]]:
    return [
        {"instruction": f"w{n}", "input": "w7" if n % 2 else "", "output": " ".join([f"w{50 + n}"] * (1 + n % words))}
        for n in range(count)
    ]


def opened(module: InstructionDataModule, cache: Path) -> InstructionDataModule:
    module.cache_dir = str(cache)
    module.prepare_data()
    module.setup("fit")
    return module


def documents(module: InstructionDataModule, split: str) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of each packed document."""
    tokens = module.splits[split].split.tokens
    starts = np.flatnonzero(tokens["position_ids"] == 0)
    parts = zip(*(np.split(tokens[name], starts[1:]) for name in ("input_ids", "labels")), strict=True)
    return [(ids.tolist(), labels.tolist()) for ids, labels in parts]


@pytest.mark.parametrize("ending", ["jsonl", "json"])
def test_only_the_response_and_its_end_are_learnt(gpt2: str, tmp_path: Path, ending: str) -> None:
    records = instructions(20)
    path = tmp_path / f"a.{ending}"
    path.write_text(json.dumps(records) if ending == "json" else "\n".join(json.dumps(record) for record in records))
    module = InstructionDataModule(train_file=str(path), context_length=40, validation_share=0.25, backbone=gpt2)
    opened(module, tmp_path / "cache")
    learnt: Counter[str] = Counter()
    for split in ("train", "val"):
        for ids, labels in documents(module, split):
            assert labels[-1] == END
            learnt[module.tokenizer.decode([token for token in labels[:-1] if token != -100])] += 1
            kept = [place for place, label in enumerate(labels) if label != -100]
            assert kept == list(range(kept[0], len(labels)))  # the response is one stretch, to the end
            assert [labels[place] for place in kept[:-1]] == ids[kept[0] + 1 :]
    assert learnt == Counter(record["output"] for record in records)
    assert len(module.raw_splits["val"]) == 5
    assert module.split_names("test") == []


def test_blocks_hold_at_most_a_context_and_few_gaps(gpt2: str, tmp_path: Path) -> None:
    path = save_records(tmp_path / "a.jsonl", instructions(200, words=9))
    module = opened(InstructionDataModule(train_file=path, context_length=40, backbone=gpt2, batch_size=4), tmp_path)
    lengths = module.splits["train"].lengths
    assert lengths.max() <= 40
    assert lengths.sum() >= 0.9 * 40 * len(lengths)
    batch = next(iter(module.train_dataloader()))
    assert set(batch) >= {"input_ids", "labels", "position_ids", "attention_mask"}
    padded = batch["attention_mask"] == 0
    assert (batch["labels"][padded] == -100).all()
    assert (batch["position_ids"][padded] == 0).all()


def test_a_chat_learns_every_turn_of_the_assistant(chatty: str, tmp_path: Path) -> None:
    chat = [
        ("system", "w9"),
        ("user", "w1"),
        ("assistant", "w2 w3"),
        ("user", "w4"),
        ("assistant", "w5"),
        ("user", "w6"),
    ]
    records = [{"messages": [{"role": role, "content": content} for role, content in chat]}] * 2
    module = InstructionDataModule(
        train_file=save_records(tmp_path / "a.jsonl", records),
        validation_share=0.5,
        chat_template=True,
        context_length=40,
        backbone=chatty,
    )
    [(_, labels)] = documents(opened(module, tmp_path / "cache"), "train")
    learnt = module.tokenizer.convert_ids_to_tokens([label for label in labels if label != -100])
    assert learnt == ["w2", "w3", "<|endoftext|>", "w5", "<|endoftext|>"]


def test_instructions_may_use_the_chat_template_too(chatty: str, tmp_path: Path) -> None:
    path = save_records(tmp_path / "a.jsonl", [{"instruction": "w1", "input": "w2", "output": "w3"}] * 2)
    module = InstructionDataModule(
        train_file=path, validation_share=0.5, chat_template=True, context_length=40, backbone=chatty
    )
    [(ids, labels)] = documents(opened(module, tmp_path / "cache"), "train")
    assert module.tokenizer.decode(ids) == "<|endoftext|> <unk> w1 w2 <|endoftext|> <|endoftext|> <unk> w3"
    assert [label for label in labels if label != -100] == module.tokenizer("w3 <|endoftext|>")["input_ids"]


def long_and_short(tmp_path: Path) -> str:
    outputs = ["w5 " * 30] * 3 + ["w5"] * 4
    records = [{"instruction": "w1", "output": output.strip()} for output in outputs]
    return save_records(tmp_path / "a.jsonl", [*records, {"instruction": "w1 " * 60, "output": "w5"}])


@pytest.mark.parametrize(("how", "expected"), [("cut", (3, 1)), ("drop", (0, 4))])
def test_what_is_lost_of_long_examples_is_counted_each_time(
    gpt2: str, tmp_path: Path, how: Any, expected: tuple[int, int]
) -> None:
    path = long_and_short(tmp_path)
    for _ in range(2):  # the second time from the cache
        module = InstructionDataModule(
            train_file=path, validation_file=path, long_examples=how, context_length=20, backbone=gpt2
        )
        with pytest.warns(UserWarning, match="train: of 8 examples") as caught:
            opened(module, tmp_path / "cache")
        counted = [text for each in caught if "also in the training" not in (text := str(each.message))]
        assert f"{expected[0]} lost their end and {expected[1]} were dropped" in counted[0]
        assert [message.partition(":")[0] for message in counted] == ["train", "val"]
    lengths = [len(ids) for ids, _ in documents(module, "train")]
    assert len(lengths) == 8 - expected[1]
    assert (max(lengths) == 20) == (how == "cut")


@pytest.mark.parametrize(("how", "expected"), [("cut", (3, 1)), ("drop", (0, 4))])
def test_without_packing_every_example_has_a_row_and_losses_are_counted_too(
    gpt2: str, tmp_path: Path, how: Any, expected: tuple[int, int]
) -> None:
    path = long_and_short(tmp_path)
    files = {"train_file": path, "validation_file": path}
    rows: list[Any] = []
    for packing in (True, False):
        module = InstructionDataModule(**files, long_examples=how, packing=packing, context_length=20, backbone=gpt2)
        with pytest.warns(
            UserWarning, match=f"train: of 8 examples {expected[0]} lost .* and {expected[1]} were dropped"
        ):
            opened(module, tmp_path / "cache")
        dataset = module.splits["train"]
        rows.append(documents(module, "train") if packing else [])
    assert "position_ids" not in dataset[[0, 1]]
    assert len(dataset) == 8 - expected[1]
    split = dataset.split
    ends = np.cumsum(split.lengths)[:-1]
    parts = zip(*(np.split(split.tokens[name], ends) for name in ("input_ids", "labels")), strict=True)
    assert sorted((ids.tolist(), labels.tolist()) for ids, labels in parts) == sorted(rows[0])


def test_special_tokens_in_messages_are_counted_before_the_template_adds_its_own(chatty: str, tmp_path: Path) -> None:
    records = [{"instruction": "w1", "output": "w2"}] * 6
    records[0] = {"instruction": "w1 <|endoftext|> w3", "output": "w2"}
    records[1] = {"instruction": "w1", "output": "w2 <|endoftext|>"}
    (tmp_path / "prompts.txt").write_text("w1\nw2 <|endoftext|>\n")
    for chat_template in (True, False):
        module = InstructionDataModule(
            train_file=save_records(tmp_path / "a.jsonl", records),
            validation_file=save_records(tmp_path / "b.jsonl", records[2:]),
            predict_file=str(tmp_path / "prompts.txt"),
            chat_template=chat_template,
            context_length=40,
            backbone=chatty,
        )
        opened(module, tmp_path / "cache")
        (note,) = module.splits["train"].split.notes
        assert note.startswith("2 of 6 texts contain special tokens ('<|endoftext|>'), which the tokenizer reads as")
        assert module.splits["val"].split.notes == ()
        with pytest.warns(UserWarning, match=r"predict: 1 of 2 texts contain special tokens \('<\|endoftext\|>'\)"):
            module.setup("predict")


def test_nothing_is_said_where_nothing_is_lost(gpt2: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = save_records(tmp_path / "a.jsonl", instructions(20))
        opened(InstructionDataModule(train_file=path, context_length=40, backbone=gpt2), tmp_path)


def test_a_split_without_any_response_in_reach_is_refused(gpt2: str, tmp_path: Path) -> None:
    path = save_records(tmp_path / "a.jsonl", [{"instruction": "w1 " * 60, "output": "w5"}] * 4)
    module = InstructionDataModule(train_file=path, validation_share=0.5, context_length=20, backbone=gpt2)
    with pytest.raises(DataError, match=r"none of the \d examples of this split has a response within"):
        opened(module, tmp_path)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"instruction": "x"}', r"a\.jsonl, line 3: the field 'output' is missing"),
        ('{"instruction": "x", "output": " "}', r"a\.jsonl, line 3: the response is empty; .* data\.empty_responses"),
        ("{", r"a\.jsonl, line 3: not JSON"),
        (
            '{"messages": [{"role": "system", "content": "x"}, {"role": "assistant", "content": "y"}]}',
            r"a\.jsonl, line 3 is a chat, which needs the model's own format; set data\.chat_template: true",
        ),
    ],
)
def test_malformed_lines_are_named(gpt2: str, tmp_path: Path, record: str, message: str) -> None:
    lines = [json.dumps(row) for row in instructions(4)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines[:2], record, *lines[2:]]))
    with pytest.raises(DataError, match=message):
        _ = InstructionDataModule(train_file=str(tmp_path / "a.jsonl"), context_length=40, backbone=gpt2).raw_splits


def test_a_tokenizer_without_a_chat_template_names_the_remedies(gpt2: str, tmp_path: Path) -> None:
    path = save_records(tmp_path / "a.jsonl", instructions(4))
    module = InstructionDataModule(train_file=path, chat_template=True, context_length=40, backbone=gpt2)
    with pytest.raises(
        ConfigurationError, match=r"no chat template; set data\.chat_template: false, or use a backbone"
    ):
        _ = module.raw_splits


def test_other_missing_parts_are_named(gpt2: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"set data\.train_file or data\.dataset_name"):
        _ = InstructionDataModule(context_length=40, backbone=gpt2).raw_splits
    path = save_records(tmp_path / "a.jsonl", instructions(1))
    with pytest.raises(DataError, match=r"a\.jsonl has 1 examples, too few to hold out 0\.05 of them"):
        _ = InstructionDataModule(train_file=path, context_length=40, backbone=gpt2).raw_splits
    with pytest.raises(ConfigurationError, match="has only 40 positions"):
        _ = InstructionDataModule(train_file=path, context_length=41, backbone=gpt2).raw_splits


def test_the_template_is_part_of_the_caches_name(chatty: str, tmp_path: Path) -> None:
    path = save_records(tmp_path / "a.jsonl", instructions(20))
    names = set()
    for options in ({"chat_template": True}, {"chat_template": False}, {"long_examples": "drop"}):
        module = InstructionDataModule(train_file=path, context_length=40, backbone=chatty, **options)  # type: ignore[arg-type]
        names.add(module.cache_file)
    assert len(names) == 3


def test_the_end_of_text_is_part_of_the_caches_name(gpt2: str, tmp_path: Path) -> None:
    path = save_records(tmp_path / "a.jsonl", instructions(20))
    names = set()
    for end in ("<|endoftext|>", "<unk>"):  # Qwen's base and chat models differ in this alone
        module = InstructionDataModule(train_file=path, context_length=40, backbone=gpt2)
        module.tokenizer.eos_token = end
        names.add(module.cache_file)
    assert len(names) == 2


def test_a_prompt_that_the_template_refuses_is_named(chatty: str, tmp_path: Path) -> None:
    (Path(chatty) / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    (tmp_path / "p.jsonl").write_text('{"messages": [{"role": "system", "content": "w3"}]}\n')
    module = InstructionDataModule(predict_file=str(tmp_path / "p.jsonl"), chat_template=True, backbone=chatty)
    with pytest.raises(
        DataError, match=r"p\.jsonl, line 1: the chat template refuses .* the roles system \(no system role\)"
    ):
        module.setup("predict")


def test_prompts_end_where_the_response_begins(gpt2: str, chatty: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(
        '{"instruction": "w1", "input": "w2"}\n{"messages": [{"role": "user", "content": "w3"}]}\n'
    )
    for backbone, chat in ((gpt2, False), (chatty, True)):
        module = InstructionDataModule(predict_file=str(tmp_path / "p.jsonl"), chat_template=chat, backbone=backbone)
        module.setup("predict")
        assert module.prediction_inputs("predict") == [{"prompt": "w1\n\nw2"}, {"prompt": "w3"}]
        rendered = [prompt.text for prompt in module.prediction_splits["predict"]]
        if chat:
            assert rendered == [
                f"<|endoftext|>user {content} <|endoftext|><|endoftext|>assistant " for content in ("w1\n\nw2", "w3")
            ]
        else:
            assert rendered[0].endswith("### Input:\nw2\n\n### Response:\n")


@pytest.mark.shared
def test_real_instructions_are_packed_whole(gpt2: str, tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "text/alpaca/alpaca_data.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    module = InstructionDataModule(
        train_file=str(path), context_length=40, long_examples="drop", empty_responses="drop", backbone=gpt2
    )
    with pytest.warns(UserWarning, match="were left out|were dropped"):
        opened(module, tmp_path)
    answered = [record for record in records if record["output"].strip()]
    assert sum(len(rows) for rows in module.raw_splits.values()) == len(answered) < len(records)
    sizes = [
        [len(module.tokenizer(text)["input_ids"]) for text in (plain_prompt(r["instruction"], r["input"]), r["output"])]
        for r in answered
    ]
    fitting = [response + 1 for prompt, response in sizes if prompt + response <= 40]  # one more for the end of text
    packed = [labels for split in ("train", "val") for _, labels in documents(module, split)]
    assert len(packed) == len(fitting) > 100
    assert sum(label != -100 for labels in packed for label in labels) == sum(fitting)


def test_records_without_a_response_are_left_out_if_asked(gpt2: str, tmp_path: Path) -> None:
    rows = instructions(21)
    rows[2]["output"] = ""
    path = save_records(tmp_path / "a.jsonl", rows)
    module = InstructionDataModule(train_file=path, empty_responses="drop", context_length=40, backbone=gpt2)
    with pytest.warns(UserWarning, match="train: 1 of 21 records have no response, or a blank one among several"):
        assert sum(len(examples) for examples in module.raw_splits.values()) == 20


def test_a_null_response_in_a_column_of_another_name_is_one_that_is_missing(gpt2: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"q": row["instruction"], "a": row["output"]} for row in instructions(21)]
    rows[2]["a"] = None
    options: dict[str, Any] = {"columns": {"instruction": "q", "output": "a"}, "context_length": 40, "backbone": gpt2}
    options["train_file"] = save_records(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"line 3: 'a', the output by data\.columns, is missing or null; .*: drop"):
        _ = InstructionDataModule(**options).raw_splits
    with pytest.warns(UserWarning, match="train: 1 of 21 records have no response, or a blank one among several"):
        _ = InstructionDataModule(**options, empty_responses="drop").raw_splits


def test_a_chat_with_an_empty_turn_of_the_assistant_has_no_response(chatty: str, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    rows = [{"messages": turns}] * 20 + [{"messages": [*turns, turns[0], {"role": "assistant", "content": " "}]}]
    path = save_records(tmp_path / "a.jsonl", rows)
    options: dict[str, Any] = {"train_file": path, "chat_template": True, "context_length": 40, "backbone": chatty}
    with pytest.raises(DataError, match=r"a\.jsonl, line 21: the response is empty; .* data\.empty_responses: drop"):
        _ = InstructionDataModule(**options).raw_splits
    with pytest.warns(UserWarning, match="train: 1 of 21 records have no response, or a blank one among several"):
        _ = InstructionDataModule(**options, empty_responses="drop").raw_splits


def test_a_record_with_all_responses_switched_off_has_no_response(chatty: str, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    rows = [{"messages": turns}] * 20 + [{"messages": [turns[0], {**turns[1], "weight": 0}]}]
    path = save_records(tmp_path / "a.jsonl", rows)
    options: dict[str, Any] = {"train_file": path, "chat_template": True, "context_length": 40, "backbone": chatty}
    with pytest.raises(DataError, match=r"a\.jsonl, line 21: no response has a weight; .* data\.empty_responses: drop"):
        _ = InstructionDataModule(**options).raw_splits
    with pytest.warns(UserWarning, match="train: 1 of 21 records have no response, or a blank one among several"):
        _ = InstructionDataModule(**options, empty_responses="drop").raw_splits


@pytest.mark.parametrize("chat", [True, False])
def test_fields_that_nothing_reads_are_named_once_with_their_count(
    gpt2: str, chatty: str, tmp_path: Path, chat: bool
) -> None:
    rows: list[dict[str, Any]] = [{**row, "id": n} for n, row in enumerate(instructions(20))]
    rows[3]["text"] = "w9"
    path = save_records(tmp_path / "a.jsonl", rows)
    module = InstructionDataModule(
        train_file=path,
        validation_file=path,
        predict_file=path,
        chat_template=chat,
        context_length=40,
        backbone=chatty if chat else gpt2,
    )
    with pytest.warns(UserWarning, match="these fields are not read") as caught:
        opened(module, tmp_path)
    start = "these fields are not read, so the model does not see them: "
    fields = f"{start}id ({{0}} of {{0}} records), text ({{1}} of {{0}} records)."
    assert str(caught[0].message) == fields.format(40, 2)
    assert "also in the training data" in str(caught[1].message)
    assert len(caught) == 2
    with pytest.warns(UserWarning, match="these fields are not read") as caught:
        module.setup("predict")
    assert [str(warning.message) for warning in caught] == [fields.format(20, 1)]


def test_a_template_without_a_place_for_tools_is_named(chatty: str, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2", "reasoning_content": "w3"}]
    path = save_records(tmp_path / "a.jsonl", [{"messages": turns, "tools": [{"name": "f"}]}] * 20)
    module = InstructionDataModule(train_file=path, chat_template=True, context_length=40, backbone=chatty)
    with pytest.warns(
        UserWarning, match=r"messages\.reasoning_content \(20 of 20 records\), tools \(20 of 20 records\)"
    ):
        opened(module, tmp_path)


def test_a_message_that_the_template_leaves_out_is_refused_before_anything_is_tokenized(
    chatty: str, tmp_path: Path
) -> None:
    template = CHATML.replace("{{ m.content }}", "{{ m.content if m.role != 'system' }}")
    (Path(chatty) / "chat_template.jinja").write_text(template)
    rows = [{"instruction": "w1", "output": "w2"}] * 20 + [{"instruction": "w1", "output": "w2", "system": "w3"}]
    path = save_records(tmp_path / "a.jsonl", rows)
    module = InstructionDataModule(
        train_file=path, predict_file=path, chat_template=True, context_length=40, backbone=chatty
    )
    message = r"a\.jsonl, line 21: the chat template leaves out the content of message 1 \(role system\)"
    with pytest.raises(DataError, match=message):
        _ = module.raw_splits
    with pytest.raises(DataError, match=message):
        module.setup("predict")


def test_a_file_without_any_response_is_refused(gpt2: str, tmp_path: Path) -> None:
    path = save_records(tmp_path / "a.jsonl", instructions(20))
    empty = save_records(tmp_path / "b.jsonl", [{"instruction": "w1", "output": ""}] * 2)
    module = InstructionDataModule(
        train_file=path, validation_file=empty, empty_responses="drop", context_length=40, backbone=gpt2
    )
    with pytest.raises(DataError, match=r"b\.jsonl, line 1: none of the 2 records of this split has a response"):
        _ = module.raw_splits


def test_an_evaluation_file_beside_a_data_set_of_the_hub_is_refused(gpt2: str) -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"data\.validation_file is 'v\.jsonl', but it is read only together with data\.train_file",
    ):
        InstructionDataModule(dataset_name="no/such", validation_file="v.jsonl", backbone=gpt2)


def test_roles_that_are_never_learnt_are_counted(chatty: str, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "ipython", "content": f"w{n}"}, {"role": "assistant", "content": f"w{n}"}]}
        for n in range(20)
    ]
    path = save_records(tmp_path / "a.jsonl", rows)
    module = InstructionDataModule(train_file=path, chat_template=True, context_length=40, backbone=chatty)
    with pytest.warns(UserWarning, match=r"written as they are and never learnt: 'ipython' \(20 messages\)"):
        _ = module.raw_splits


def test_records_of_training_that_are_evaluated_are_counted(gpt2: str, tmp_path: Path) -> None:
    path = save_records(tmp_path / "a.jsonl", instructions(20))
    module = InstructionDataModule(path, path, path, context_length=40, backbone=gpt2)
    with pytest.warns(UserWarning, match="also in the training data") as said:
        _ = module.raw_splits
    assert [str(each.message).partition(", such as")[0] for each in said] == [
        f"20 of 20 rows of the {split} split are also in the training data" for split in ("val", "test")
    ]
    assert module.fingerprint["train"] == module.fingerprint["val"] == module.fingerprint["test"]


def test_records_that_occur_twice_are_counted_if_one_is_held_out(gpt2: str, tmp_path: Path) -> None:
    path = save_records(tmp_path / "a.jsonl", instructions(10) * 2)
    module = InstructionDataModule(path, validation_share=0.5, context_length=40, backbone=gpt2)
    with pytest.warns(UserWarning, match=r"\d of 10 rows of the val split are also in the training data"):
        _ = module.raw_splits
