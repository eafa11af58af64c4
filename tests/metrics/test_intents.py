"""Every value of IntentMetrics against scikit-learn or NumPy in float64, over batches of several sizes."""

import warnings
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support, roc_auc_score, roc_curve
from torch import Tensor
from torch.nn import functional

from lora_lightning.metrics import IntentMetrics, LabelSpace
from lora_lightning.metrics.out_of_scope import ABOVE_EVERY_SCORE

CLASSES = 7  # 0 to 5 are intents, 6 is out of scope where it is a class
DOMAINS = {"home": [0, 3], "bank": [1, 2, 4]}  # intent 5 has no domain
NAMES = [f"intent {index}" for index in range(6)]
WITH_CLASS = LabelSpace([*NAMES, "oos"], 6, True, DOMAINS)
WITHOUT_CLASS = LabelSpace(NAMES, None, True, DOMAINS)
NOTHING_OUTSIDE = LabelSpace(NAMES, None, False, DOMAINS)
SPACES = {"class": WITH_CLASS, "no class": WITHOUT_CLASS, "nothing outside": NOTHING_OUTSIDE}
SIZES = [16] * 12 + [5]  # an odd last batch
THRESHOLD = 0.4

Batch = tuple[Tensor, Tensor]
Array = NDArray[np.float64]


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def rows_of(space: LabelSpace, seed: int = 0, skipped: int | None = None, rows: int = sum(SIZES)) -> Batch:
    """Logits that are often right, and targets of which a fifth are out of scope."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 6, (rows,), generator=generator)
    if skipped is not None:
        target[target == skipped] = (skipped + 1) % 6
    logits = torch.randn(rows, len(space.names), generator=generator)
    logits[torch.arange(rows), target] += 2
    if skipped is not None:
        logits[:, skipped] = -20
    if space.has_out_of_scope:
        outside = torch.rand(rows, generator=generator) < 0.2
        logits[outside] /= 2
        target[outside] = -1 if space.out_of_scope_index is None else space.out_of_scope_index
        if space.out_of_scope_index is not None:
            logits[outside, space.out_of_scope_index] += 1
    return logits, target


def feed(metrics: IntentMetrics, batches: Iterable[Batch]) -> None:
    for logits, target in batches:
        metrics.update(logits, target, functional.cross_entropy(logits.float(), target, ignore_index=-1))


def values_of(space: LabelSpace, rows: Batch, sizes: list[int] = SIZES) -> dict[str, float]:
    metrics = IntentMetrics(space)
    feed(metrics, zip(rows[0].split(sizes), rows[1].split(sizes), strict=True))
    return {name: float(value) for name, value in metrics.compute(THRESHOLD).items()}


def calibration_error(probabilities: Array, target: NDArray[np.int64]) -> float:
    confidence, hit = probabilities.max(axis=1), probabilities.argmax(axis=1) == target
    bins = np.minimum((confidence * 15).astype(int), 14)
    chosen = [bins == number for number in range(15)]
    return sum(abs(hit[rows].mean() - confidence[rows].mean()) * rows.mean() for rows in chosen if rows.any())


def detection(called: NDArray[np.bool_], outside: NDArray[np.bool_], suffix: str = "") -> dict[str, float]:
    values = precision_recall_fscore_support(outside, called, average="binary", zero_division=0)[:3]
    names = ("precision", "recall", "f1")
    return {f"out_of_scope_{name}{suffix}": value for name, value in zip(names, values, strict=True)}


def reference(space: LabelSpace, rows: Batch) -> dict[str, float]:
    """All metrics from their definitions."""
    logits, target = rows[0].double().numpy(), rows[1].numpy()
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    prediction = probabilities.argmax(axis=1)
    labeled = target >= 0
    truth, found = target[labeled], prediction[labeled]
    values = {
        "loss": -np.log(probabilities[labeled, truth]).mean(),
        "accuracy": accuracy_score(truth, found),
        "macro_f1": f1_score(truth, found, average="macro"),  # over classes that occur in truth or prediction
        "weighted_f1": f1_score(truth, found, average="weighted"),
        "calibration_error": calibration_error(probabilities[labeled], truth),
    }
    for name, labels in space.domains.items():
        chosen = np.isin(target, labels)
        if chosen.any():
            values[f"domain_accuracy/{name}"] = (prediction == target)[chosen].mean()
    if not space.has_out_of_scope:
        return values
    index = space.out_of_scope_index
    outside = target == (-1 if index is None else index)
    values["in_scope_accuracy"] = (prediction == target)[~outside].mean()
    if outside.all() or not outside.any():
        return values
    score = 1 - probabilities[:, :6].max(axis=1)
    correct = probabilities[:, :6].argmax(axis=1) == target
    false_positive, true_positive, _ = roc_curve(outside, score, drop_intermediate=False)
    values |= detection(score >= THRESHOLD, outside, "_at_threshold")
    values["in_scope_accuracy_at_threshold"] = (correct & (score < THRESHOLD))[~outside].mean()
    values["out_of_scope_auroc"] = roc_auc_score(outside, score)
    values["out_of_scope_fpr_at_95_tpr"] = false_positive[true_positive >= 0.95].min()
    if index is not None:
        values |= detection(prediction == index, outside)
    return values


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_values_are_those_of_independent_definitions(space: LabelSpace, seed: int) -> None:
    rows = rows_of(space, seed)
    assert values_of(space, rows) == pytest.approx(reference(space, rows), abs=1e-5)
    assert sorted(IntentMetrics(space).names()) == sorted(values_of(space, rows))


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_a_class_that_never_occurs_does_not_pull_macro_f1_down(space: LabelSpace) -> None:
    rows = rows_of(space, skipped=5)
    values = values_of(space, rows)
    assert values == pytest.approx(reference(space, rows), abs=1e-5)
    present = f1_score(*(part[rows[1] >= 0] for part in (rows[1], rows[0].argmax(dim=1))), average=None)
    assert len(present) == len(space.names) - 1
    assert values["macro_f1"] == pytest.approx(present.mean(), abs=1e-5)


def test_a_domain_without_rows_is_left_out() -> None:
    logits, target = rows_of(WITH_CLASS)
    kept = ~torch.isin(target, torch.tensor(DOMAINS["bank"]))
    values = values_of(WITH_CLASS, (logits[kept], target[kept]), [int(kept.sum())])
    assert "domain_accuracy/bank" not in values
    assert values == pytest.approx(reference(WITH_CLASS, (logits[kept], target[kept])), abs=1e-5)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_neither_order_nor_size_of_batches_matters(space: LabelSpace) -> None:
    rows = rows_of(space)
    expected = values_of(space, rows)
    order = torch.randperm(len(rows[1]), generator=torch.Generator().manual_seed(1))
    shuffled = (rows[0][order], rows[1][order])
    assert values_of(space, shuffled) == pytest.approx(expected, abs=1e-5)
    assert values_of(space, shuffled, [1, 100, len(order) - 101]) == pytest.approx(expected, abs=1e-5)
    assert values_of(space, rows, [1] * len(order)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("space", [WITH_CLASS, WITHOUT_CLASS], ids=["class", "no class"])
def test_batches_that_are_all_out_of_scope_leave_the_loss_a_number(space: LabelSpace) -> None:
    logits, target = rows_of(space)
    outside = (target == -1) | (target == 6)
    order = torch.argsort(outside.int(), stable=True)
    rows = (logits[order], target[order])
    sizes = [int((~outside).sum()), 7, int(outside.sum()) - 7]
    if space is WITHOUT_CLASS:  # their mean loss is 0 / 0
        assert functional.cross_entropy(logits[outside], target[outside], ignore_index=-1).isnan()
    assert values_of(space, rows, sizes) == pytest.approx(reference(space, rows), abs=1e-5)
    assert values_of(space, rows, sizes[::-1]) == pytest.approx(reference(space, rows), abs=1e-5)


def test_one_row_alone_is_enough() -> None:
    rows = rows_of(WITH_CLASS, rows=1)
    assert values_of(WITH_CLASS, rows, [1]) == pytest.approx(reference(WITH_CLASS, rows), abs=1e-5)


def test_detection_is_not_reported_where_every_row_is_in_scope() -> None:
    logits, target = rows_of(WITHOUT_CLASS)
    kept = target >= 0
    values = values_of(WITHOUT_CLASS, (logits[kept], target[kept]), [int(kept.sum())])
    assert not [name for name in values if "out_of_scope" in name or "threshold" in name]
    assert values["in_scope_accuracy"] == pytest.approx(values["accuracy"])


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_reset_forgets_the_last_epoch(space: LabelSpace) -> None:
    metrics = IntentMetrics(space)
    feed(metrics, [rows_of(space, seed=1)])
    metrics.compute(THRESHOLD)
    metrics.reset()
    rows = rows_of(space, seed=2)
    feed(metrics, [rows])
    values = {name: float(value) for name, value in metrics.compute(THRESHOLD).items()}
    assert values == pytest.approx(reference(space, rows), abs=1e-5)


def test_half_precision_logits_are_measured_in_float32() -> None:
    logits, target = rows_of(WITH_CLASS)
    rows = (logits.bfloat16(), target)
    assert values_of(WITH_CLASS, rows) == pytest.approx(reference(WITH_CLASS, rows), abs=1e-5)


def test_updates_keep_no_graph() -> None:
    logits, target = rows_of(WITH_CLASS)
    metrics = IntentMetrics(WITH_CLASS)
    feed(metrics, [(logits.requires_grad_(), target)])
    assert not any(value.requires_grad for value in metrics.compute(THRESHOLD).values())


@pytest.mark.parametrize("space", [WITH_CLASS, WITHOUT_CLASS], ids=["class", "no class"])
def test_chosen_threshold_is_the_best_for_all_rows(space: LabelSpace) -> None:
    rows = rows_of(space)
    metrics = IntentMetrics(space)
    feed(metrics, zip(rows[0].split(SIZES), rows[1].split(SIZES), strict=True))
    outside = (rows[1] == -1) | (rows[1] == 6)

    def accuracy(threshold: float) -> float:
        values = metrics.compute(threshold)
        found = values["out_of_scope_recall_at_threshold"] * outside.sum()
        return float(found + values["in_scope_accuracy_at_threshold"] * (~outside).sum())

    chosen = metrics.choose_threshold()
    assert 0 < chosen < 1
    assert accuracy(chosen) > accuracy(float("inf"))
    assert accuracy(chosen) >= max(accuracy(float(candidate)) for candidate in torch.linspace(0, 1, 101)) - 1e-3


def test_without_out_of_scope_rows_nothing_is_called_out_of_scope() -> None:
    metrics = IntentMetrics(NOTHING_OUTSIDE)
    feed(metrics, [rows_of(NOTHING_OUTSIDE)])
    assert metrics.choose_threshold() == ABOVE_EVERY_SCORE
    metrics = IntentMetrics(WITHOUT_CLASS)
    logits, target = rows_of(WITHOUT_CLASS)
    feed(metrics, [(logits[target >= 0], target[target >= 0])])
    assert metrics.choose_threshold() == ABOVE_EVERY_SCORE


def test_metrics_are_no_part_of_a_checkpoint() -> None:
    assert IntentMetrics(WITH_CLASS).state_dict() == {}
