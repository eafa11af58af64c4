"""What each example of a split contributes to the metrics of its task: a text, a document, or a question."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from lora_lightning.metrics.classification import scores_and_decisions
from lora_lightning.metrics.label_space import MULTI_LABEL, OUT_OF_SCOPE_TARGET
from lora_lightning.metrics.out_of_scope import out_of_scope_score
from lora_lightning.metrics.squad_v2 import VALUES
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.causal_language_modeling import CausalLanguageModelingTask
from lora_lightning.tasks.next_token import IGNORED
from lora_lightning.tasks.question_answering import QuestionAnsweringTask, window_losses
from lora_lightning.tasks.sequence_classification import SequenceClassificationTask

INDEX, SCORE, WEIGHT, HITS = "index", "score", "weight", "hits"
DOCUMENT, QUESTION = "document", "question"  # in a batch
HAS_ANSWER = "has_answer"

Columns = dict[str, Tensor]


def outcome_columns(task: AdaptationTask) -> set[str]:
    """The columns that `split_rows` returns for a task, known before its model is built.

    Args:
        task: Knows its labels.

    Returns:
        Names; those of a language model if its data module numbers documents.
    """
    if isinstance(task, QuestionAnsweringTask):
        return {INDEX, SCORE, WEIGHT, *VALUES, HAS_ANSWER}
    if isinstance(task, CausalLanguageModelingTask):
        return {INDEX, SCORE, WEIGHT, HITS}
    if not isinstance(task, SequenceClassificationTask):
        return {INDEX, SCORE, WEIGHT}
    if task.labels.problem_type == MULTI_LABEL:
        return {INDEX, SCORE, WEIGHT, "exact"}
    scope = {"is_out_of_scope", "out_of_scope_score"} if task.labels.has_out_of_scope else set()
    return {INDEX, SCORE, WEIGHT, "label", "prediction", *scope}


def batch_rows(task: AdaptationTask, batch: dict[str, Tensor], found: Any = None) -> Columns:
    """Returns what the rows of a batch contribute to the metrics.

    Args:
        task: The task, in evaluation mode.
        batch: A batch with labels.
        found: What `task.evaluate` returned for the batch; `None` evaluates it here.

    Returns:
        Columns of shape (examples,), on the CPU; for a language model sums over the labels that the batch has of each
        document, for questions the windows. Empty if examples are not known, as documents of a data module that does
        not number them.
    """
    if isinstance(task, QuestionAnsweringTask):
        start, end, _ = task.evaluate(batch) if found is None else found
        scores = -window_losses(batch, start, end).double()
        return _on_cpu({INDEX: batch[QUESTION], SCORE: scores, WEIGHT: torch.ones_like(scores)})
    if isinstance(task, CausalLanguageModelingTask):
        return _document_rows(task, batch, found) if DOCUMENT in batch else {}
    found = task.evaluate(batch) if found is None else found
    if isinstance(task, SequenceClassificationTask):
        return _on_cpu(_classification_rows(task, batch, found[0]))
    outputs = task.outputs(batch, found)
    if outputs.distribution != "number" or outputs.scores is None:
        return {}
    weights = torch.ones_like(outputs.scores)
    return _on_cpu({INDEX: batch[INDEX], SCORE: outputs.scores.float(), WEIGHT: weights})


def summed_rows(task: AdaptationTask, rows: Columns) -> tuple[Tensor, Tensor, int] | None:
    """What `add_to_metrics` of a language model takes instead of its features, so that the head does not run again.

    Args:
        task: Its device counts.
        rows: Of a batch, from `batch_rows`.

    Returns:
        Loss, hits and number of labels, summed over the batch; `None` for rows of anything else.
    """
    if HITS not in rows:
        return None
    loss, hits = ((sign * rows[name].sum()).float().to(task.device) for name, sign in ((SCORE, -1), (HITS, 1)))
    return loss, hits, int(rows[WEIGHT].sum())


def split_rows(task: AdaptationTask, datamodule: Any, split: str, batches: Sequence[Columns]) -> Columns:
    """Returns what the examples of a split contribute to the metrics, after its last batch.

    Args:
        task: The task, whose metrics still hold the split.
        datamodule: Its data.
        split: Its name.
        batches: The rows of each batch.

    Returns:
        Columns of shape (examples,), on the CPU; empty if there are no examples.
    """
    if isinstance(task, QuestionAnsweringTask):
        return _question_rows(task, split, batches)
    if not batches or not batches[0]:
        return {}
    columns = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    if isinstance(task, CausalLanguageModelingTask):
        return _sum_by_document(columns, datamodule.document_count(split))
    return columns


def _on_cpu(columns: Columns) -> Columns:
    return {name: column.cpu() for name, column in columns.items()}


def _classification_rows(task: SequenceClassificationTask, batch: dict[str, Tensor], logits: Tensor) -> Columns:
    outputs, space, labels = task.outputs(batch, (logits, logits.sum())), task.labels, batch["labels"]
    scores, weights = cast("Tensor", outputs.scores), cast("Tensor", outputs.weights)
    rows = {INDEX: batch[INDEX], SCORE: scores.float(), WEIGHT: weights.float()}
    if outputs.distribution == "bernoulli":
        decisions = scores_and_decisions(logits, MULTI_LABEL)[1]  # of `exact_match`, which no threshold moves
        return rows | {"exact": (decisions == labels).all(dim=-1)}
    if outputs.distribution == "number":
        return rows | {"label": labels.float(), "prediction": logits.float().squeeze(-1)}
    rows |= {"label": labels, "prediction": logits.float().argmax(dim=-1)}
    if space.has_out_of_scope:
        index = space.out_of_scope_index
        rows["is_out_of_scope"] = labels == (OUT_OF_SCOPE_TARGET if index is None else index)
        rows["out_of_scope_score"] = out_of_scope_score(logits.float(), index)
    return rows


def _document_rows(task: CausalLanguageModelingTask, batch: dict[str, Tensor], found: Any) -> Columns:
    losses, hits = task.next_token.score_labels(batch, task.evaluate(batch) if found is None else found)
    documents = batch[DOCUMENT][batch["labels"] != IGNORED].cpu().numpy()
    numbers, places = map(torch.from_numpy, np.unique(documents, return_inverse=True))
    scores, ones = -losses.cpu().double(), torch.ones(len(losses), dtype=torch.float64)
    summed = _sums({INDEX: places, SCORE: scores, WEIGHT: ones, HITS: hits.cpu().double()}, len(numbers))
    return {**summed, INDEX: numbers}


def _question_rows(task: QuestionAnsweringTask, split: str, batches: Sequence[Columns]) -> Columns:
    """The answer of each question, and the mean score of its windows, whose number is its weight."""
    found = {name: torch.from_numpy(column) for name, column in task.question_rows(split).items()}
    if not batches:
        return found
    columns = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    places = torch.searchsorted(found[INDEX], columns[INDEX])
    return found | {**_sum_by_document({**columns, INDEX: places}, len(found[INDEX])), INDEX: found[INDEX]}


def _sum_by_document(columns: Columns, count: int) -> Columns:
    """Adds up what batches have of each document; a document without a label has weight 0."""
    found = _sums(columns, count)
    return {**found, SCORE: found[SCORE] / found[WEIGHT].clamp(min=1)}


def _sums(columns: Columns, count: int) -> Columns:
    zeros = torch.zeros(count, dtype=torch.float64)
    sums = {name: zeros.index_add(0, columns[INDEX], column) for name, column in columns.items() if name != INDEX}
    return {INDEX: torch.arange(count), **sums}
