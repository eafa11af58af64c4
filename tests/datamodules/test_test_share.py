"""`data.test_share`: held-out test rows are in no other split, and the same for every run."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from lora_lightning.datamodules import (
    GlueDataModule,
    InstructionDataModule,
    PlainTextDataModule,
    SquadV2DataModule,
    TextClassificationDataModule,
)
from lora_lightning.datamodules.base import AdaptationDataModule
from lora_lightning.errors import ConfigurationError, DataError
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_instructions, save_tiny_squad, save_tiny_table, save_tiny_wikitext
from tests.tiny_glue import FOLDERS, save_tiny_glue

SPLITS = ("train", "val", "test")
Make = Callable[..., AdaptationDataModule]


@pytest.fixture
def modules(tiny_backbone: TinyBackbone, tmp_path: Path) -> dict[str, Make]:
    """How to make a data module without test rows, by what its rows are."""
    gpt2: dict[str, Any] = {"backbone": str(tiny_backbone("gpt2")), "context_length": 20}
    table, numbers, sets = (
        save_tiny_table(tmp_path / f"{label}.csv", label=label) for label in ("word", "number", "set")
    )
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": f"w{number}"}) for number in range(40)))
    (tmp_path / "a.txt").write_text("".join(f"w{number}\n" for number in range(40)))
    squad = save_tiny_squad(tmp_path / "squad") / "train-v2.0.json"
    records = save_tiny_instructions(tmp_path / "instructions")
    return {
        "table": lambda **more: TextClassificationDataModule(str(table), **more),
        "numbers": lambda **more: TextClassificationDataModule(str(numbers), problem_type="regression", **more),
        "sets": lambda **more: TextClassificationDataModule(
            str(sets), problem_type="multi_label_classification", **more
        ),
        "documents": lambda **more: PlainTextDataModule(train_file=str(tmp_path / "a.jsonl"), **gpt2, **more),
        "lines": lambda **more: PlainTextDataModule(train_file=str(tmp_path / "a.txt"), **gpt2, **more),
        "records": lambda **more: InstructionDataModule(train_file=str(records), **gpt2, **more),
        "questions": lambda **more: SquadV2DataModule(train_file=str(squad), **({"validation_share": 0.2} | more)),
    }


def rows_of(split: Any) -> list[str]:
    """Every row of a split as a text."""
    if hasattr(split, "keys"):
        return [repr((key, label)) for key, label in zip(split.keys(), split.labels, strict=True)]
    if hasattr(split, "are_documents"):
        return list(split.texts) if split.are_documents else split.texts[0].splitlines()
    return [repr(row) for row in split]


KINDS = ("table", "numbers", "sets", "documents", "lines", "records", "questions")


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_in_one_split(modules: dict[str, Make], kind: str) -> None:
    without = modules[kind](validation_share=0.2).raw_splits
    everything = Counter(row for name in ("train", "val") for row in rows_of(without[name]))
    found = modules[kind](validation_share=0.25, test_share=0.2)
    rows = {name: rows_of(split) for name, split in found.raw_splits.items()}
    assert tuple(rows) == SPLITS
    assert Counter(row for split in rows.values() for row in split) == everything
    assert len(rows["test"]) == pytest.approx(0.2 * everything.total(), abs=2)
    assert len(rows["val"]) == pytest.approx(0.25 * 0.8 * everything.total(), abs=2)
    assert found.split_names("test") == ["test"]
    unit = {"records": "records", "questions": "questions", "documents": "documents", "lines": "lines"}.get(
        kind, "rows"
    )
    assert found.split_sizes()["test"] == f"{len(rows['test'])} {unit}"
    found.check_splits("test")


@pytest.mark.parametrize("kind", KINDS)
def test_the_split_follows_split_seed_alone(
    modules: dict[str, Make], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prints = []
    for seed in ("0", "7"):
        monkeypatch.setenv("PL_GLOBAL_SEED", seed)
        prints.append(modules[kind](test_share=0.3).fingerprint)
    assert prints[0] == prints[1]
    other = modules[kind](test_share=0.3, split_seed=5).fingerprint["test"]
    assert (other == prints[0]["test"]) == (kind == "lines")  # the end of one text


def test_each_class_gives_its_share(modules: dict[str, Make]) -> None:
    splits = modules["table"](test_share=0.5, validation_share=0.5).raw_splits
    assert {name: Counter(rows.labels) for name, rows in splits.items()} == {
        "train": {0: 5, 1: 5},
        "val": {0: 5, 1: 5},
        "test": {0: 10, 1: 10},
    }


def test_one_text_ends_with_the_test(modules: dict[str, Make]) -> None:
    splits = modules["lines"](test_share=0.25, validation_share=0.1).raw_splits
    assert "".join(splits[name].texts[0] for name in SPLITS) == "".join(f"w{number}\n" for number in range(40))
    assert splits["test"].texts[0].startswith("w30\n")


@pytest.mark.parametrize("task_name", sorted(FOLDERS.keys() - {"ax"}))
def test_glue_holds_out_training_rows(task_name: str, tmp_path: Path) -> None:
    folder = str(save_tiny_glue(tmp_path, task_name))
    plain = GlueDataModule(task_name, folder, allow_partial=True)  # type: ignore[arg-type]
    module = GlueDataModule(task_name, folder, allow_partial=True, test_share=0.5, split_seed=3)  # type: ignore[arg-type]
    train, test = (rows_of(module.raw_splits[name]) for name in ("train", "test"))
    assert Counter(train + test) == Counter(rows_of(plain.raw_splits["train"]))
    assert len(test) == 6
    for name in plain.split_names("val"):
        assert module.raw_splits[name] == plain.raw_splits[name]
    if plain.label_space.problem_type != "regression":
        counts = Counter(module.raw_splits["test"].labels)
        assert max(counts.values()) - min(counts.values()) <= 1
    assert module.load_prediction_splits() == plain.load_prediction_splits()
    with pytest.raises(DataError, match="GLUE's test labels are not public"):
        plain.check_splits("test")


def test_a_hidden_test_may_be_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"text": [f"w{number}" for number in range(20)], "label": [number % 2 for number in range(20)]}
    hidden = {"text": ["w50", "w51"], "label": [-1, -1]}
    data = datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows), "test": datasets.Dataset.from_dict(hidden)})
    monkeypatch.setattr("lora_lightning.datamodules.text_classification.load_hub_dataset", lambda *_: data)
    splits = TextClassificationDataModule(dataset_name="some/data", test_share=0.2).raw_splits
    assert len(splits["test"].texts) == 4
    assert not set(splits["test"].texts) & {"w50", "w51"}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda p: TextClassificationDataModule(str(p / "a.csv"), test_file=str(p / "b.csv"), test_share=0.1), "b.csv"),
        (
            lambda p: InstructionDataModule(str(p / "i.jsonl"), test_file=str(p / "i.jsonl"), test_share=0.1),
            "i.jsonl",
        ),
        (lambda p: PlainTextDataModule(str(p / "text"), test_share=0.1), "wiki.test.raw"),
        (lambda p: SquadV2DataModule(str(p / "squad"), validation_share=0.2, test_share=0.1), "dev-v2.0.json"),
    ],
)
def test_data_with_test_rows_is_refused(
    make: Callable[[Path], AdaptationDataModule], named: str, tmp_path: Path, tiny_backbone: TinyBackbone
) -> None:
    save_tiny_table(tmp_path / "a.csv")
    save_tiny_table(tmp_path / "b.csv")
    save_tiny_instructions(tmp_path).rename(tmp_path / "i.jsonl")
    save_tiny_wikitext(tmp_path / "text")
    save_tiny_squad(tmp_path / "squad")
    module = make(tmp_path)
    if hasattr(module, "context_length"):
        module.backbone, module.context_length = str(tiny_backbone("gpt2")), 20
    message = rf"data\.test_share is 0\.1, but there are already test rows with labels, in .*{named}; leave out"
    with pytest.raises(ConfigurationError, match=message):
        _ = module.raw_splits


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1])
@pytest.mark.parametrize("kind", [*KINDS, "glue"])
def test_a_share_outside_its_range_is_refused(modules: dict[str, Make], kind: str, share: float) -> None:
    make = modules.get(kind, lambda **more: GlueDataModule("rte", **more))
    with pytest.raises(ConfigurationError, match=rf"data\.test_share is {share}, but it must be in \(0, 1\)"):
        make(test_share=share)


@pytest.mark.parametrize("kind", ["table", "numbers", "documents", "lines", "records"])
def test_too_few_rows_are_refused(modules: dict[str, Make], kind: str) -> None:
    with pytest.raises(DataError, match=r"has 40 .*, too few to hold out 0\.01 of them; set data\.test_share"):
        _ = modules[kind](test_share=0.01).raw_splits


def test_rows_of_any_kind_have_a_size(modules: dict[str, Make], tmp_path: Path) -> None:
    module = modules["table"]()
    module.__dict__["raw_splits"] = {"train": object(), "val": [1]}
    assert module.split_sizes() == {"train": "an unknown number of rows", "val": "1 rows"}
    (tmp_path / "a.txt").write_text("w1\nw2\n\nw3")
    text = modules["lines"]()
    assert isinstance(text, PlainTextDataModule)
    assert text.size_of(text._read_file(tmp_path / "a.txt")) == "4 lines"


def test_articles_of_squad(tmp_path: Path) -> None:
    folder = save_tiny_squad(tmp_path)
    module = SquadV2DataModule(str(folder), test_share=0.3)
    articles = {name: {int(question.id[1:]) // 6 for question in module.questions(name)} for name in SPLITS}
    assert [len(articles[name]) for name in SPLITS] == [4, 3, 2]
    assert articles["val"] == {6, 7, 8}  # the validation file
    assert not articles["train"] & articles["test"]
    three = SquadV2DataModule(train_file=str(folder / "train-v2.0.json"), test_share=0.3, validation_share=0.3)
    articles = {name: {int(question.id[1:]) // 6 for question in three.questions(name)} for name in SPLITS}
    assert [len(articles[name]) for name in SPLITS] == [3, 1, 2]
    with pytest.raises(DataError, match=r"data\.test_share takes articles from the training data"):
        _ = SquadV2DataModule(validation_file=str(folder / "dev-v2.0.json"), test_share=0.3).raw_splits


def save_pairs(path: Path) -> Path:
    """Three hypotheses for each of 20 premises, as MNLI has them."""
    rows = [f"premise {number // 3},hypothesis {number},{'ab'[number % 2]}" for number in range(60)]
    path.write_text("\n".join(["text,pair,label", *rows]))
    return path


def test_pairs_that_share_a_text_with_a_training_pair_are_counted(tmp_path: Path) -> None:
    module = TextClassificationDataModule(str(save_pairs(tmp_path / "p.csv")), text_pair_column="pair", test_share=0.2)
    with pytest.warns(UserWarning, match="of 12 rows that data.test_share holds out have a text in common") as found:
        splits = module.raw_splits
    premises = set(splits["train"].texts)
    expected = sum(text in premises for text in splits["test"].texts)
    assert [str(each.message).split()[0] for each in found if "in common" in str(each.message)] == [str(expected)]


def test_equal_records_and_documents_on_both_sides_are_counted(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    gpt2: dict[str, Any] = {"backbone": str(tiny_backbone("gpt2")), "context_length": 20, "test_share": 0.25}
    documents, records = tmp_path / "documents.jsonl", tmp_path / "records.jsonl"
    documents.write_text("\n".join(json.dumps({"text": f"w{number % 2}"}) for number in range(40)))
    row = {"instruction": "say", "input": "", "output": "yes"}
    records.write_text("\n".join([json.dumps(row)] * 40))
    for module in (
        PlainTextDataModule(train_file=str(documents), **gpt2),
        InstructionDataModule(train_file=str(records), **gpt2),
    ):
        with pytest.warns(UserWarning, match="10 of 10 rows of the test split are also in the training data"):
            _ = module.raw_splits


@pytest.mark.parametrize("kind", ["table", "documents", "lines"])
def test_different_texts_cause_no_warning(
    kind: str, modules: dict[str, Make], recwarn: pytest.WarningsRecorder
) -> None:
    _ = modules[kind](test_share=0.25, validation_share=0.1).raw_splits
    assert not [each for each in recwarn if re.search("in common|also in the training", str(each.message))]
