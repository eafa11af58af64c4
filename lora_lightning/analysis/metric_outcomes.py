"""From what a task knows of each example to one number per example whose mean is the metric."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora_lightning.metrics.squad_v2 import GROUPS, VALUES
from lora_lightning.statistics.changed_decisions import largest_f1_loss, largest_macro_f1_loss, largest_matthews_loss
from lora_lightning.statistics.pairing import is_mean_of
from lora_lightning.statistics.pseudo_values import (
    auroc_pseudo_values,
    f1_pseudo_values,
    macro_f1_pseudo_values,
    matthews_pseudo_values,
    pearson_pseudo_values,
    weighted_mean_pseudo_values,
)

Rows = Mapping[str, NDArray[Any]]
Outcomes = NDArray[np.float64] | None


def metric_outcomes(metric: str, rows: Rows, value: float) -> Outcomes:
    """Computes one number per example.

    Args:
        metric: Name of the metric, without a split.
        rows: Columns of the examples.
        value: The metric, of a perplexity its logarithm, which the mean of the numbers must be.

    Returns:
        shape (examples,), float64; `None` if the metric is not known to be a mean over examples, cannot be linearized,
        or is not the mean: then only seeds can be compared.
    """
    ways = [outcomes[metric] for outcomes in (OUTCOMES, ANSWER_OUTCOMES) if metric in outcomes]
    found = next((compute(rows) for needed, compute in ways if rows and needed <= rows.keys()), None)
    if found is None or not len(found) or not is_mean_of(value, found.astype(np.float64)):
        return None
    return found.astype(np.float64)


def metrics_of_examples(columns: Collection[str]) -> set[str]:
    """The metrics that `metric_outcomes` may have numbers for.

    Args:
        columns: Names of the columns of examples.

    Returns:
        Names, without a split; on few examples a metric may be undefined all the same.
    """
    return {
        name
        for outcomes in (OUTCOMES, ANSWER_OUTCOMES)
        for name, (needed, _) in outcomes.items()
        if needed <= set(columns)
    }


def largest_change(metric: str, rows: Rows) -> float | None:
    """Computes by how much one example can change the metric at most, times the number of examples.

    Args:
        metric: Name of the metric, without a split, of which `metric_outcomes` has numbers for the rows.
        rows: Columns of the examples.

    Returns:
        1 for means of numbers from 0 to 1, such as hits; that of a changed decision for F1 and Matthews correlation;
        `None` for metrics without a limit, such as losses.
    """
    if metric in OUTCOMES and OUTCOMES[metric][0] <= rows.keys():
        return LIMITS[metric](rows) if metric in LIMITS else None
    return 1.0


def _hits(rows: Rows) -> Outcomes:
    return np.asarray((rows["label"] == rows["prediction"])[rows["weight"] > 0], dtype=np.float64)


def _in_scope_hits(rows: Rows) -> Outcomes:
    return np.asarray((rows["label"] == rows["prediction"])[~rows["is_out_of_scope"]], dtype=np.float64)


def _losses(rows: Rows) -> Outcomes:
    if "hits" in rows or "has_answer" in rows:  # weights are numbers of tokens, or of windows
        return _log_perplexity(rows)
    return -np.asarray(rows["score"][rows["weight"] > 0], dtype=np.float64)


def _log_perplexity(rows: Rows) -> Outcomes:
    """The mean loss over all tokens or windows, whose numbers are the weights of documents and questions."""
    return weighted_mean_pseudo_values(-rows["score"], rows["weight"])


def _next_token_hits(rows: Rows) -> Outcomes:
    return weighted_mean_pseudo_values(rows["hits"] / np.maximum(rows["weight"], 1), rows["weight"])


def _largest_weight(rows: Rows) -> float:
    weights = rows["weight"][rows["weight"] > 0]
    return float(weights.max() / weights.mean())


def _largest_pair_share(labels: NDArray[np.bool_]) -> float:
    """An example may win or lose all its pairs, which is a share of 1 / positive or 1 / negative examples of them."""
    return float(len(labels) / min(labels.sum(), (~labels).sum()))


def _mean_of_questions(column: str, has_answer: bool | None = None) -> Callable[[Rows], Outcomes]:
    """Takes a column of questions, of all or of those that have an answer or have none."""

    def choose(rows: Rows) -> Outcomes:
        chosen = slice(None) if has_answer is None else rows["has_answer"] == has_answer
        return np.asarray(rows[column][chosen], dtype=np.float64)

    return choose


def _labeled(rows: Rows) -> tuple[NDArray[Any], NDArray[Any]]:
    has_label = rows["weight"] > 0
    return rows["label"][has_label], rows["prediction"][has_label]


def _f1(rows: Rows) -> Outcomes:
    labels, predictions = _labeled(rows)
    return f1_pseudo_values(labels == 1, predictions == 1)


def _errors(rows: Rows) -> NDArray[np.float64]:
    return np.asarray(rows["prediction"], dtype=np.float64) - rows["label"]


def _pearson(rows: Rows) -> Outcomes:
    return pearson_pseudo_values(rows["prediction"].astype(np.float64), rows["label"].astype(np.float64))


CLASSES = {"label", "prediction", "weight"}
OUTCOMES: dict[str, tuple[set[str], Callable[[Rows], Outcomes]]] = {  # the columns that each needs, and its function
    "accuracy": (CLASSES, _hits),
    "exact_match": ({"exact"}, lambda rows: rows["exact"].astype(np.float64)),
    "f1": (CLASSES, _f1),
    "in_scope_accuracy": (CLASSES | {"is_out_of_scope"}, _in_scope_hits),
    "loss": ({"score", "weight"}, _losses),
    "macro_f1": (CLASSES, lambda rows: macro_f1_pseudo_values(*_labeled(rows))),
    "next_token_accuracy": ({"hits", "weight"}, _next_token_hits),
    "perplexity": ({"score", "weight", "hits"}, _log_perplexity),
    "matthews_correlation": (CLASSES, lambda rows: matthews_pseudo_values(*_labeled(rows))),
    "mean_absolute_error": (CLASSES, lambda rows: np.abs(_errors(rows))),
    "mean_squared_error": (CLASSES, lambda rows: _errors(rows) ** 2),
    "out_of_scope_auroc": (
        {"is_out_of_scope", "out_of_scope_score"},
        lambda rows: auroc_pseudo_values(rows["is_out_of_scope"], rows["out_of_scope_score"].astype(np.float64)),
    ),
    "pearson": (CLASSES, _pearson),
}
LIMITS: dict[str, Callable[[Rows], float]] = {
    "accuracy": lambda _: 1.0,
    "exact_match": lambda _: 1.0,
    "f1": lambda rows: largest_f1_loss(*(side == 1 for side in _labeled(rows))),
    "in_scope_accuracy": lambda _: 1.0,
    "macro_f1": lambda rows: largest_macro_f1_loss(*_labeled(rows)),
    "matthews_correlation": lambda rows: largest_matthews_loss(*_labeled(rows)),
    "next_token_accuracy": _largest_weight,
    "out_of_scope_auroc": lambda rows: _largest_pair_share(rows["is_out_of_scope"]),
}
ANSWER_OUTCOMES: dict[str, tuple[set[str], Callable[[Rows], Outcomes]]] = {  # of questions; their f1 is another one
    f"{group}{column}": ({column, "has_answer"}, _mean_of_questions(column, has_answer))
    for group, has_answer in zip(GROUPS, (None, True, False), strict=True)
    for column in VALUES
}
