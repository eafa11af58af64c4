"""SQuAD 2.0's exact match, F1 and best threshold: by hand, and against a slow and literal implementation."""

import json
import math
import random
import re
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_lightning.metrics.squad_v2 import (
    REPORTED,
    VALUES,
    Question,
    best_threshold,
    choose_threshold,
    f1_score,
    normalize_answer,
    score_answers,
    scores_at,
    squad_v2_report,
)


def question(*answers: str, name: str = "q") -> Question:
    return Question(name, "?", "", tuple((answer, 0) for answer in answers))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Normans", "normans"),
        ("a, an... the!", ""),
        ("An apple a day", "apple day"),
        ("theatre than another", "theatre than another"),  # no article inside a word
        ("THE END", "end"),
        ("U.S. 1,000 $5.3m", "us 1000 53m"),
        ("the-end", "theend"),  # punctuation goes first, so this article is part of a word
        ("rock'n'roll", "rocknroll"),
        ("“quoted” \u2013 dash… ¿que?", "“quoted” \u2013 dash… ¿que"),  # punctuation beyond ASCII stays
        ("“the end”", "“ end”"),  # and bounds words, so an article beside it goes
        ("tab\tnew\nline\u00a0space", "tab new line space"),
        ("Ñandú ẞ", "ñandú ß"),
        ("", ""),
        (" \n", ""),
    ],
)
def test_normalization(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


@pytest.mark.parametrize("mark", string.punctuation)
def test_every_ascii_mark_goes(mark: str) -> None:
    assert normalize_answer(f"x{mark}y") == "xy"


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("tour eiffel", "tour eiffel", 1),
        ("tour eiffel", "eiffel tour", 1),  # a bag has no order
        ("tour eiffel", "eiffel", 2 / 3),
        ("b b c", "b c c", 2 / 3),  # two of three on either side
        ("b", "b b b b", 2 / 5),
        ("b", "c", 0),
        ("", "", 1),
        ("", "b", 0),
        ("b", "", 0),
    ],
)
def test_f1(gold: str, answer: str, expected: float) -> None:
    assert f1_score(gold, answer) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("golds", "answer", "exact", "f1"),
    [
        (["France"], "france.", 1, 1),
        (["France"], "in the France", 0, 2 / 3),
        (["10th century", "the first half of the 10th century"], "half of 10th century", 0, 8 / 9),
        (["10th century", "late"], "Late", 1, 1),
        (["France"], "", 0, 0),
        ([], "", 1, 1),
        ([], "France", 0, 0),
        ([], "the", 1, 1),  # nothing of it counts
        (["the"], "", 1, 1),  # no word to find
        (["the", "end"], "", 0, 0),
        (["the", "end"], "the end", 1, 1),
        (["a b"], "b a", 1, 1),
    ],
)
def test_scores_of_one_question(golds: list[str], answer: str, exact: float, f1: float) -> None:
    scores = score_answers([question(*golds)], [answer], [0.0])
    assert scores.exact.tolist() == [exact]
    assert scores.f1.tolist() == [pytest.approx(f1, abs=1e-15)]
    assert scores.has_answer.tolist() == [bool(golds)]
    assert scores.answered.tolist() == [bool(answer)]


def test_report_by_hand() -> None:
    questions = [question("x"), question("x y"), question(), question(), question("z")]
    scores = score_answers(questions, ["x", "x", "w", "w", "no"], [-2.0, 1.0, 0.0, 3.0, -1.0])
    # By null score: right (+1), wrong (+0), unanswerable (-1), two thirds (+2/3), unanswerable (-1), from 2.
    expected = {
        "exact": 2 / 5,  # threshold 0.5 silences the second and the fourth
        "f1": 2 / 5,
        "HasAns_exact": 1 / 3,
        "HasAns_f1": 1 / 3,
        "NoAns_exact": 1 / 2,
        "NoAns_f1": 1 / 2,
        "best_exact": 3 / 5,
        "best_exact_thresh": -2.0,
        "best_f1": 3 / 5,
        "best_f1_thresh": -2.0,
    }
    assert squad_v2_report(scores, 0.5) == pytest.approx(expected, abs=1e-15)
    assert list(expected) == REPORTED
    assert squad_v2_report(scores, math.inf)["f1"] == pytest.approx((1 + 2 / 3) / 5)
    assert squad_v2_report(scores, 1.0)["f1"] == pytest.approx((1 + 2 / 3 + 1) / 5)  # only above the threshold


def test_one_kind_of_question_alone() -> None:
    answerable = squad_v2_report(score_answers([question("x"), question("y")], ["x", "z"], [5.0, 6.0]), 5.5)
    assert answerable == {
        "exact": 0.5,
        "f1": 0.5,
        "HasAns_exact": 0.5,
        "HasAns_f1": 0.5,
        "best_exact": 0.5,
        "best_exact_thresh": 5.0,
        "best_f1": 0.5,
        "best_f1_thresh": 5.0,
    }
    unanswerable = score_answers([question(), question()], ["x", "z"], [5.0, 6.0])
    assert best_threshold(unanswerable, "f1") == (1.0, 0.0)
    report = squad_v2_report(unanswerable, -math.inf)
    assert (report["NoAns_f1"], report["best_f1"], report["best_f1_thresh"]) == (1.0, 1.0, 0.0)
    assert not [name for name in report if name.startswith("HasAns")]


def test_the_lowest_of_equally_good_thresholds_counts() -> None:
    scores = score_answers([question("x"), question(), question("x")], ["x", "y", "x"], [1.0, 2.0, 3.0])
    assert best_threshold(scores, "exact") == (2 / 3, 1.0)


def test_threshold_applied_is_the_best() -> None:
    scores = score_answers([question("x"), question(), question("y z")], ["x", "w", "y"], [0.5, 2.0, 1.0])
    best, threshold = best_threshold(scores, "f1")
    assert (best, threshold) == (pytest.approx((1 + 2 / 3 + 1) / 3), 1.0)
    assert squad_v2_report(scores, threshold)["f1"] == pytest.approx(best)


def test_without_unanswerable_questions_all_are_answered() -> None:
    scores = score_answers([question("x"), question("y")], ["x", "z"], [5.0, 6.0])
    assert choose_threshold(scores) == float(np.finfo(np.float32).max)


def test_threshold_is_chosen_by_f1() -> None:
    scores = score_answers([question("x"), question(), question("y z")], ["x", "w", "y"], [0.5, 2.0, 1.0])
    assert best_threshold(scores, "exact")[1] == 0.5
    assert best_threshold(scores, "f1")[1] == 1.0
    assert choose_threshold(scores) == 1.5  # no question's own score, which rounding could move across


@pytest.mark.parametrize(
    ("answers", "null_scores", "expected"),
    [
        (["x", ""], [2.0, 1.0], 3.0),  # 2 and some more, as the threshold is kept with a margin
        (["z", "w"], [2.0, 1.0], 0.5),
        (["z", "w"], [-2.0, -3.0], -4.5),
        (["x", "w"], [1.0, 1.0], 0.5),
        (["x", "w"], [1.0, float(np.nextafter(np.float32(1), np.float32(2)))], 1.0),
        (["x", "w"], [1.0, math.inf], 1.5),
        (["z", "w"], [math.inf, math.inf], 0.0),
    ],
    ids=["all", "none", "none, negative", "the same score", "float32 neighbours", "no span", "no span at all"],
)
def test_threshold_at_the_ends(answers: list[str], null_scores: list[float], expected: float) -> None:
    scores = score_answers([question("x"), question()], answers, null_scores)
    chosen = choose_threshold(scores)
    assert float(np.float32(chosen)) == chosen
    assert (chosen > max(null_scores)) == (answers == ["x", ""])
    if null_scores[0] != null_scores[1]:
        assert chosen == pytest.approx(expected) or expected == 3.0
    assert scores_at(scores, chosen, "f1").mean() == best_threshold(scores, "f1")[0]


def test_answering_nothing_is_reported_with_a_threshold_that_does_it() -> None:
    """0 is an ordinary value of null odds: it would answer these questions, and gain less."""
    scores = score_answers([question("x"), question(), question()], ["z", "w", "v"], [-5.0, -4.0, 7.0])
    report = squad_v2_report(scores, math.inf)
    for name in ("exact", "f1"):
        assert report[f"best_{name}_thresh"] < -5.0
        assert squad_v2_report(scores, report[f"best_{name}_thresh"])[name] == report[f"best_{name}"] == 2 / 3
    assert squad_v2_report(scores, 0.0)["f1"] == 1 / 3


def test_without_questions_there_is_nothing_to_report() -> None:
    scores = score_answers([], [], [])
    assert squad_v2_report(scores, 0.0) == {}
    assert math.isfinite(choose_threshold(scores))


# The reference: one question at a time, as the data set's paper and evaluation page describe it.


def reference_words(text: str) -> list[str]:
    kept = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    for article in ("a", "an", "the"):
        kept = re.sub(rf"(?<!\w){article}(?!\w)", " ", kept)
    return kept.split()


def reference_pair(golds: list[str], answer: str) -> tuple[float, float]:
    golds = [gold for gold in golds if reference_words(gold)] or [""]
    exact, best = 0.0, 0.0
    for gold in golds:
        left, right = reference_words(gold), reference_words(answer)
        exact = max(exact, float(left == right))
        if not left or not right:
            best = max(best, float(left == right))
            continue
        rest, common = list(right), 0
        for word in left:
            if word in rest:
                rest.remove(word)
                common += 1
        if common:
            precision, recall = common / len(right), common / len(left)
            best = max(best, 2 * precision * recall / (precision + recall))
    return exact, best


def reference_report(
    golds: dict[str, list[str]], answers: dict[str, str], null_scores: dict[str, float], threshold: float
) -> dict[str, float]:
    final = {name: "" if null_scores[name] > threshold else answers[name] for name in golds}
    pairs = {name: reference_pair(golds[name], final[name]) for name in golds}
    report = {}
    kinds = {"": list(golds), "HasAns_": [n for n in golds if golds[n]], "NoAns_": [n for n in golds if not golds[n]]}
    for prefix, names in kinds.items():
        for position, metric in enumerate(("exact", "f1")):
            if names:
                report[prefix + metric] = sum(pairs[name][position] for name in names) / len(names)
    raw = {name: reference_pair(golds[name], answers[name]) for name in golds}
    for position, metric in enumerate(("exact", "f1")):
        score = best = float(len(kinds["NoAns_"]))
        least = min(null_scores.values())
        at = least - max(1.0, abs(least))  # where the script says 0
        for name in sorted(golds, key=lambda name: null_scores[name]):
            if golds[name]:
                score += raw[name][position]
            elif answers[name]:
                score -= 1
            if score > best:
                best, at = score, null_scores[name]
        report |= {f"best_{metric}": best / len(golds), f"best_{metric}_thresh": at}
    return report


def assert_same(questions: list[Question], answers: list[str], null_scores: list[float], threshold: float) -> None:
    golds = {q.id: [text for text, _ in q.answers] for q in questions}
    names = [q.id for q in questions]
    expected = reference_report(
        golds, dict(zip(names, answers, strict=True)), dict(zip(names, null_scores, strict=True)), threshold
    )
    report = squad_v2_report(score_answers(questions, answers, null_scores), threshold)
    assert report == pytest.approx(expected, abs=1e-12)


texts = st.lists(st.sampled_from(["the", "a", "An", "x", "X", "y.", "z", "-", "“", "U.S."]), max_size=4).map(" ".join)


@given(st.data(), st.integers(1, 12), st.sampled_from([-math.inf, -1.0, 0.0, 2.5, math.inf]))
@settings(deadline=None)
def test_any_answers_score_as_in_the_reference(data: st.DataObject, size: int, threshold: float) -> None:
    questions = [question(*data.draw(st.lists(texts, max_size=3)), name=str(number)) for number in range(size)]
    answers = [data.draw(texts) for _ in questions]
    null_scores = [float(data.draw(st.integers(-3, 3))) for _ in questions]  # many are equal
    assert_same(questions, answers, null_scores, threshold)


@given(st.data(), st.integers(1, 12))
@settings(deadline=None)
def test_thresholds_applied_reproduce_the_best(data: st.DataObject, size: int) -> None:
    """Whatever the texts, and with many equal null odds."""
    questions = [question(*data.draw(st.lists(texts, max_size=3)), name=str(number)) for number in range(size)]
    answers = [data.draw(texts) for _ in questions]
    odds = st.one_of(st.integers(-3, 3).map(float), st.floats(width=32, allow_nan=False, allow_infinity=False))
    null_scores = [data.draw(odds) for _ in questions]
    scores = score_answers(questions, answers, null_scores)
    for name in VALUES:
        best, at = best_threshold(scores, name)
        assert squad_v2_report(scores, at)[name] == best
        assert squad_v2_report(scores, float(np.float32(at)))[name] == best  # as it is logged
        reached = [squad_v2_report(scores, each)[name] for each in (-math.inf, *null_scores)]
        assert best == pytest.approx(max(reached), abs=1e-12)
    if not scores.has_answer.all():
        kept = float(np.float32(choose_threshold(scores)))
        assert squad_v2_report(scores, kept)["f1"] == best_threshold(scores, "f1")[0]


@given(st.data(), st.integers(1, 12))
@settings(deadline=None)
def test_no_threshold_is_better_than_the_best(data: st.DataObject, size: int) -> None:
    questions = [question(*data.draw(st.lists(texts.filter(normalize_answer), max_size=2))) for _ in range(size)]
    answers = [data.draw(texts.filter(normalize_answer)) for _ in questions]
    null_scores = [float(number) for number in data.draw(st.permutations(range(size)))]
    scores = score_answers(questions, answers, null_scores)
    best, threshold = best_threshold(scores, "f1")
    reached = {at: squad_v2_report(scores, at)["f1"] for at in (-math.inf, *null_scores)}
    assert max(reached.values()) == pytest.approx(best, abs=1e-12)
    assert squad_v2_report(scores, threshold)["f1"] == best


def read_real(shared_data: Path) -> list[Question]:
    content: dict[str, Any] = json.loads((shared_data / "squad_v2" / "dev-v2.0.json").read_text(encoding="utf-8"))
    return [
        Question(
            entry["id"],
            entry["question"],
            paragraph["context"],
            tuple((answer["text"], answer["answer_start"]) for answer in entry["answers"]),
        )
        for article in content["data"]
        for paragraph in article["paragraphs"]
        for entry in paragraph["qas"]
    ]


def synthetic_answer(entry: Question, random_state: random.Random) -> str:
    """Right, nearly right, any words of the paragraph, or none."""
    words = entry.context.split()
    start = random_state.randrange(len(words))
    anything = " ".join(words[start : start + random_state.randint(1, 8)])
    kind = random_state.random()
    if kind < 0.1:
        return ""
    if kind < 0.3 or not entry.answers:
        return anything
    gold = random_state.choice(entry.answers)[0]
    return gold if kind < 0.6 else f"the {gold}, {anything.split()[0]}"


@pytest.mark.shared
@pytest.mark.parametrize("seed", range(3))
def test_real_dev_set_with_synthetic_answers(shared_data: Path, seed: int) -> None:
    questions = read_real(shared_data)
    random_state = random.Random(seed)  # noqa: S311
    answers = [synthetic_answer(entry, random_state) for entry in questions]
    null_scores = [random_state.gauss(0 if entry.answers else 2, 2) for entry in questions]
    assert_same(questions, answers, null_scores, threshold=1.0)


@pytest.mark.shared
def test_answering_nothing_on_the_real_dev_set_gives_the_share_of_unanswerable_questions(shared_data: Path) -> None:
    questions = read_real(shared_data)
    scores = score_answers(questions, ["x"] * len(questions), np.zeros(len(questions)))
    report = squad_v2_report(scores, -math.inf)
    assert (report["exact"], report["f1"]) == pytest.approx((5945 / 11873, 5945 / 11873))
    assert (report["HasAns_f1"], report["NoAns_f1"]) == (0, 1)
