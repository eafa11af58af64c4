"""Tokenize once and cache; every split has its loaders; predict without the data set."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from safetensors.numpy import load_file
from transformers import CTRLTokenizer

from lora_lightning.datamodules.sequence_classification import ClassificationDataModule, LabeledTexts
from lora_lightning.datamodules.token_cache import tokenizer_state
from lora_lightning.errors import CheckpointError, ConfigurationError, DataError
from lora_lightning.metrics.label_space import LabelSpace
from tests.datamodules.conftest import WORDS, save_tokenizer

ROWS = {
    "train": LabeledTexts(["play some jazz", "what is my balance please"], [0, 1]),
    "val": LabeledTexts(["hi"], [1]),
    "test": LabeledTexts(["book a flight to rome for two people please"], [0]),
}


class TinyDataModule(ClassificationDataModule):
    """Four rows and two labels, to be changed by a test."""

    def __init__(
        self, rows: dict[str, LabeledTexts] = ROWS, names: tuple[str, ...] = ("music", "bank"), **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.rows = rows
        self.names = names

    def load_splits(self) -> dict[str, LabeledTexts]:
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


def test_second_start_reads_the_cache_and_does_not_tokenize(
    settings: dict[str, Any], cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = started(**settings)

    def tokenize(*_: Any) -> None:
        pytest.fail("tokenized again")

    monkeypatch.setattr(ClassificationDataModule, "encode", tokenize)
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
        {"rows": ROWS | {"val": LabeledTexts(["hello"], [1])}},
        {"rows": ROWS | {"val": LabeledTexts(["hi"], [0])}},
        {"rows": ROWS | {"train": LabeledTexts(ROWS["train"].texts[::-1], ROWS["train"].labels[::-1])}},
    ],
    ids=["max_length", "label name", "text", "label", "order"],
)
def test_whatever_decides_the_ids_and_labels_names_another_cache(
    settings: dict[str, Any], change: dict[str, Any]
) -> None:
    assert TinyDataModule(**settings).cache_file == TinyDataModule(**settings).cache_file
    assert TinyDataModule(**settings).cache_file != TinyDataModule(**(settings | change)).cache_file


def test_another_tokenizer_names_another_cache(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = TinyDataModule(**settings).cache_file
    same = save_tokenizer(tmp_path / "moved")
    assert TinyDataModule(**(settings | {"backbone": same})).cache_file == plain
    others = [
        save_tokenizer(tmp_path / "words", WORDS[::-1]),
        save_tokenizer(tmp_path / "side", truncation_side="left"),
    ]
    assert all(TinyDataModule(**(settings | {"backbone": other})).cache_file != plain for other in others)


def test_a_call_that_sets_truncation_or_padding_does_not_rename_the_cache(settings: dict[str, Any]) -> None:
    before = TinyDataModule(**settings).cache_file
    module = TinyDataModule(**settings)
    module.tokenizer(["play some jazz"], truncation=True, max_length=4, padding="max_length")
    assert module.tokenizer.backend_tokenizer.truncation  # the state did change
    assert module.cache_file == before


def test_default_cache_is_in_the_users_cache_folder(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert TinyDataModule(backbone=backbone).cache_file.parent == tmp_path / "xdg" / "lora_lightning"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # by its specification the same as unset
    assert TinyDataModule(backbone=backbone).cache_file.parent == tmp_path / ".cache" / "lora_lightning"


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
    rows = ROWS | {"train": LabeledTexts(["hi"] * 40, [0] * 40)}
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
        ("batch_size", 0, "data.batch_size is 0, but it must be at least 1 row"),
        ("eval_batch_size", -1, "data.eval_batch_size is -1, but it must be at least 1 row"),
        ("max_length", 2, "data.max_length is 2, but a text has at least 3 tokens"),
        ("max_length", 10**30, "but a tokenizer counts to 2147483647"),
    ],
)
def test_impossible_settings_are_refused(setting: str, value: int, wording: str) -> None:
    with pytest.raises(ConfigurationError, match=wording):
        TinyDataModule(**{setting: value})


def test_a_missing_backbone_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"data\.backbone is not set; give the same backbone as the model's"):
        _ = TinyDataModule().tokenizer


class TwoValidationSplits(TinyDataModule):
    """Validated in two splits, never tested."""

    def load_splits(self) -> dict[str, LabeledTexts]:
        return {
            "train": ROWS["train"],
            "val_matched": LabeledTexts(["hi", "play some jazz"], [1, 0]),
            "val_mismatched": LabeledTexts(["book a flight"], [0]),
        }


def test_several_validation_splits_have_a_loader_each(settings: dict[str, Any]) -> None:
    module = TwoValidationSplits(**settings)
    module.prepare_data()
    module.setup("validate")
    assert module.split_names("val") == ["val_matched", "val_mismatched"]
    assert list(module.splits) == ["val_matched", "val_mismatched"]  # a stage opens what it needs
    labels = [[row for batch in loader for row in batch["labels"].tolist()] for loader in module.val_dataloader()]
    assert labels == [[0, 1], [0]]  # longest first


def test_a_split_that_the_data_lacks_is_named_with_what_there_is(settings: dict[str, Any]) -> None:
    module = TwoValidationSplits(**settings)
    module.prepare_data()
    with pytest.raises(DataError, match=r"no test split with labels; there is train, val_matched, val_mismatched\.$"):
        module.setup("test")


def test_numbers_and_several_labels_stay_floating(settings: dict[str, Any]) -> None:
    rows = {
        "train": LabeledTexts(["hi", "play"], [[0.0, 1.0], [1.0, 1.0]]),
        "val": LabeledTexts(["hi"], [2.5]),
        "test": LabeledTexts(["hi"], [1]),
    }
    module = started(**settings, rows=rows)
    batches = [module.splits[split][[0]]["labels"] for split in rows]
    assert [batch.tolist() for batch in batches] == [[[0, 1]], [2.5], [1]]
    assert [batch.dtype for batch in batches] == [torch.float32, torch.float32, torch.int64]


def trainer_after_a_batch() -> Any:
    """What a data module asks of a trainer whose epoch has one batch behind it."""
    progress = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(completed=1)))
    return SimpleNamespace(
        state=SimpleNamespace(fn=TrainerFn.FITTING),
        world_size=1,
        global_rank=0,
        current_epoch=0,
        num_training_batches=2,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        fit_loop=SimpleNamespace(epoch_loop=progress),
    )


def test_a_checkpoint_from_the_middle_of_an_epoch_needs_rows_of_the_same_lengths(settings: dict[str, Any]) -> None:
    module, same, other = (started(**settings, batch_size=1, max_length=length) for length in (9, 9, 5))
    for each in (module, same, other):
        each.trainer = trainer_after_a_batch()
    state = module.state_dict()
    same.load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"middle of an epoch with other batches: hash of the rows' lengths"):
        other.load_state_dict(state)
    older = {name: value for name, value in state.items() if "hash" not in name}
    other.load_state_dict(older)  # which cannot know
    assert older != state
    assert len(list(other.train_dataloader().sampler)) == 1  # type: ignore[call-overload]


def test_a_second_training_skips_no_batches(settings: dict[str, Any]) -> None:
    module = started(**settings, batch_size=1)
    module.trainer = trainer_after_a_batch()
    module.load_state_dict(module.state_dict())
    assert len(list(module.train_dataloader().sampler)) == 1  # type: ignore[call-overload]
    module.setup("fit")
    assert len(list(module.train_dataloader().sampler)) == 2  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "change",
    [{"bos_token": "[CLS]"}, {"sep_token": "[CLS]"}, {"split_special_tokens": True}],
    ids=lambda change: next(iter(change)),
)
def test_special_tokens_are_part_of_the_caches_name(settings: dict[str, Any], change: dict[str, Any]) -> None:
    """A chat template writes them; the JSON of a fast tokenizer does not say which is which."""
    plain = TinyDataModule(**settings).cache_file
    path = Path(settings["backbone"]) / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert TinyDataModule(**settings).cache_file != plain


@pytest.mark.parametrize("change", ["do_lower_case", "vocabulary"])
def test_what_decides_the_tokens_of_a_slow_tokenizer_is_part_of_the_caches_name(tmp_path: Path, change: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    states = []
    for folder in ("a", "b"):
        merges = "#version: 0.2\nh i</w>\n" + ("a b\n" if folder == "b" and change == "vocabulary" else "")
        (tmp_path / folder / "vocab.json").write_text('{"hi</w>": 0, "h@@": 1, "<unk>": 2}')
        (tmp_path / folder / "merges.txt").write_text(merges)
        options = {"do_lower_case": folder == "b"} if change == "do_lower_case" else {}
        states.append(tokenizer_state(CTRLTokenizer.from_pretrained(tmp_path / folder, **options)))
        moved = shutil.copytree(tmp_path / folder, tmp_path / f"{folder} moved")
        assert tokenizer_state(CTRLTokenizer.from_pretrained(moved, **options)) == states[-1]
    assert states[0] != states[1]
