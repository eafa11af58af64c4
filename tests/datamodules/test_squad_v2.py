"""SQuAD from files or the hub: which questions land in which split, what a batch holds, what is written."""

import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from lora_lightning.datamodules import SquadV2DataModule
from lora_lightning.datamodules.squad_v2 import HUB_DATASET
from lora_lightning.errors import ConfigurationError, DataError
from lora_lightning.metrics.squad_v2 import Question
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_squad
from tests.tiny_models import FAMILIES


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return save_tiny_squad(tmp_path / "squad")


def ids(module: SquadV2DataModule) -> dict[str, list[str]]:
    return {split: [question.id for question in questions] for split, questions in module.load_splits().items()}


def numbered(*articles: int) -> list[str]:
    return [f"q{number}" for article in articles for number in range(6 * article, 6 * article + 6)]


def test_a_release_has_dev_as_validation_and_as_test(release: Path) -> None:
    expected = {"train": numbered(0, 1, 2, 3, 4, 5), "val": numbered(6, 7, 8), "test": numbered(6, 7, 8)}
    assert ids(SquadV2DataModule(str(release))) == expected


def test_files_take_the_place_of_the_folders(release: Path) -> None:
    dev = str(release / "dev-v2.0.json")
    assert ids(SquadV2DataModule(str(release), train_file=dev))["train"] == numbered(6, 7, 8)
    alone = SquadV2DataModule(train_file=dev, validation_file=str(release / "train-v2.0.json"))
    assert ids(alone)["val"] == numbered(0, 1, 2, 3, 4, 5)


def test_evaluation_needs_no_training_file(release: Path) -> None:
    module = SquadV2DataModule(validation_file=str(release / "dev-v2.0.json"))
    assert ids(module) == {"val": numbered(6, 7, 8), "test": numbered(6, 7, 8)}


@pytest.mark.parametrize(("share", "articles"), [(0.01, 1), (0.3, 2), (0.5, 3), (0.99, 5)])
@pytest.mark.parametrize("seed", range(3))
def test_held_out_articles_are_whole_and_seeded(release: Path, share: float, articles: int, seed: int) -> None:
    settings: dict[str, Any] = {"validation_share": share, "split_seed": seed}
    splits = SquadV2DataModule(str(release), **settings).load_splits()
    title = {question.id: int(question.id[1:]) // 6 for questions in splits.values() for question in questions}
    train, held_out = ({title[question.id] for question in splits[split]} for split in ("train", "val"))
    assert len(held_out) == articles
    assert not train & held_out
    assert train | held_out == set(range(6))
    assert len(splits["train"]) + len(splits["val"]) == 36
    assert [question.id for question in splits["test"]] == numbered(6, 7, 8)
    assert ids(SquadV2DataModule(str(release), **settings)) == {
        split: [question.id for question in questions] for split, questions in splits.items()
    }


def test_another_seed_holds_out_other_articles(release: Path) -> None:
    chosen = {
        tuple(ids(SquadV2DataModule(str(release), validation_share=0.3, split_seed=seed))["val"]) for seed in range(6)
    }
    assert len(chosen) > 1


def test_with_one_file_the_held_out_articles_are_the_test_too(release: Path) -> None:
    splits = ids(SquadV2DataModule(train_file=str(release / "train-v2.0.json"), validation_share=0.2))
    assert splits["val"] == splits["test"]
    assert len(splits["val"]) == 6


@pytest.mark.parametrize(
    ("settings", "wording"),
    [
        ({"train_file": "train"}, "there is no validation data: give --data.validation_file, or"),
        ({"validation_file": "dev", "validation_share": 0.1}, "takes articles from the training data; give --data.tr"),
        ({"train_file": "nowhere.json", "validation_share": 0.1}, "--data.train_file: nowhere.json cannot be read (no"),
        ({"data_dir": "/nowhere"}, "--data.data_dir: /nowhere/train-v2.0.json cannot be read (no such file"),
    ],
)
def test_missing_files_are_named_with_their_option(release: Path, settings: dict[str, Any], wording: str) -> None:
    files = {"train": str(release / "train-v2.0.json"), "dev": str(release / "dev-v2.0.json")}
    with pytest.raises(DataError, match=re.escape(wording)):
        SquadV2DataModule(**{name: files.get(value, value) for name, value in settings.items()}).load_splits()


def test_one_article_cannot_be_split(tmp_path: Path, release: Path) -> None:
    content = json.loads((release / "train-v2.0.json").read_text())
    (tmp_path / "one.json").write_text(json.dumps({"data": content["data"][:1]}))
    with pytest.raises(DataError, match=r"the training data has one article, which cannot be on both sides; give"):
        SquadV2DataModule(train_file=str(tmp_path / "one.json"), validation_share=0.5).load_splits()


@pytest.mark.parametrize(
    ("settings", "wording"),
    [
        ({"validation_share": 0.0}, r"data\.validation_share is 0\.0, but it must be in \(0, 1\)"),
        ({"split_seed": -1}, r"data\.split_seed is -1"),
        ({"validation_share": 1.0}, r"data\.validation_share is 1\.0"),
        ({"max_length": 0}, r"data\.max_length is 0, but a window has a question"),
        ({"doc_stride": -1}, r"data\.doc_stride is -1, but it must be in \[0, max_length\), here \[0, 384\)"),
        ({"max_length": 64}, r"data\.doc_stride is 128, but it must be in \[0, max_length\), here \[0, 64\)"),
        ({"batch_size": 0}, r"data\.batch_size is 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], wording: str) -> None:
    with pytest.raises(ConfigurationError, match=wording):
        SquadV2DataModule(**settings)


# The hub


def hub(**changed: Any) -> datasets.DatasetDict:
    rows: dict[str, list[Any]] = {
        "id": ["a", "b", "c"],
        "title": ["X", "Y", "X"],
        "context": ["one two", "three", "one two"],
        "question": ["?", "??", "???"],
        "answers": [
            {"text": ["two"], "answer_start": [4]},
            {"text": [], "answer_start": []},
            {"text": ["one", "two"], "answer_start": [0, 4]},
        ],
    } | changed
    whole = datasets.Dataset.from_dict(rows)
    return datasets.DatasetDict({"train": whole, "validation": whole.select([1])})


def test_hub_rows_become_questions_by_article(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*arguments: str, **_: Any) -> datasets.DatasetDict:
        asked.append(arguments)
        return hub()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = SquadV2DataModule().load_splits()
    assert asked == [("rajpurkar/squad_v2", None)]
    assert [question.id for question in splits["train"]] == ["a", "c", "b"]
    assert splits["train"][1].answers == (("one", 0), ("two", 4))
    assert [(question.id, question.answers) for question in splits["val"]] == [("b", ())]
    held_out = SquadV2DataModule(validation_share=0.5).load_splits()
    assert {question.id for question in held_out["val"]} in ({"a", "c"}, {"b"})


@pytest.mark.parametrize(
    ("changed", "wording"),
    [
        ({"id": ["a", "b", "a"]}, f"{HUB_DATASET}, train: the question id 'a' occurs twice"),
        ({"context": ["one two", " ", "one two"]}, f"{HUB_DATASET}, train, question 'b': the context is empty"),
        (
            {"context": ["two one", "three", "one two"]},
            (
                f"{HUB_DATASET}, train, question 'a': the answer 'two' is not in the context at answer_start 4, which "
                "reads 'one'"
            ),
        ),
    ],
    ids=["id", "context", "offset"],
)
def test_hub_rows_are_checked_too(monkeypatch: pytest.MonkeyPatch, changed: Any, wording: str) -> None:
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hub(**changed))
    with pytest.raises(DataError, match=re.escape(wording)):
        SquadV2DataModule().load_splits()


@pytest.mark.parametrize(
    "error", [ConnectionError("x"), ValueError("x"), datasets.exceptions.DatasetNotFoundError("x")], ids=repr
)
def test_a_hub_that_does_not_answer_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def load_dataset(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError, match=r"rajpurkar/squad_v2 could not be downloaded .*set --data\.data_dir to a folder"
    ):
        SquadV2DataModule().load_splits()


# Tokens


def started(module: SquadV2DataModule) -> SquadV2DataModule:
    module.prepare_data()
    module.setup("fit")
    module.setup("test")
    return module


@pytest.fixture
def make(tiny_backbone: TinyBackbone, release: Path, tmp_path: Path) -> Callable[..., SquadV2DataModule]:
    """A data module over the tiny release, by family."""

    def module(family: str = "bert", **settings: Any) -> SquadV2DataModule:
        defaults = {"max_length": 32, "doc_stride": 12, "cache_dir": str(tmp_path / "cache"), "data_dir": str(release)}
        return SquadV2DataModule(backbone=str(tiny_backbone(family)), **(defaults | settings))

    return module


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_lead_back_to_the_answers(make: Callable[..., SquadV2DataModule], family: str) -> None:
    module = started(make(family))
    batch = module.splits["val"][range(len(module.splits["val"]))]
    questions = module.questions("val")
    assert set(batch["question"].tolist()) == set(range(len(questions)))
    assert batch["question"].tolist() == sorted(batch["question"].tolist())
    assert len(batch["question"]) > len(questions)
    found = set()
    for row, number in enumerate(batch["question"].tolist()):
        question = questions[number]
        start, end, null = (int(batch[name][row]) for name in ("start_positions", "end_positions", "null_position"))
        assert batch["attention_mask"][row, end] == 1
        if (start, end) == (null, null):
            continue
        text = question.context[batch["char_start"][row, start] : batch["char_end"][row, end]]
        assert text.strip() == question.answers[0][0]
        found.add(number)
    assert found == {number for number, question in enumerate(questions) if question.answers}
    in_context = batch["char_end"] > batch["char_start"]
    assert not (in_context & (batch["attention_mask"] == 0)).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_token_types_are_there_just_where_the_backbone_has_them(
    make: Callable[..., SquadV2DataModule], family: str
) -> None:
    module = started(make(family))
    batch = module.splits["val"][range(5)]
    assert ("token_type_ids" in batch) == (family in {"albert", "bert", "electra"})
    if "token_type_ids" in batch:
        assert torch.equal(batch["token_type_ids"] == 1, batch["char_end"] > batch["char_start"])


def test_training_batches_hold_no_characters(make: Callable[..., SquadV2DataModule]) -> None:
    module = started(make())
    assert set(module.splits["train"].split.tokens) == {"input_ids", "token_type_ids"}
    assert set(module.splits["val"].split.tokens) == {"input_ids", "token_type_ids", "char_start", "char_end"}


@pytest.mark.parametrize("change", [{"max_length": 30}, {"doc_stride": 9}, {"validation_share": 0.4}])
def test_whatever_decides_the_windows_names_another_cache(
    make: Callable[..., SquadV2DataModule], change: dict[str, Any]
) -> None:
    assert make().cache_file == make().cache_file
    assert make().cache_file != make(**change).cache_file


@pytest.mark.parametrize(("family", "limit"), [("bert", 40), ("roberta", 39), ("gpt2", 40), ("llama", 40)])
def test_windows_beyond_the_backbones_positions_are_refused(
    make: Callable[..., SquadV2DataModule], family: str, limit: int
) -> None:
    module = make(family, max_length=limit + 1)
    with pytest.raises(ConfigurationError) as raised:
        module.prepare_data()
    assert str(raised.value) == (
        f"data.max_length is {limit + 1}, but {module.backbone} takes {limit} tokens at most; set --data.max_length "
        f"{limit} and --data.doc_stride below a third of it."
    )
    assert started(make(family, max_length=limit)).splits["train"].lengths.max() == limit


def test_a_backbone_that_knows_distances_only_takes_any_length(make: Callable[..., SquadV2DataModule]) -> None:
    assert started(make("deberta-v2", max_length=300)).splits["train"].lengths.max() > 60


def test_a_question_without_room_stops_before_training(make: Callable[..., SquadV2DataModule], release: Path) -> None:
    path = release / "train-v2.0.json"
    content = json.loads(path.read_text())
    content["data"][1]["paragraphs"][0]["qas"][0]["question"] = "w1 " * 30
    path.write_text(json.dumps(content))
    wording = "question 'q6' has 30 tokens, so that of data.max_length 32 2 are left"
    with pytest.raises(DataError, match="^" + re.escape(f"{path}, {wording}")):
        make().prepare_data()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, ["train-v2.0.json", "dev-v2.0.json", "dev-v2.0.json"]),
        ({"validation_share": 0.3}, ["train-v2.0.json", "train-v2.0.json", "dev-v2.0.json"]),
    ],
)
def test_a_question_is_named_with_the_file_of_its_split(
    make: Callable[..., SquadV2DataModule], settings: dict[str, Any], names: list[str]
) -> None:
    module = make(max_length=3, doc_stride=2, predict_file="ask.json", **settings)
    for split, name in zip(("train", "val", "test"), names, strict=True):
        with pytest.raises(DataError, match=rf"{re.escape(name)}, question 'q\d+' has"):
            module.encode(split, module.raw_splits[split])
    with pytest.raises(DataError, match=r"^ask\.json, question"):
        module.encode("predict", module.raw_splits["val"])


# Prediction


QUESTIONS = {"data": [{"paragraphs": [{"context": "w1 w2", "qas": [{"id": "ü", "question": "w3"}]}]}]}


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_prediction_reads_questions_without_answers_and_no_training_data(
    make: Callable[..., SquadV2DataModule], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    content = json.dumps(QUESTIONS).encode()
    (tmp_path / "ask.json").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    module = make(data_dir="/nowhere", predict_file="-" if source == "stdin" else str(tmp_path / "ask.json"))
    module.setup("predict")
    assert module.prediction_inputs("predict") == [{"id": "ü", "context": "w1 w2"}]
    (batch,) = module.predict_dataloader()
    assert batch["question"].tolist() == [0]
    assert (batch["char_end"] > batch["char_start"]).sum() == 2


def test_prediction_without_a_file_is_an_error() -> None:
    with pytest.raises(DataError, match=r"predict needs --data\.predict_file with questions in SQuAD's JSON layout"):
        SquadV2DataModule().load_prediction_splits()


def test_a_wrong_file_to_predict_is_named_with_the_option() -> None:
    with pytest.raises(DataError, match=r"^--data\.predict_file: nowhere\.json cannot be read"):
        SquadV2DataModule(predict_file="nowhere.json").load_prediction_splits()


ROWS = [
    {"id": "ü", "answer": "東 x", "null_odds": -1.5, "nbest": [{"text": "東 x", "score": 1.0, "probability": 1.0}]},
    {"id": "b", "answer": "", "null_odds": 2.0, "nbest": []},
]


def test_official_predictions_and_null_odds_are_written_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "answers.json"
    SquadV2DataModule().write_predictions({"predict": ROWS}, path)
    assert json.loads(path.read_text(encoding="utf-8")) == {"ü": "東 x", "b": ""}
    assert "東" in path.read_text(encoding="utf-8")
    assert json.loads((tmp_path / "deep/answers_null_odds.json").read_text()) == {"ü": -1.5, "b": 2.0}
    assert json.loads((tmp_path / "deep/answers_nbest.json").read_text())["b"] == []


def test_predictions_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot be written to .*; choose --predictions\.file"):
        SquadV2DataModule().write_predictions({"predict": ROWS}, tmp_path / "file" / "answers.json")


@pytest.mark.parametrize("name", ["answers.csv", "answers", "answers.jsonl"])
def test_predictions_of_another_ending_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=r"SQuAD's predictions are JSON; let it end in \.json"):
        SquadV2DataModule().check_predictions_file(Path(name))
    SquadV2DataModule().check_predictions_file(Path("answers.json"))


@pytest.mark.shared
def test_the_real_dev_set_splits_by_article(shared_data: Path) -> None:
    path = str(shared_data / "squad_v2" / "dev-v2.0.json")
    splits = SquadV2DataModule(train_file=path, validation_share=10 / 35).load_splits()
    contexts = {split: {question.context for question in questions} for split, questions in splits.items()}
    assert len(splits["train"]) + len(splits["val"]) == 11873
    assert not contexts["train"] & contexts["val"]


def test_questions_of_training_that_are_evaluated_are_counted(tmp_path: Path) -> None:
    folder = save_tiny_squad(tmp_path)
    train = str(folder / "train-v2.0.json")
    with pytest.warns(UserWarning, match="36 of 36 rows of the val split are also in the training data"):
        _ = SquadV2DataModule(train_file=train, validation_file=train).raw_splits


def test_questions_may_be_given_as_mappings(tmp_path: Path) -> None:
    module = SquadV2DataModule()
    inputs = [{"question": "w1 ?", "context": "w2\nw3"}, {"question": "w4 ?", "context": "w5", "id": "b"}]
    module.predict_file = str(module.save_inputs(inputs, tmp_path))
    assert module.load_prediction_splits()["predict"] == [
        Question("1", "w1 ?", "w2\nw3", ()),
        Question("b", "w4 ?", "w5", ()),
    ]
    with pytest.raises(DataError, match="input 1 is 'w1', but a mapping with texts question and context is needed"):
        module.save_inputs(["w1"], tmp_path)
