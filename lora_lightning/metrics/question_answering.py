"""From logits of windows to one answer per question, over all processes; `metrics.squad_v2` scores the answers."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from lora_lightning.metrics.all_rows import AllRowsMetric, WeightedMean
from lora_lightning.metrics.squad_v2 import Question, QuestionScores, score_answers


class TokenSpans(NamedTuple):
    """The best spans of each window; every tensor has shape (windows, n_best), the best span first.

    Attributes:
        start: int64, column of the first token.
        end: int64, column of the last token.
        score: float32, start logit plus end logit; minus infinity where a window has fewer spans.
    """

    start: Tensor
    end: Tensor
    score: Tensor


class Candidates(NamedTuple):
    """Answers proposed by windows; every array has shape (candidates,).

    Attributes:
        question: int64, number of the question.
        start: int64, first character in its context.
        end: int64, one past the last character.
        score: floating, start logit plus end logit.
        null_score: floating, start logit plus end logit of "no answer" in the same window.
    """

    question: NDArray[np.int64]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    score: NDArray[np.floating]
    null_score: NDArray[np.floating]

    def take(self, places: NDArray[Any] | slice) -> "Candidates":
        """Some of the candidates.

        Args:
            places: A slice, positions, or (candidates,) bool.

        Returns:
            Those candidates.
        """
        question, start, end, score, null_score = self
        return Candidates(question[places], start[places], end[places], score[places], null_score[places])


def best_spans(
    start_logits: Tensor, end_logits: Tensor, in_context: Tensor, max_answer_length: int, n_best: int
) -> TokenSpans:
    """Finds the spans with the highest start logit plus end logit, exactly: every allowed span is looked at.

    Args:
        start_logits: (windows, tokens), any floating dtype.
        end_logits: (windows, tokens), any floating dtype.
        in_context: (windows, tokens), bool; where an answer may start and end.
        max_answer_length: Tokens of an answer at most.
        n_best: Spans to find in each window.

    Returns:
        The spans of each window; fewer than `n_best` where the batch is too short to have as many.
    """
    longest = min(max_answer_length, start_logits.shape[1])
    start = start_logits.float().masked_fill(~in_context, -torch.inf)
    end = end_logits.float().masked_fill(~in_context, -torch.inf)
    # [window, first token, further tokens]: an end lies at most `longest` - 1 tokens after its start.
    ends = functional.pad(end, (0, longest - 1), value=-torch.inf).unfold(1, longest, 1)
    scores = (start[:, :, None] + ends).flatten(1)
    top = scores.topk(min(n_best, scores.shape[1]), dim=1)
    first = top.indices // longest
    last = (first + top.indices % longest).clamp(max=start_logits.shape[1] - 1)  # beyond only where there is no span
    return TokenSpans(first, last, top.values)


def sort_by_question(candidates: Candidates) -> Candidates:
    """Puts the windows of each question together.

    Args:
        candidates: In any order; a window may occur more than once.

    Returns:
        Different spans by question, the best of a question first, with `null_score` its lowest over all windows: the
        window that most likely holds the answer decides whether there is one (as in BERT's own evaluation).
    """
    ordered = candidates.take(np.lexsort((candidates.end, candidates.start, -candidates.score, candidates.question)))
    _, first, number = np.unique(ordered.question, return_index=True, return_inverse=True)
    lowest = np.minimum.reduceat(ordered.null_score, first)[number]
    spans = np.stack([ordered.question, ordered.start, ordered.end])
    _, kept = np.unique(spans, axis=1, return_index=True)  # the first, so the best, of each
    return ordered._replace(null_score=lowest).take(np.sort(kept))


def best_of_each_question(candidates: Candidates) -> Candidates:
    """The highest-scoring span of each question.

    Args:
        candidates: In any order.

    Returns:
        One candidate a question, by number of the question; `null_score` is its lowest over all windows.
    """
    ranked = sort_by_question(candidates)
    return ranked.take(np.unique(ranked.question, return_index=True)[1])


class AnswerCandidates(AllRowsMetric):
    """Collects each window's candidate; processes may hold different windows of one question.

    `update` takes the columns of `Candidates` as tensors, (windows,) each; `compute` returns the best candidate of each
    question that any process saw.
    """

    def __init__(self) -> None:
        super().__init__(_best_of_columns, CANDIDATE_DTYPES)


CANDIDATE_DTYPES = {
    "question": torch.int64,
    "start": torch.int64,
    "end": torch.int64,
    "score": torch.float32,
    "null_score": torch.float32,
}


def _best_of_columns(*columns: NDArray[Any]) -> Candidates:
    candidates = Candidates(*columns)
    return best_of_each_question(candidates) if len(candidates.question) else candidates


class QuestionAnsweringMetrics(nn.Module):
    """Loss and answers over one split."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = WeightedMean()
        self.candidates = AnswerCandidates()

    def reset(self) -> None:
        """Forgets every batch."""
        self.loss.reset()
        self.candidates.reset()

    def score(self, questions: list[Question]) -> QuestionScores:
        """Scores the best answer to each question, whatever its null score; collective under several processes.

        Args:
            questions: All of the split, by number.

        Returns:
            Scores of the questions of which a window was seen, in the split's order. `null_score` is the null score
            minus the answer's, the null difference of BERT's evaluation.
        """
        return score_answers(*self._best_answers(questions))

    def answers(self, questions: list[Question], threshold: float) -> list[str]:
        """The answer to each question; collective under several processes.

        Args:
            questions: All of the split, by number.
            threshold: Questions with a null score above it are left unanswered.

        Returns:
            The text that a user would get, empty for no answer, in the order of `score`.
        """
        _, texts, null_scores = self._best_answers(questions)
        return ["" if null > threshold else text for text, null in zip(texts, null_scores.tolist(), strict=True)]

    def _best_answers(self, questions: list[Question]) -> tuple[list[Question], list[str], NDArray[np.float32]]:
        best = self.candidates.compute()
        asked = [questions[number] for number in best.question]
        spans = zip(asked, best.start, best.end, strict=True)
        texts = [answer_text(question.context, start, end) for question, start, end in spans]
        # In float32, in which thresholds on them are logged and kept: float64 neighbours would be rounded across one.
        return asked, texts, (best.null_score - best.score).astype(np.float32)


def answer_text(context: str, start: int, end: int) -> str:
    """The characters from `start` up to `end`, without space around them."""
    return context[start:end].strip()
