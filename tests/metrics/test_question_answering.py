"""Spans against a loop over all pairs, questions against one window at a time, processes against one process."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lora_lightning.metrics.question_answering import (
    AnswerCandidates,
    Candidates,
    QuestionAnsweringMetrics,
    best_of_each_question,
    best_spans,
    sort_by_question,
)
from lora_lightning.metrics.squad_v2 import Question


def all_spans(start: list[float], end: list[float], allowed: list[bool], longest: int) -> list[tuple[float, int, int]]:
    """Every allowed span with its score, the best first."""
    tokens = [token for token, yes in enumerate(allowed) if yes]
    spans = [(start[s] + end[e], s, e) for s in tokens for e in tokens if 0 <= e - s < longest]
    return sorted(spans, key=lambda span: -span[0])


@given(st.data(), st.integers(1, 4), st.integers(1, 12), st.integers(1, 15), st.integers(1, 6))
@settings(deadline=None, max_examples=200)
def test_spans_are_the_best_of_all_pairs(
    data: st.DataObject, windows: int, tokens: int, longest: int, n_best: int
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
    start, end = torch.randn(2, windows, tokens, generator=generator)
    allowed = torch.zeros(windows, tokens, dtype=torch.bool)
    for window in range(windows):
        first = data.draw(st.integers(0, tokens - 1))
        allowed[window, first : data.draw(st.integers(first + 1, tokens))] = True
    found = best_spans(start, end, allowed, longest, n_best)
    assert found.end.max() < tokens
    for window in range(windows):
        expected = all_spans(start[window].tolist(), end[window].tolist(), allowed[window].tolist(), longest)[:n_best]
        scores = found.score[window].tolist()
        assert [score for score in scores if score > -math.inf] == pytest.approx([s[0] for s in expected], abs=1e-6)
        spans = list(zip(found.start[window].tolist(), found.end[window].tolist(), strict=True))
        assert spans[: len(expected)] == [span[1:] for span in expected]


def test_half_precision_logits_are_added_in_float32() -> None:
    start = torch.tensor([[256.0, 0.0]], dtype=torch.bfloat16)
    end = torch.tensor([[0.0, 1.0]], dtype=torch.bfloat16)  # 257 is no bfloat16
    found = best_spans(start, end, torch.ones(1, 2, dtype=torch.bool), 5, 1)
    assert found.score.item() == 257
    assert found.score.dtype == torch.float32


def candidates(*rows: tuple[int, int, int, float, float]) -> Candidates:
    question, start, end, score, null_score = zip(*rows, strict=True)
    return Candidates(np.array(question), np.array(start), np.array(end), np.float32(score), np.float32(null_score))


def as_rows(found: Candidates) -> list[tuple[float, ...]]:
    return [tuple(float(value) for value in row) for row in zip(*found, strict=True)]


def test_windows_of_a_question_come_together() -> None:
    found = candidates(
        (4, 10, 12, 1.0, -1.0), (2, 0, 3, 5.0, 0.0), (4, 30, 33, 2.0, 0.5), (4, 10, 12, 1.5, -3.0), (2, 1, 3, 5.0, 1.0)
    )
    ranked = [(2, 0, 3, 5.0, 0.0), (2, 1, 3, 5.0, 0.0), (4, 30, 33, 2.0, -3.0), (4, 10, 12, 1.5, -3.0)]
    assert as_rows(sort_by_question(found)) == ranked
    assert as_rows(best_of_each_question(found)) == [ranked[0], ranked[2]]


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 5), min_size=1, max_size=30), st.randoms())
@settings(deadline=None, max_examples=150)
def test_neither_order_nor_repetition_of_windows_matters(rows: Any, random_state: random.Random) -> None:
    once = as_rows(sort_by_question(candidates(*rows)))
    again = rows + random_state.choices(rows, k=3)
    random_state.shuffle(again)
    assert as_rows(sort_by_question(candidates(*again))) == once
    by_question: dict[int, Any] = {}
    for question, start, end, score, null_score in rows:
        spans, nulls = by_question.setdefault(question, ({}, []))
        spans[start, end] = max(score, spans.get((start, end), score))
        nulls.append(null_score)
    expected = [
        (question, start, end, score, min(nulls))
        for question, (spans, nulls) in sorted(by_question.items())
        for (start, end), score in sorted(spans.items(), key=lambda item: (-item[1], item[0]))
    ]
    assert once == expected


QUESTIONS = [
    Question("a", "?", "one two three", (("two", 4),)),
    Question("b", "?", " four five "),
    Question("c", "?", "six seven", (("six", 0),)),
]


def test_scores_of_a_split_by_hand() -> None:
    metrics = QuestionAnsweringMetrics()
    metrics.candidates.update(*(torch.tensor(part) for part in ([2, 0], [4, 0], [9, 3], [1.0, 2.0], [3.0, 0.0])))
    metrics.candidates.update(*(torch.tensor(part) for part in ([0], [3], [7], [2.5], [-1.0])))
    scores = metrics.score(QUESTIONS)  # the second has not been seen
    assert scores.exact.tolist() == [1, 0]
    assert scores.has_answer.tolist() == [True, True]
    assert scores.null_score.tolist() == [-3.5, 2.0]
    metrics.reset()
    metrics.candidates.update(*(torch.tensor(part) for part in ([1], [0], [11], [1.0], [2.0])))
    scores = metrics.score(QUESTIONS)
    assert (scores.has_answer.tolist(), scores.answered.tolist(), scores.null_score.tolist()) == ([False], [True], [1])


def test_metrics_are_no_part_of_a_checkpoint_and_keep_no_graph() -> None:
    metrics = QuestionAnsweringMetrics()
    score = torch.ones(1, requires_grad=True)
    metrics.candidates.update(*(torch.tensor(part) for part in ([1], [0], [11])), score, score * 2)
    assert metrics.state_dict() == {}
    assert not any(tensor.requires_grad for tensor in metrics.candidates.score)


def split_windows(rank_of_process: int, processes: int) -> list[list[Tensor]]:
    """Batches of windows; the three windows of a question are dealt to different processes."""
    generator = torch.Generator().manual_seed(0)
    question = torch.arange(40).repeat_interleave(3)
    start = torch.randint(0, 50, (120,), generator=generator)
    end = start + torch.randint(1, 9, (120,), generator=generator)
    score, null_score = torch.randn(2, 120, generator=generator)
    columns = [column[rank_of_process::processes] for column in (question, start, end, score, null_score)]
    return [list(batch) for batch in zip(*(column.split(7) for column in columns), strict=True)]


def answers_of(batches: list[list[Tensor]]) -> list[tuple[float, ...]]:
    metric = AnswerCandidates()
    for batch in batches:
        metric.update(*batch)
    return as_rows(metric.compute())


def in_process(number: int, processes: int, meeting_place: Path, expected: list[tuple[float, ...]]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_place}", rank=number, world_size=processes
    )
    assert answers_of(split_windows(number, processes)) == expected
    torch.distributed.destroy_process_group()


def test_two_processes_answer_every_question_once(tmp_path: Path) -> None:
    expected = answers_of(split_windows(0, 1))
    assert [row[0] for row in expected] == list(range(40))
    torch.multiprocessing.spawn(in_process, args=(2, tmp_path / "meet", expected), nprocs=2)
