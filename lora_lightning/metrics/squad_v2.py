"""Exact match and F1 of SQuAD 2.0 for given answers (Rajpurkar et al. 2018, arXiv 1806.03822)."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
VALUES: tuple[Literal["exact", "f1"], ...] = ("exact", "f1")
GROUPS = ("", "HasAns_", "NoAns_")
REPORTED = [f"{group}{name}" for group in GROUPS for name in VALUES]
REPORTED += [name for value in VALUES for name in (f"best_{value}", f"best_{value}_thresh")]

FLOAT32_MAX = float(np.finfo(np.float32).max)

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """A question about a paragraph.

    Attributes:
        id: The data set's own name for it.
        question: Its text.
        context: The paragraph.
        answers: (text, first character in the context) of each right answer; empty where there is none.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class QuestionScores:
    """How well each question was answered; every array has shape (questions,).

    Attributes:
        has_answer: bool, whether the question has a right answer.
        answered: bool, whether the answer given has any text.
        exact: float64, 0 or 1, of the answer given.
        f1: float64, in [0, 1], of the answer given.
        silent: float64, 0 or 1: exact match and F1 of the empty answer.
        null_score: float64, how much more the model believes in no answer than in the one given; any real number.
    """

    has_answer: NDArray[np.bool_]
    answered: NDArray[np.bool_]
    exact: Array
    f1: Array
    silent: Array
    null_score: Array


def normalize_answer(text: str) -> str:
    """Lower-cases and strips an answer of what does not count: ASCII punctuation, English articles, extra space.

    Args:
        text: Any text.

    Returns:
        The words that count, with single spaces between them.
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def f1_score(gold: str, answer: str) -> float:
    """Harmonic mean of precision and recall over two bags of words.

    Args:
        gold: The right answer, normalized.
        answer: The answer given, normalized.

    Returns:
        In [0, 1]; where either has no word, 1 if both have none, else 0.
    """
    gold_words, words = gold.split(), answer.split()
    if not gold_words or not words:
        return float(gold_words == words)
    shared = sum((Counter(gold_words) & Counter(words)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(words), shared / len(gold_words)
    return 2 * precision * recall / (precision + recall)


def score_answers(
    questions: Sequence[Question], answers: Sequence[str], null_scores: Sequence[float] | NDArray[np.floating]
) -> QuestionScores:
    """Compares each answer with the right ones; the best of them counts.

    Args:
        questions: What was asked.
        answers: The text given to each, empty for "there is no answer".
        null_scores: (questions,), how much more the model believes in no answer.

    Returns:
        The scores of each question.
    """
    rows: list[tuple[float, float, float]] = []
    for question, answer in zip(questions, answers, strict=True):
        # A right answer without a word, such as "the", can't be matched; without any other, silence is right.
        golds = {normalize_answer(text) for text, _ in question.answers} - {""} or {""}
        given = normalize_answer(answer)
        rows.append((float(given in golds), max(f1_score(gold, given) for gold in golds), float("" in golds)))
    exact, f1, silent = np.array(rows, dtype=np.float64).reshape(-1, 3).T
    return QuestionScores(
        has_answer=np.array([bool(question.answers) for question in questions], dtype=np.bool_),
        answered=np.array([bool(answer) for answer in answers], dtype=np.bool_),
        exact=exact,
        f1=f1,
        silent=silent,
        null_score=np.asarray(null_scores, dtype=np.float64),
    )


def best_threshold(scores: QuestionScores, by: Literal["exact", "f1"]) -> tuple[float, float]:
    """Finds the threshold on the null score that maximizes the mean score.

    Questions are taken in the order of their null scores and answered one after another. Of equally good thresholds
    the lowest counts.

    This is the threshold to apply; `official_best` has the value that the official script prints, which no threshold
    may reach.

    Args:
        scores: At least one question.
        by: What to maximize.

    Returns:
        The best mean score, in [0, 1]; and its threshold, finite: questions whose null score is above it are left
        unanswered. It is one of the null scores, or below all of them if answering nothing is best. Applied with
        `scores_at`, it gives exactly this score.
    """
    order = np.argsort(scores.null_score, kind="stable")
    null_score = scores.null_score[order]
    total = np.concatenate([[0.0], np.cumsum((getattr(scores, by) - scores.silent)[order])])
    can_cut = np.concatenate([[True], null_score[1:] != null_score[:-1], [True]])
    best = int(np.where(can_cut, total, -np.inf).argmax())
    threshold = float(null_score[best - 1]) if best else _below(null_score)
    return float(scores_at(scores, threshold, by).mean()), threshold


def official_best(scores: QuestionScores, by: Literal["exact", "f1"]) -> tuple[float, float]:
    """The best mean score and its threshold as the official script counts them.

    It differs from `best_threshold`: it cuts between questions of the same null score, which no threshold can, and
    counts an answer without a word that counts, such as "the", as an answer, although it scores like silence.

    Args:
        scores: At least one question.
        by: What to maximize.

    Returns:
        The best mean score, in [0, 1], and its threshold; if answering nothing is best, a finite number below all null
        scores, where the script says 0, which suits the probabilities that it expects but not any real number.
    """
    order = np.argsort(scores.null_score, kind="stable")
    gain = np.where(scores.has_answer, getattr(scores, by), -scores.answered.astype(np.float64))[order]
    total = np.cumsum(np.concatenate([[np.count_nonzero(~scores.has_answer)], gain]))  # adds in the script's order
    best = int(total.argmax())
    threshold = float(scores.null_score[order[best - 1]]) if best else _below(scores.null_score)
    return float(total[best]) / len(gain), threshold


def scores_at(scores: QuestionScores, threshold: float, by: Literal["exact", "f1"]) -> Array:
    """The score of each question if those with a null score above a threshold are left unanswered.

    Args:
        scores: Any number of questions.
        threshold: Any number; infinity answers all.
        by: Which score.

    Returns:
        (questions,), float64, in [0, 1].
    """
    applied: Array = np.where(scores.null_score > threshold, scores.silent, getattr(scores, by))
    return applied


def _below(null_scores: Array) -> float:
    """A finite number below all finite null scores, by a margin that float32 and rounding respect."""
    least = min(null_scores[np.isfinite(null_scores)], default=0.0)
    return max(float(least - max(1.0, abs(least))), -FLOAT32_MAX)


def choose_threshold(scores: QuestionScores) -> float:
    """The null score above which to leave a question unanswered, chosen by F1; on validation data, to apply to test.

    Args:
        scores: Any number of questions.

    Returns:
        Finite. Halfway from `best_threshold` to the next null score above it, so that the same questions are answered
        and none is so near that rounding, which differs with the batch size, could move it across; above the greatest
        if answering every question is best. The greatest float32 if every question has an answer, as in SQuAD 1.1.
    """
    if scores.has_answer.all():
        return FLOAT32_MAX
    threshold = best_threshold(scores, "f1")[1]
    above = scores.null_score[(scores.null_score > threshold) & np.isfinite(scores.null_score)]
    next_above = float(above.min()) if above.size else threshold + max(1.0, abs(threshold))
    halfway = float(np.float32(threshold / 2 + next_above / 2))  # tasks keep it in float32
    return halfway if threshold <= halfway < next_above else threshold


def squad_v2_report(scores: QuestionScores, threshold: float) -> dict[str, float]:
    """Every value the official script prints, under its names.

    Args:
        scores: Any number of questions.
        threshold: Questions with a null score above it are left unanswered; infinity answers all.

    Returns:
        Means in [0, 1] (the official script prints percent) over all questions, over those with an answer (`HasAns_`)
        and over those without (`NoAns_`), if there are such; the best that any threshold reaches (`best_`), which
        means something only if some have an answer and some have none, and its threshold. Empty without questions.
    """
    if not len(scores.null_score):
        return {}
    values: dict[str, float] = {}
    applied = {name: scores_at(scores, threshold, name) for name in VALUES}
    groups = (np.ones_like(scores.has_answer), scores.has_answer, ~scores.has_answer)
    for prefix, chosen in zip(GROUPS, groups, strict=True):
        if chosen.any():
            values |= {f"{prefix}{name}": float(value[chosen].mean()) for name, value in applied.items()}
    for name in VALUES:
        values[f"best_{name}"], values[f"best_{name}_thresh"] = official_best(scores, name)
    return values
