"""Tokenise once and cache; read queries from a file or standard input."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from lora_lightning.datamodules import base
from lora_lightning.datamodules.base import Rows, TextDataModule, check_texts, read_queries
from lora_lightning.errors import ConfigurationError, DataError
from lora_lightning.metrics.label_space import LabelSpace
from tests.datamodules.conftest import WORDS, save_tokenizer

ROWS = {
    "train": Rows(["play some jazz", "what is my balance please"], [0, 1]),
    "val": Rows(["hi"], [1]),
    "test": Rows(["book a flight to rome for two people please"], [0]),
}


class TinyDataModule(TextDataModule):
    """Four rows and two labels, to be changed by a test."""

    def __init__(
        self, rows: dict[str, Rows] = ROWS, names: tuple[str, ...] = ("music", "bank"), **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.rows = rows
        self.names = names

    def load_rows(self) -> dict[str, Rows]:
        return self.rows

    @property
    def label_space(self) -> LabelSpace:
        return LabelSpace(list(self.names), None, False, {})


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


@pytest.fixture
def settings(backbone: str, cache_dir: Path) -> dict[str, Any]:
    return {"backbone": backbone, "cache_dir": str(cache_dir)}


def started(**settings: Any) -> TinyDataModule:
    module = TinyDataModule(**settings)
    module.prepare_data()
    module.setup("fit")
    module.setup("test")
    return module


def test_second_start_reads_the_cache_and_does_not_tokenise(
    settings: dict[str, Any], cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = started(**settings)

    def tokenise(*_: Any) -> None:
        pytest.fail("tokenised again")

    monkeypatch.setattr(TextDataModule, "_tokenize", tokenise)
    second = started(**settings)
    assert len(list(cache_dir.iterdir())) == 1
    for split, rows in ROWS.items():
        every = range(len(rows.texts))
        batch, again = first.splits[split][every], second.splits[split][every]
        assert all(batch[name].equal(again[name]) for name in batch)
        assert batch["labels"].tolist() == rows.labels


def test_token_ids_are_the_tokenizers(settings: dict[str, Any]) -> None:
    module = started(**settings)
    batch = module.splits["train"][[0, 1]]
    ids = [[2, *(4 + WORDS.index(word) for word in text.split()), 3] for text in ROWS["train"].texts]
    assert batch["input_ids"].tolist() == [ids[0] + [0] * 2, ids[1]]
    assert batch["attention_mask"].tolist() == [[1] * 5 + [0] * 2, [1] * 7]


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 5},
        {"names": ("music", "banking")},
        {"rows": ROWS | {"val": Rows(["hello"], [1])}},
        {"rows": ROWS | {"val": Rows(["hi"], [0])}},
        {"rows": ROWS | {"train": Rows(ROWS["train"].texts[::-1], ROWS["train"].labels[::-1])}},
    ],
    ids=["max_length", "label name", "text", "label", "order"],
)
def test_whatever_decides_the_ids_and_labels_names_another_cache(
    settings: dict[str, Any], change: dict[str, Any]
) -> None:
    assert TinyDataModule(**settings)._cache_file() == TinyDataModule(**settings)._cache_file()
    assert TinyDataModule(**settings)._cache_file() != TinyDataModule(**(settings | change))._cache_file()


def test_another_tokenizer_names_another_cache(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = TinyDataModule(**settings)._cache_file()
    same = save_tokenizer(tmp_path / "moved")
    assert TinyDataModule(**(settings | {"backbone": same}))._cache_file() == plain
    others = [
        save_tokenizer(tmp_path / "words", WORDS[::-1]),
        save_tokenizer(tmp_path / "side", truncation_side="left"),
    ]
    assert all(TinyDataModule(**(settings | {"backbone": other}))._cache_file() != plain for other in others)


def test_a_call_that_sets_truncation_or_padding_does_not_rename_the_cache(settings: dict[str, Any]) -> None:
    module = TinyDataModule(**settings)
    before = module._cache_file()
    module.tokenizer(["play some jazz"], truncation=True, max_length=4, padding="max_length")
    assert module.tokenizer.backend_tokenizer.truncation  # the state did change
    assert module._cache_file() == before


@pytest.mark.parametrize("crash", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_crash_while_writing_leaves_nothing_behind(
    settings: dict[str, Any], cache_dir: Path, monkeypatch: pytest.MonkeyPatch, crash: BaseException
) -> None:
    def write_half(tensors: dict[str, Any], path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise crash

    with monkeypatch.context() as patch:
        patch.setattr(base, "save_file", write_half)
        with pytest.raises(DataError if isinstance(crash, OSError) else KeyboardInterrupt):
            TinyDataModule(**settings).prepare_data()
    assert list(cache_dir.iterdir()) == []
    assert len(started(**settings).splits["train"]) == 2


def test_a_cache_folder_that_cannot_be_made_is_an_error_with_a_remedy(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    module = TinyDataModule(**(settings | {"cache_dir": str(tmp_path / "file")}))
    with pytest.raises(DataError, match=r"cannot be kept in .*file .*; set --data\.cache_dir"):
        module.prepare_data()


def test_default_cache_is_in_the_users_cache_folder(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert TinyDataModule(backbone=backbone)._cache_file().parent == tmp_path / "xdg" / "lora_lightning"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # by its specification the same as unset
    assert TinyDataModule(backbone=backbone)._cache_file().parent == tmp_path / ".cache" / "lora_lightning"


@pytest.mark.parametrize(("max_length", "expected"), [(5, [5, 5]), (6, [5, 6]), (128, [5, 7])])
def test_long_texts_are_cut_and_keep_their_marks(
    settings: dict[str, Any], cache_dir: Path, max_length: int, expected: list[int]
) -> None:
    module = started(**settings, max_length=max_length)
    assert module.splits["train"].lengths.tolist() == expected
    last = module.splits["test"][[0]]["input_ids"][0, -1]
    assert last == 3
    (file,) = cache_dir.iterdir()
    assert load_file(file)["train.lengths"].tolist() == expected


def test_loaders_batch_every_row_with_the_asked_sizes(settings: dict[str, Any]) -> None:
    module = started(**settings, batch_size=1, eval_batch_size=2)
    assert sorted(batch["index"].tolist() for batch in module.train_dataloader()) == [[0], [1]]
    assert [batch["index"].tolist() for batch in module.val_dataloader()] == [[0]]
    assert [batch["labels"].tolist() for batch in module.test_dataloader()] == [[0]]


def test_training_order_follows_the_global_seed(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ROWS | {"train": Rows(["hi"] * 40, [0] * 40)}
    module = started(**settings, rows=rows, batch_size=4)
    orders = []
    for seed in ("1", "1", "2"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        orders.append([batch["index"].tolist() for batch in module.train_dataloader()])
    assert orders[0] == orders[1] != orders[2]


def test_predict_needs_no_data_set_and_keeps_the_queries(
    settings: dict[str, Any], cache_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "queries.txt"
    file.write_text("hi\nplay some jazz please\nwhat is my balance\n", encoding="utf-8")
    module = TinyDataModule(**settings, predict_file=str(file), eval_batch_size=2)
    module.setup("predict")
    batches = list(module.predict_dataloader())
    assert sorted(row for batch in batches for row in batch["index"].tolist()) == [0, 1, 2]
    assert all("labels" not in batch for batch in batches)
    assert module.texts("predict") == ["hi", "play some jazz please", "what is my balance"]
    assert module.texts("val") == ["hi"]
    assert not cache_dir.exists()


@pytest.mark.parametrize(
    ("setting", "value", "wording"),
    [
        ("batch_size", 0, "data.batch_size is 0, but a batch has at least 1 row"),
        ("eval_batch_size", -1, "data.eval_batch_size is -1, but a batch has at least 1 row"),
        ("max_length", 2, "data.max_length is 2, but a text has at least 3 tokens"),
    ],
)
def test_impossible_settings_are_refused(setting: str, value: int, wording: str) -> None:
    with pytest.raises(ConfigurationError, match=wording):
        TinyDataModule(**{setting: value})


def test_a_missing_backbone_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"data\.backbone is not set; give the same backbone as the model's"):
        _ = TinyDataModule().tokenizer


# What a user may have in a file or pipe, and the queries in it.
CONTENTS = {
    "newline at the end": (b"hi\nbye\n", ["hi", "bye"]),
    "no newline at the end": (b"hi\nbye", ["hi", "bye"]),
    "empty lines at the end": (b"hi\nbye\n\n \n\n", ["hi", "bye"]),
    "byte order mark": (b"\xef\xbb\xbfhi\nbye\n", ["hi", "bye"]),
    "windows": (b"hi\r\nbye\r\n", ["hi", "bye"]),
    "not ascii": ("zürich, 東京 🎷\nbye".encode(), ["zürich, 東京 🎷", "bye"]),
    "space inside": (b"  hi there\nbye", ["  hi there", "bye"]),
    "separators that end no line": ("a\u2028b\x0cc\x85d\ne".encode(), ["a\u2028b\x0cc\x85d", "e"]),
}


def pipe(content: bytes, monkeypatch: pytest.MonkeyPatch, encoding: str = "utf-8") -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding=encoding))


@pytest.mark.parametrize(("content", "expected"), CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_queries_are_the_lines_of_a_file_or_of_standard_input(
    source: str, content: bytes, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "queries.txt"
    if source == "stdin":
        pipe(content, monkeypatch, encoding="latin-1")  # whatever the locale says, UTF-8 is read
    else:
        file.write_bytes(content)
    assert read_queries("-" if source == "stdin" else str(file)) == expected


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "queries.txt").write_text("hi")
    assert read_queries("~/queries.txt") == ["hi"]


@pytest.mark.parametrize(
    ("content", "wording"),
    [
        (b"hi\n\nbye\n", "{name}, line 2: the text is empty; remove the row or fill it in."),
        (b"hi\nbye\n \t\nhello", "{name}, line 3: the text is empty; remove the row or fill it in."),
        (b"\nhi", "{name}, line 1: the text is empty; remove the row or fill it in."),
        (b"", "{name} holds no query; write one query a line."),
        (b" \n\n", "{name} holds no query; write one query a line."),
        (b"hi\ncaf\xe9\n", "{option}: byte 6 is not UTF-8; give a UTF-8 text file with one query a line."),
    ],
    ids=["empty line", "blank line", "first line", "empty file", "blank file", "not UTF-8"],
)
@pytest.mark.parametrize("source", ["file", "stdin"])
def test_wrong_queries_name_the_file_the_place_and_the_remedy(
    source: str, content: bytes, wording: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "queries.txt"
    file.write_bytes(content)
    pipe(content, monkeypatch)
    asked = "-" if source == "stdin" else str(file)
    with pytest.raises(DataError) as raised:
        read_queries(asked)
    name = "standard input" if source == "stdin" else str(file)
    assert str(raised.value) == wording.format(name=name, option=f"--data.predict_file {asked}")


@pytest.mark.parametrize(
    ("asked", "wording"),
    [
        (None, r"predict needs --data\.predict_file with a text file of one query a line, or - for standard input\."),
        ("absent.txt", r"--data\.predict_file .*absent\.txt: no such file or directory; give a UTF-8 text file"),
        ("", r"--data\.predict_file .*: is a directory; give a UTF-8 text file"),
    ],
    ids=["none", "absent", "folder"],
)
def test_no_queries_at_all_is_an_error_with_a_remedy(asked: str | None, wording: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=wording):
        read_queries(None if asked is None else str(tmp_path / asked))


def test_check_texts_names_the_first_empty_one() -> None:
    check_texts(["a", " b"], "file", "row")
    with pytest.raises(DataError, match=r"^rows\.json, row 2: the text is empty"):
        check_texts((text for text in ["a", "\u3000\t", ""]), "rows.json", "row")
