"""Answers that a model may not give, or that no window holds, are counted."""

import json
from pathlib import Path
from typing import Any

import pytest

from lora_lightning.datamodules import SquadV2DataModule
from lora_lightning.datamodules.answer_lengths import answer_lengths
from lora_lightning.errors import ConfigurationError
from tests.conftest import TinyBackbone

Answers = list[list[tuple[int, int]]]  # of each question: first and last word of each answer


def module_of(folder: Path, backbone: str, train: Answers, val: Answers, **settings: Any) -> SquadV2DataModule:
    """Questions about a context of 20 words, each of which is one token."""
    words = [f"w{number + 10}" for number in range(20)]
    for name, question, rows in (("train", "w1", train), ("val", "w2", val)):
        entries = []
        for number, spans in enumerate(rows):
            texts = [" ".join(words[first : last + 1]) for first, last in spans]
            starts = [len(" ".join([*words[:first], ""])) for first, _ in spans]
            answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
            entries.append({"id": str(number), "question": question, "answers": answers})
        content = {"data": [{"paragraphs": [{"context": " ".join(words), "qas": entries}]}]}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return SquadV2DataModule(
        train_file=str(folder / "train.json"),
        validation_file=str(folder / "val.json"),
        backbone=backbone,
        cache_dir=str(folder / "cache"),
        **({"max_length": 30, "doc_stride": 8} | settings),
    )


@pytest.fixture
def backbone(tiny_backbone: TinyBackbone) -> str:
    return str(tiny_backbone("bert"))


def test_the_shortest_of_several_answers_counts_in_evaluation(tmp_path: Path, backbone: str) -> None:
    rows = [[(0, 9), (2, 4)], [(3, 3)], [], [(0, 4), (0, 9)]]
    module = module_of(tmp_path, backbone, rows, rows)
    module.setup("fit")
    found = {name: answer_lengths(module.splits[name].split, module.questions(name)) for name in ("train", "val")}
    assert found == {"train": {0: 10, 1: 1, 3: 5}, "val": {0: 3, 1: 1, 3: 5}}


def test_long_answers_are_counted(tmp_path: Path, backbone: str) -> None:
    module = module_of(tmp_path, backbone, [[(0, 9)], [(3, 3)]], [[(0, 9), (2, 4)], [(0, 6)]])
    module.setup("fit")
    with pytest.warns(UserWarning) as said:  # noqa: PT030
        module.check_answer_lengths(5, "fit")
    assert [str(warning.message) for warning in said] == [
        (
            "answers longer than model.max_answer_length 5 tokens can never be given: 1 of 2 in train, 1 of 2 in val; "
            "the longest has 10 tokens, so set --model.max_answer_length 10 to allow all of them."
        )
    ]


def test_training_on_long_answers_alone_is_refused(tmp_path: Path, backbone: str) -> None:
    module = module_of(tmp_path, backbone, [[(0, 9)], []], [[(0, 9)]])
    module.setup("fit")
    module.setup("test")
    with pytest.raises(ConfigurationError, match=r"can never be given: 1 of 1 in train, 1 of 1 in val; the longest"):
        module.check_answer_lengths(9, "fit")
    with pytest.warns(UserWarning, match="1 of 1 in test"):  # training is over
        module.check_answer_lengths(9, "test")


@pytest.mark.filterwarnings("error")
def test_short_answers_are_no_news(tmp_path: Path, backbone: str) -> None:
    module = module_of(tmp_path, backbone, [[(0, 9)], []], [[]])
    module.setup("fit")
    module.check_answer_lengths(10, "fit")


def test_answers_across_windows_are_counted(tmp_path: Path, backbone: str) -> None:
    module = module_of(tmp_path, backbone, [[(5, 14)], [(3, 3)], []], [[(1, 1)]], max_length=12, doc_stride=2)
    with pytest.warns(UserWarning) as said:  # noqa: PT030
        module.setup("fit")
    assert [str(warning.message) for warning in said] == [
        (
            "train: 1 of 2 answers are in no window of data.max_length 12 tokens in full, and are learnt and scored as "
            "unanswerable; raise max_length, or data.doc_stride 2."
        )
    ]
