"""Plain text becomes blocks without losing a token; wrong files and contexts are named."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from lora_lightning.datamodules import PlainTextDataModule
from lora_lightning.errors import ConfigurationError, DataError
from tests.conftest import TinyBackbone

END = 1  # <|endoftext|> of the tiny decoders


@pytest.fixture
def gpt2(tiny_backbone: TinyBackbone) -> str:
    return str(tiny_backbone("gpt2"))


def save_wikitext(folder: Path, ending: str = "raw", lines: int = 30) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(("train", "valid", "test")):
        text = "\n".join(
            " ".join(f"w{(line * 7 + place + number) % 190}" for place in range(5)) for line in range(lines)
        )
        (folder / f"wiki.{name}.{ending}").write_text(text + "\n")
    return folder


def open_all(module: PlainTextDataModule, cache: Path) -> PlainTextDataModule:
    module.cache_dir = str(cache)
    module.prepare_data()
    module.setup("fit")
    if module.split_names("test"):
        module.setup("test")
    return module


def stream(module: PlainTextDataModule, split: str) -> list[int]:
    """The tokens of a split, from its blocks."""
    tokens = module.splits[split].split.tokens
    return [int(tokens["input_ids"][0]), *tokens["labels"].tolist()]


@pytest.mark.parametrize("ending", ["raw", "tokens"])
def test_wikitext_is_one_stream_a_split(gpt2: str, tmp_path: Path, ending: str) -> None:
    folder = save_wikitext(tmp_path / "wikitext", ending)
    module = open_all(PlainTextDataModule(data_dir=str(folder), context_length=32, backbone=gpt2), tmp_path)
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        text = (folder / f"wiki.{name}.{ending}").read_text()
        assert stream(module, split) == module.tokenizer(text)["input_ids"]
        lengths = module.splits[split].lengths
        assert set(lengths[:-1]) == {32}
        assert len(lengths) == -(-(len(stream(module, split)) - 1) // 32)


def test_every_label_of_a_batch_is_the_next_token(gpt2: str, tmp_path: Path) -> None:
    folder = save_wikitext(tmp_path / "wikitext")
    module = open_all(
        PlainTextDataModule(data_dir=str(folder), context_length=32, backbone=gpt2, batch_size=2), tmp_path
    )
    seen = 0
    for batch in module.train_dataloader():
        assert (batch["labels"][:, :-1] == batch["input_ids"][:, 1:])[batch["attention_mask"][:, 1:] == 1].all()
        assert ((batch["labels"] == -100) == (batch["attention_mask"] == 0)).all()
        seen += int((batch["labels"] != -100).sum())
    assert seen == len(stream(module, "train")) - 1


def test_documents_of_json_lines_end_with_the_end_of_text(gpt2: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"body": f"w{n} w{n + 1}"}) for n in range(20)))
    module = PlainTextDataModule(
        train_file=str(tmp_path / "a.jsonl"), text_column="body", context_length=8, backbone=gpt2, validation_share=0.2
    )
    open_all(module, tmp_path / "cache")
    documents = []
    for split in ("train", "val"):
        tokens = stream(module, split)
        assert tokens[2::3] == [END] * (len(tokens) // 3)
        documents += [tuple(tokens[start : start + 2]) for start in range(0, len(tokens), 3)]
    assert len(stream(module, "val")) == 4 * 3
    assert len(set(documents)) == 20
    assert module.split_names("test") == []


def test_records_with_their_ending_in_capitals_are_no_plain_text(gpt2: str, tmp_path: Path) -> None:
    (tmp_path / "A.JSONL").write_text('{"text": "w1", "prompt": "w2"}\n' * 30)
    path = str(tmp_path / "A.JSONL")
    module = PlainTextDataModule(train_file=path, predict_file=path, context_length=8, backbone=gpt2)
    assert set(module.raw_splits["train"].texts) == {"w1"}
    assert {prompt.text for prompt in module.load_prediction_splits()["predict"]} == {"w2"}


def test_the_seed_chooses_the_held_out_documents(gpt2: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": f"w{n}"}) for n in range(50)))
    held_out = [
        PlainTextDataModule(train_file=str(tmp_path / "a.jsonl"), split_seed=seed, backbone=gpt2, context_length=8)
        .raw_splits["val"]
        .texts
        for seed in (0, 0, 1)
    ]
    assert held_out[0] == held_out[1] != held_out[2]


def test_the_end_of_a_single_text_is_held_out(gpt2: str, tmp_path: Path) -> None:
    lines = [f"w{n} w{n}\n" for n in range(20)]
    (tmp_path / "a.txt").write_text("".join(lines))
    module = PlainTextDataModule(
        train_file=str(tmp_path / "a.txt"), validation_share=0.25, backbone=gpt2, context_length=8
    )
    assert module.raw_splits["train"].texts == ["".join(lines[:15])]
    assert module.raw_splits["val"].texts == ["".join(lines[15:])]


def test_rows_of_the_hubs_wikitext_are_lines_of_one_text(
    gpt2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets  # noqa: PLC0415

    rows = ["", " = w1 = \n", "", " w2 w3 \n"]
    part = datasets.Dataset.from_list([{"text": row} for row in rows])
    monkeypatch.setattr("datasets.load_dataset", lambda *_args, **_kw: {"train": part, "validation": part})
    options = {"dataset_name": "a/b", "dataset_config_name": "c", "backbone": gpt2, "context_length": 8}
    lines = PlainTextDataModule(**options, rows_are_lines=True)  # type: ignore[arg-type]
    assert lines.raw_splits["train"].texts == [" \n = w1 = \n \n w2 w3 \n"]  # as wiki.train.raw has it
    with pytest.raises(DataError, match="a/b, train, row 1: the field 'text' is empty"):
        _ = PlainTextDataModule(**options).raw_splits  # type: ignore[arg-type]
    with pytest.raises(
        DataError,
        match=r"the field 'body' is missing; the record has text; name the field of texts with --data\.text_c",
    ):
        _ = PlainTextDataModule(**options, rows_are_lines=True, text_column="body").raw_splits  # type: ignore[arg-type]


def test_a_tokenizer_with_a_begin_of_text_token_puts_it_before_every_document(tmp_path: Path, gpt2: str) -> None:
    from tokenizers.processors import TemplateProcessing  # noqa: PLC0415

    tokenizer = PreTrainedTokenizerFast.from_pretrained(gpt2)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<unk> $A", special_tokens=[("<unk>", 0)])
    tokenizer.bos_token = tokenizer.pad_token = tokenizer.unk_token
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": f"w{n}"}) for n in (5, 6, 7)))
    module = PlainTextDataModule(
        train_file=str(tmp_path / "a.jsonl"), validation_share=0.4, backbone=gpt2, context_length=8
    )
    module.__dict__["tokenizer"] = tokenizer
    open_all(module, tmp_path / "cache")
    assert stream(module, "train")[::3] == [0] * (len(stream(module, "train")) // 3)
    prompts = module.prompts(["w5 w6", "w7"])
    assert prompts[[0, 1]]["input_ids"].tolist()[0] == [0, 7, 8]


@pytest.mark.parametrize("spelling", ["json", "jsonl"])
def test_documents_longer_than_the_context_are_counted_once_a_split(gpt2: str, tmp_path: Path, spelling: str) -> None:
    lengths = (8, 9, 2, 40, 7, 3)  # of 8 tokens one has all of its text in one context
    path = tmp_path / f"a.{spelling}"
    records = [{"text": "w5 " * length} for length in lengths]
    path.write_text(json.dumps(records) if spelling == "json" else "\n".join(map(json.dumps, records)))
    for _ in range(2):  # the second time from the cache
        files = {"train_file": str(path), "validation_file": str(path), "test_file": str(path)}
        module = PlainTextDataModule(**files, context_length=8, backbone=gpt2)
        with pytest.warns(UserWarning, match="2 of 6 documents are longer than data") as caught:
            open_all(module, tmp_path / "cache")
        counted = [text for each in caught if "also in the training" not in (text := str(each.message))]
        assert [message.partition(":")[0] for message in counted] == ["train", "val", "test"]
        assert len(stream(module, "train")) == sum(lengths) + len(lengths)  # nothing is cut


def test_a_single_text_is_no_long_document(gpt2: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_all(PlainTextDataModule(data_dir=str(save_wikitext(tmp_path)), context_length=8, backbone=gpt2), tmp_path)


def test_prompts_longer_than_the_context_are_counted(gpt2: str, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("w1 w2\nw1 w2 w3\nw1 w2 w3 w4\n")
    module = PlainTextDataModule(predict_file=str(tmp_path / "p.txt"), backbone=gpt2, context_length=2)
    with pytest.warns(
        UserWarning, match=r"predict: 2 of 3 prompts have more tokens than data\.context_length 2"
    ) as seen:
        module.setup("predict")
    assert len(seen) == 1


def test_a_context_beyond_the_models_positions_is_refused(gpt2: str, tmp_path: Path) -> None:
    folder = save_wikitext(tmp_path)
    PlainTextDataModule(data_dir=str(folder), context_length=40, backbone=gpt2).load_splits()
    with pytest.raises(ConfigurationError, match=r"data\.context_length is 41, but .*gpt2 has only 40 positions"):
        PlainTextDataModule(data_dir=str(folder), context_length=41, backbone=gpt2).load_splits()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"context_length": 1}, ConfigurationError, "at least 2 tokens"),
        ({"validation_share": 1.0}, ConfigurationError, r"\(0, 1\)"),
        ({"split_seed": -1}, ConfigurationError, "data.split_seed is -1"),
        ({}, ConfigurationError, "no text was given: set data.data_dir"),
        (
            {"validation_file": "v.txt"},
            ConfigurationError,
            r"data\.validation_file is 'v\.txt', but it is read only together",
        ),
        (
            {"dataset_name": "no/such", "test_file": "t.txt"},
            ConfigurationError,
            r"data\.test_file is 't\.txt', but it is read",
        ),
        ({"data_dir": "d", "train_file": "t"}, ConfigurationError, "is 'd' and data.train_file 't'; leave out one"),
        ({"data_dir": "{folder}"}, DataError, r"wiki\.train\.raw is missing; the folder has empty\.txt"),
        ({"data_dir": "{folder}/none"}, DataError, r"wiki\.train\.raw is missing; there is no such folder"),
        ({"train_file": "{folder}/none.txt"}, DataError, "cannot be read"),
        ({"train_file": "{folder}/empty.txt"}, DataError, "is empty"),
        ({"train_file": "{folder}/line.txt"}, DataError, r"line\.txt has 1 lines, too few to hold out 0\.05"),
        ({"dataset_name": "no/such"}, DataError, "could not be downloaded"),
    ],
)
def test_wrong_options_and_files_are_refused(
    gpt2: str, tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "line.txt").write_text("w1 w2 w3")
    filled = {
        name: value.format(folder=tmp_path) if isinstance(value, str) else value for name, value in options.items()
    }
    with pytest.raises(error, match=message):
        _ = PlainTextDataModule(**{"context_length": 8, **filled}, backbone=gpt2).raw_splits


def test_what_ends_a_document_is_part_of_the_caches_name(gpt2: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "w1 w2"}\n' * 30)
    names = set()
    for end in ("<|endoftext|>", "<unk>"):  # Qwen's base and chat models differ in this alone
        module = PlainTextDataModule(train_file=str(tmp_path / "a.jsonl"), context_length=8, backbone=gpt2)
        module.tokenizer.eos_token = end
        names.add(module.cache_file)
    assert len(names) == 2


def test_a_split_of_one_token_is_refused(gpt2: str, tmp_path: Path) -> None:
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_text("w1" if name == "val" else "w1 w2 w3")
    module = PlainTextDataModule(
        train_file=str(tmp_path / "train.txt"),
        validation_file=str(tmp_path / "val.txt"),
        context_length=8,
        backbone=gpt2,
    )
    with pytest.raises(DataError, match=r"val\.txt has fewer than 2 tokens"):
        open_all(module, tmp_path)


def test_prompts_keep_their_order_and_their_text(gpt2: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "w1 w2"}\n{"prompt": "w3\\nw4"}\n')
    module = PlainTextDataModule(predict_file=str(tmp_path / "p.jsonl"), backbone=gpt2, data_dir="/nowhere")
    module.setup("predict")
    assert module.prediction_inputs("predict") == [{"prompt": "w1 w2"}, {"prompt": "w3\nw4"}]
    batch = module.splits["predict"][[1, 0]]
    assert batch["input_ids"].tolist() == [module.tokenizer(text)["input_ids"] for text in ("w3\nw4", "w1 w2")]


def test_a_prompt_file_without_a_prompt_is_named(gpt2: str, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"text": "w1 w2"}\n')
    with pytest.raises(DataError, match=r"p\.jsonl, line 1: the field 'prompt' is missing"):
        PlainTextDataModule(predict_file=str(tmp_path / "p.jsonl"), backbone=gpt2).setup("predict")


@pytest.mark.shared
def test_rows_of_the_hubs_wikitext_are_the_real_file(
    gpt2: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets  # noqa: PLC0415

    text = (shared_data / "text/wikitext-2-raw/wiki.valid.raw").read_text(encoding="utf-8")
    rows = [f"{line}\n" if line.strip() else "" for line in text.removesuffix("\n").split("\n")]  # as the hub's is made
    part = datasets.Dataset.from_list([{"text": row} for row in rows])
    monkeypatch.setattr("datasets.load_dataset", lambda *_args, **_kw: {"train": part, "validation": part})
    module = PlainTextDataModule(
        dataset_name="Salesforce/wikitext", rows_are_lines=True, backbone=gpt2, context_length=8
    )
    assert module.raw_splits["val"].texts == [text]


@pytest.mark.shared
def test_real_wikitext_loses_no_token(gpt2: str, tmp_path: Path, shared_data: Path) -> None:
    module = PlainTextDataModule(data_dir=str(shared_data / "text/wikitext-2-raw"), context_length=40, backbone=gpt2)
    open_all(module, tmp_path)
    text = (shared_data / "text/wikitext-2-raw/wiki.valid.raw").read_text(encoding="utf-8")
    assert np.array_equal(stream(module, "val"), module.tokenizer(text)["input_ids"])


def test_documents_of_training_that_are_evaluated_are_counted(gpt2: str, tmp_path: Path) -> None:
    train, other, copy = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "copy.jsonl"
    train.write_text("".join(json.dumps({"text": f"w{number}"}) + "\n" for number in range(5)))
    other.write_text("".join(json.dumps({"text": f"w{number}"}) + "\n" for number in range(4, 8)))
    copy.write_bytes(other.read_bytes())
    files = {"train_file": str(train), "validation_file": str(other), "test_file": str(copy)}
    module = PlainTextDataModule(**files, context_length=32, backbone=gpt2)  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="1 of 4 rows of the val split are also in the training data, such as 'w4'"):
        _ = module.raw_splits
    assert module.fingerprint["val"] == module.fingerprint["test"] != module.fingerprint["train"]
