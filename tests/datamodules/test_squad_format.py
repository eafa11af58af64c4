"""SQuAD's JSON: what is right is read, and whatever is wrong is named by file and question."""

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from lora_lightning.datamodules.squad_format import parse_squad_json, read_squad_json
from lora_lightning.errors import DataError
from lora_lightning.metrics.squad_v2 import Question

BRIDGE = "The old bridge was built by monks in 1203."
CONTENT: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": "Bridges",
            "paragraphs": [
                {
                    "context": BRIDGE,
                    "qas": [
                        {
                            "id": "b1",
                            "question": "Who built it?",
                            "answers": [
                                {"text": "monks", "answer_start": 28},
                                {"text": "by monks", "answer_start": 25},
                            ],
                            "is_impossible": False,
                        },
                        {"id": "b2", "question": "Who burnt it?", "answers": [], "is_impossible": True},
                    ],
                },
                {"context": "Nobody knows.", "qas": []},
            ],
        },
        {"title": "Empty", "paragraphs": []},
        {
            "paragraphs": [
                {
                    "context": "é東 x",
                    "qas": [{"id": "c", "question": "?", "answers": [{"text": "東", "answer_start": 1}]}],
                }
            ]
        },
    ],
}
QUESTIONS = [
    [
        Question("b1", "Who built it?", BRIDGE, (("monks", 28), ("by monks", 25))),
        Question("b2", "Who burnt it?", BRIDGE),
    ],
    [Question("c", "?", "é東 x", (("東", 1),))],
]


def encoded(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_articles_with_questions_are_read_in_order(mark: bytes) -> None:
    assert parse_squad_json(mark + encoded(CONTENT), "dev.json") == QUESTIONS


def test_escaped_text_counts_as_one_character() -> None:
    assert parse_squad_json(json.dumps(CONTENT).encode(), "dev.json") == QUESTIONS


def test_answers_may_be_absent_where_none_are_needed() -> None:
    content = deepcopy(CONTENT)
    del content["data"][0]["paragraphs"][0]["qas"][0]["answers"]
    questions = parse_squad_json(encoded(content), "ask.json", answers_needed=False)
    assert questions[0][0].answers == ()
    assert questions[1][0].answers == (("東", 1),)


Change = Callable[[dict[str, Any]], None]


def asked(content: dict[str, Any], number: int = 0) -> dict[str, Any]:
    entry: dict[str, Any] = content["data"][0]["paragraphs"][0]["qas"][number]
    return entry


def answer(content: dict[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = asked(content)["answers"][1]
    return entry


WRONG: dict[str, tuple[Change, str]] = {
    "no data": (lambda c: c.pop("data"), "dev.json: the field 'data' is missing; there are 'version'."),
    "data is no list": (lambda c: c.update(data={}), "dev.json: 'data' is {}, but a list is needed."),
    "no paragraphs": (
        lambda c: c["data"][1].pop("paragraphs"),
        "dev.json, article 2: the field 'paragraphs' is missing; there are 'title'.",
    ),
    "an article is a text": (
        lambda c: c["data"].append("x"),
        "dev.json, article 4: expected an object with 'paragraphs', found \"x\".",
    ),
    "no context": (
        lambda c: c["data"][0]["paragraphs"][1].pop("context"),
        "dev.json, article 1, paragraph 2: the field 'context' is missing; there are 'qas'.",
    ),
    "no questions": (
        lambda c: c["data"][0]["paragraphs"][1].pop("qas"),
        "dev.json, article 1, paragraph 2: the field 'qas' is missing; there are 'context'.",
    ),
    "no id": (
        lambda c: asked(c, 1).pop("id"),
        (
            "dev.json, article 1, paragraph 1, question 2: the field 'id' is missing; there are 'question', 'answers', "
            "'is_impossible'."
        ),
    ),
    "an id that is a number": (
        lambda c: asked(c, 1).update(id=7),
        "dev.json, article 1, paragraph 1, question 2: 'id' is 7, but a text is needed.",
    ),
    "no question": (
        lambda c: asked(c).pop("question"),
        "dev.json, question 'b1': the field 'question' is missing; there are 'id', 'answers', 'is_impossible'.",
    ),
    "no answers": (
        lambda c: asked(c).pop("answers"),
        "dev.json, question 'b1': the field 'answers' is missing; there are 'id', 'question', 'is_impossible'.",
    ),
    "answers as the hub has them": (
        lambda c: asked(c).update(answers={"text": ["monks"]}),
        "dev.json, question 'b1': 'answers' is {\"text\": [\"monks\"]}, but a list is needed.",
    ),
    "no text": (
        lambda c: answer(c).pop("text"),
        "dev.json, question 'b1': the field 'text' is missing; there are 'answer_start'.",
    ),
    "no start": (
        lambda c: answer(c).pop("answer_start"),
        "dev.json, question 'b1': the field 'answer_start' is missing; there are 'text'.",
    ),
    "start is a text": (
        lambda c: answer(c).update(answer_start="25"),
        "dev.json, question 'b1': 'answer_start' is \"25\", but a whole number is needed.",
    ),
    "start is true": (
        lambda c: answer(c).update(answer_start=True),
        "dev.json, question 'b1': 'answer_start' is true, but a whole number is needed.",
    ),
    "offset of another text": (
        lambda c: answer(c).update(answer_start=24),
        (
            "dev.json, question 'b1': the answer 'by monks' is not in the context at answer_start 24, which reads "
            "' by monk'; count answer_start in characters from 0, or leave answers empty where there is none."
        ),
    ),
    "offset in bytes": (
        lambda c: c["data"][2]["paragraphs"][0]["qas"][0]["answers"][0].update(answer_start=2),
        "dev.json, question 'c': the answer '東' is not in the context at answer_start 2, which reads ' '; count",
    ),
    "offset below 0": (
        lambda c: answer(c).update(text="203.", answer_start=-4),
        "dev.json, question 'b1': the answer '203.' is not in the context at answer_start -4, which reads ''; count",
    ),
    "offset beyond the end": (
        lambda c: answer(c).update(answer_start=1000),
        "dev.json, question 'b1': the answer 'by monks' is not in the context at answer_start 1000, which reads ''",
    ),
    "an answer of other case": (
        lambda c: answer(c).update(text="By monks"),
        (
            "dev.json, question 'b1': the answer 'By monks' is not in the context at answer_start 25, which reads "
            "'by monks'; count"
        ),
    ),
    "an empty answer": (
        lambda c: answer(c).update(text=""),
        "dev.json, question 'b1': the answer '' is not in the context at answer_start 25, which reads ''; count",
    ),
    "impossible with an answer": (
        lambda c: asked(c).update(is_impossible=True),
        "dev.json, question 'b1': is_impossible is true with 2 answers; correct one of them.",
    ),
    "possible without an answer": (
        lambda c: asked(c, 1).update(is_impossible=False),
        "dev.json, question 'b2': is_impossible is false with 0 answers; correct one of them.",
    ),
    "an empty question": (
        lambda c: asked(c, 1).update(question=" "),
        "dev.json, question 'b2': the question is empty; remove the question or fill it in.",
    ),
    "an empty context": (
        lambda c: c["data"][2]["paragraphs"][0].update(context="\n"),
        "dev.json, question 'c': the context is empty; remove the question or fill it in.",
    ),
    "an id twice": (
        lambda c: c["data"][2]["paragraphs"][0]["qas"][0].update(id="b1"),
        "dev.json: the question id 'b1' occurs twice; every question needs an id of its own.",
    ),
    "no question at all": (
        lambda c: c.update(data=c["data"][1:2]),
        "dev.json contains no question; the layout is data, paragraphs, qas as in dev-v2.0.json.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named(case: str) -> None:
    change, expected = WRONG[case]
    content = deepcopy(CONTENT)
    change(content)
    with pytest.raises(DataError) as raised:
        parse_squad_json(encoded(content), "dev.json")
    assert str(raised.value).startswith(expected)
    assert "\n" not in str(raised.value)


def test_half_of_a_character_is_named() -> None:
    content = deepcopy(CONTENT)
    asked(content, 1).update(question="who \ud83d")
    with pytest.raises(DataError, match=r"dev\.json, question 'b2': '\\ud83d' is half of a character"):
        parse_squad_json(json.dumps(content).encode(), "dev.json")


@pytest.mark.parametrize("content", [b"", b"{", b"<html>", b"[" * 100_000], ids=["empty", "cut", "html", "deep"])
def test_what_is_not_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train-v2.0.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_squad_json(path, "--data.train_file")
    assert str(raised.value).startswith(f"{path} is not JSON (")
    assert str(raised.value).endswith("; fix the file, or download it again if it is the original release.")


def test_what_is_not_utf_8_is_named_with_its_line() -> None:
    content = '{"data":\n[{"title": "café"}]}'.encode("latin-1")
    with pytest.raises(
        DataError, match=r"^own\.json, line 2: byte 24 of the file is not UTF-8; save the file in UTF-8"
    ):
        parse_squad_json(content, "own.json")


@pytest.mark.parametrize("content", [b"[]", b"3", b"null"])
def test_another_json_is_named(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^ask\.json: expected an object with 'data', found"):
        parse_squad_json(content, "ask.json")


def test_a_missing_file_is_named_with_its_option_and_what_is_there(tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(DataError) as raised:
            read_squad_json(tmp_path / "train-v2.0.json", "--data.data_dir")
        return str(raised.value)

    start = f"--data.data_dir: {tmp_path}/train-v2.0.json cannot be read (no such file or directory); the folder "
    assert message() == f"{start}{tmp_path} has no .json file."
    for name in ("dev-v2.0.json", "b.json", "c.txt"):
        (tmp_path / name).write_text("")
    assert message() == f"{start}{tmp_path} has b.json, dev-v2.0.json."


@pytest.mark.shared
def test_the_real_dev_set_is_read_whole(shared_data: Path) -> None:
    articles = read_squad_json(shared_data / "squad_v2" / "dev-v2.0.json", "--data.data_dir")
    questions = [question for article in articles for question in article]
    assert len(articles) == 35
    assert len(questions) == 11873
    assert sum(not question.answers for question in questions) == 5945
    assert len({question.context for question in questions}) == 1204


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(
    ("value", "meaning"),
    [("true", True), ("True ", True), (1, True), ("yes", True), ("false", False), ("FALSE", False), (0.0, False)],
)
def test_is_impossible_may_be_written_as_text_or_number(number: int, value: Any, meaning: bool) -> None:
    content = deepcopy(CONTENT)
    asked(content, number)["is_impossible"] = value
    if meaning == (number == 1):
        assert parse_squad_json(encoded(content), "dev.json") == QUESTIONS
    else:
        with pytest.raises(DataError, match=rf"is_impossible is {str(meaning).lower()} with {2 - 2 * number} answers"):
            parse_squad_json(encoded(content), "dev.json")


@pytest.mark.parametrize("value", ["maybe", "", 2, [], {"a": 1}], ids=str)
def test_is_impossible_is_true_or_false(value: Any) -> None:
    content = deepcopy(CONTENT)
    asked(content)["is_impossible"] = value
    with pytest.raises(DataError) as raised:
        parse_squad_json(encoded(content), "dev.json")
    assert str(raised.value) == (
        f"dev.json, question 'b1': is_impossible is {json.dumps(value)}, but it must be true or false."
    )


def test_is_impossible_may_be_null() -> None:
    content = deepcopy(CONTENT)
    asked(content)["is_impossible"] = None
    assert parse_squad_json(encoded(content), "dev.json") == QUESTIONS
