"""The JSON of SQuAD 1.1 and 2.0, checked to the last answer."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_lightning.errors import DataError
from lora_lightning.metrics.squad_v2 import Question
from lora_lightning.runs.tables import check_characters, decode_text, parse_json

Articles = list[list[Question]]  # the questions of each article

TRUE_OR_FALSE = {
    **dict.fromkeys(("true", "1", "1.0", "yes"), True),
    **dict.fromkeys(("false", "0", "0.0", "no"), False),
}
KINDS = {str: "a text", list: "a list", int: "a whole number", dict: "an object"}


def read_squad_json(path: Path, option: str, answers_needed: bool = True) -> Articles:
    """Reads a file in the official layout.

    Args:
        path: The file, in UTF-8.
        option: Which option named it, for messages.
        answers_needed: Whether every question must say what its answers are, if only that there are none.

    Returns:
        The questions of each article, in the file's order.

    Raises:
        DataError: If the file cannot be read, is not in the layout, repeats an id, or holds an answer that is not in
            its context where it says; names the file and the question.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        there = ", ".join(sorted(file.name for file in path.parent.glob("*.json"))) or "no .json file"
        msg = f"{option}: {path} cannot be read ({str(error.strerror).lower()}); the folder {path.parent} has {there}."
        raise DataError(msg) from error
    return parse_squad_json(content, str(path), answers_needed)


def parse_squad_json(content: bytes, name: str, answers_needed: bool = True) -> Articles:
    """Reads the official layout.

    Args:
        content: JSON in UTF-8, with or without a byte order mark.
        name: What to call it in messages.
        answers_needed: Whether every question must say what its answers are.

    Returns:
        The questions of each article.

    Raises:
        DataError: As in `read_squad_json`.
    """
    try:
        root = parse_json(decode_text(content, name))
    except (ValueError, RecursionError) as error:
        msg = f"{name} is not JSON ({error}); fix the file, or download it again if it is the original release."
        raise DataError(msg) from error
    articles = []
    for number, article in enumerate(_field(root, "data", list, name), start=1):
        place = f"{name}, article {number}"
        paragraphs = _field(article, "paragraphs", list, place)
        articles.append(
            [
                question
                for position, paragraph in enumerate(paragraphs, start=1)
                for question in _paragraph(paragraph, f"{place}, paragraph {position}", name, answers_needed)
            ]
        )
    return check_articles(articles, name)


def check_articles(articles: Articles, name: str) -> Articles:
    """Refuses what no layout tells: repeated ids, no question at all.

    Args:
        articles: The questions of each article.
        name: What to call the file in messages.

    Returns:
        The articles, without those that have no question.

    Raises:
        DataError: If an id occurs twice or there is no question.
    """
    seen: set[str] = set()
    for question in (question for article in articles for question in article):
        if question.id in seen:
            msg = f"{name}: the question id {question.id!r} occurs twice; every question needs an id of its own."
            raise DataError(msg)
        seen.add(question.id)
    if not seen:
        msg = f"{name} contains no question; the layout is data, paragraphs, qas as in dev-v2.0.json."
        raise DataError(msg)
    return [article for article in articles if article]


def checked_question(
    identifier: str, text: str, context: str, answers: Iterable[tuple[str, int]], name: str
) -> Question:
    """Makes a question whose answers are where they say.

    Args:
        identifier: The question's id.
        text: Its text.
        context: The paragraph.
        answers: (text, first character) of each.
        name: What to call the file in messages.

    Returns:
        The question.

    Raises:
        DataError: If the question, the context or an answer is empty, or an answer is not at its place.
    """
    place = f"{name}, question {identifier!r}"
    for part, content in (("question", text), ("context", context)):
        if not content.strip():
            msg = f"{place}: the {part} is empty; remove the question or fill it in."
            raise DataError(msg)
    question = Question(identifier, text, context, tuple(answers))
    check_characters([identifier, text, context], place)  # answers are parts of the context
    for answer, start in question.answers:
        found = context[start : start + len(answer)] if start >= 0 else ""
        if not answer.strip() or found != answer:
            msg = (
                f"{place}: the answer {answer!r} is not in the context at answer_start {start}, which reads "
                f"{found!r}; count answer_start in characters from 0, or leave answers empty where there is none."
            )
            raise DataError(msg)
    return question


def _paragraph(paragraph: Any, place: str, name: str, answers_needed: bool) -> list[Question]:
    context = _field(paragraph, "context", str, place)
    questions = []
    for number, entry in enumerate(_field(paragraph, "qas", list, place), start=1):
        identifier = _field(entry, "id", str, f"{place}, question {number}")
        where = f"{name}, question {identifier!r}"
        text = _field(entry, "question", str, where)
        answers = [] if "answers" not in entry and not answers_needed else _field(entry, "answers", list, where)
        pairs = [(_field(answer, "text", str, where), _field(answer, "answer_start", int, where)) for answer in answers]
        if answers_needed and (impossible := _is_impossible(entry, where)) is not None and impossible == bool(pairs):
            msg = f"{where}: is_impossible is {str(impossible).lower()} with {len(pairs)} answers; correct one of them."
            raise DataError(msg)
        questions.append(checked_question(identifier, text, context, pairs, name))
    return questions


def _is_impossible(entry: Mapping[str, Any], where: str) -> bool | None:
    """Whether a question is marked as having no answer; `None` if it is not marked."""
    value = entry.get("is_impossible")
    if value is None:
        return None
    word = str(value).strip().lower()  # some tools write "true" or 1
    if word not in TRUE_OR_FALSE:
        msg = f"{where}: is_impossible is {json.dumps(value)[:80]}, but it must be true or false."
        raise DataError(msg)
    return TRUE_OR_FALSE[word]


def _field(holder: Any, key: str, kind: type, place: str) -> Any:
    if not isinstance(holder, Mapping):
        msg = f"{place}: expected an object with {key!r}, found {json.dumps(holder)[:80]}."
        raise DataError(msg)
    if key not in holder:
        msg = f"{place}: the field {key!r} is missing; there are {', '.join(map(repr, holder)) or 'no fields'}."
        raise DataError(msg)
    value = holder[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        msg = f"{place}: {key!r} is {json.dumps(value)[:80]}, but {KINDS[kind]} is needed."
        raise DataError(msg)
    return value
