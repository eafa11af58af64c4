"""Every named metric against scikit-learn or NumPy in float64, over batches of several sizes."""

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
)
from torch import Tensor
from torch.nn import functional

from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics import (
    MULTI_LABEL,
    REGRESSION,
    ClassificationMetrics,
    IntentMetrics,
    LabelSpace,
    classification_metrics,
)
from lora_lightning.metrics.matthews import MatthewsCorrelation

SIZES = [5, 1, 40, 17]
ROWS = sum(SIZES)


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*will save all targets and predictions.*")
        yield


def values_of(space: LabelSpace, logits: Tensor, target: Tensor, losses: list[float] | None = None) -> dict[str, float]:
    metrics = ClassificationMetrics(space)
    batches = zip(logits.split(SIZES), target.split(SIZES), losses or [0.0] * len(SIZES), strict=True)
    for part, truth, loss in batches:
        metrics.update(part, truth, torch.tensor(loss))
    return {name: float(value) for name, value in metrics.compute().items()}


def test_two_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 2, (ROWS,), generator=generator)
    logits = torch.randn(ROWS, 2, generator=generator)
    logits[torch.arange(ROWS), target] += 1
    found = logits.argmax(dim=1)
    values = values_of(LabelSpace(["no", "yes"]), logits, target)
    assert values.pop("calibration_error") == pytest.approx(calibration_error(logits, target), abs=1e-6)
    assert values == pytest.approx(
        {
            "loss": 0,
            "accuracy": accuracy_score(target, found),
            "macro_f1": f1_score(target, found, average="macro"),
            "weighted_f1": f1_score(target, found, average="weighted"),
            "matthews_correlation": matthews_corrcoef(target, found),
            "f1": f1_score(target, found),
            "precision": precision_score(target, found),
            "recall": recall_score(target, found),
        },
        abs=1e-6,
    )


def calibration_error(logits: Tensor, target: Tensor) -> float:
    probabilities = functional.softmax(logits.double(), dim=1)
    confidence, found = probabilities.max(dim=1)
    bins = (confidence * 15).long().clamp(max=14)
    chosen = [bins == number for number in range(15)]
    gaps = [abs(float((found == target)[b].double().mean() - confidence[b].mean())) for b in chosen if b.any()]
    shares = [float(b.double().mean()) for b in chosen if b.any()]
    return sum(gap * share for gap, share in zip(gaps, shares, strict=True))


def test_several_labels_a_text() -> None:
    generator = torch.Generator().manual_seed(1)
    target = (torch.rand(ROWS, 4, generator=generator) < 0.3).float()
    logits = torch.randn(ROWS, 4, generator=generator) + 2 * target - 1
    found = (logits >= 0).long()
    truth = target.long()
    values = values_of(LabelSpace(list("abcd"), problem_type=MULTI_LABEL), logits, target)
    assert values == pytest.approx(
        {
            "loss": 0,
            "micro_f1": f1_score(truth, found, average="micro"),
            "macro_f1": f1_score(truth, found, average="macro"),
            "exact_match": accuracy_score(truth, found),
            "mean_average_precision": average_precision_score(truth, logits, average="macro"),
        },
        abs=1e-6,
    )


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_regression(offset: float) -> None:
    generator = torch.Generator().manual_seed(2)
    target = (torch.rand(ROWS, generator=generator) * 5).round(decimals=1)  # with ties
    logits = target[:, None] + torch.randn(ROWS, 1, generator=generator).round(decimals=1) + offset
    truth, found = target.double().numpy(), logits[:, 0].double().numpy()
    values = values_of(LabelSpace(["score"], problem_type=REGRESSION), logits, target)
    assert values == pytest.approx(
        {
            "loss": 0,
            "pearson": np.corrcoef(truth, found)[0, 1],
            "spearman": np.corrcoef(mean_ranks(truth), mean_ranks(found))[0, 1],
            "mean_squared_error": ((truth - found) ** 2).mean(),
            "mean_absolute_error": np.abs(truth - found).mean(),
        },
        rel=1e-4,
    )


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    below = (values[:, None] > values).sum(axis=1)
    return below + ((values[:, None] == values).sum(axis=1) + 1) / 2


def test_loss_weighs_batches_by_their_rows() -> None:
    losses = [1.0, 2.0, 3.0, 4.0]
    space = LabelSpace(["score"], problem_type=REGRESSION, metrics=["mean_squared_error"])
    values = values_of(space, torch.zeros(ROWS, 1), torch.ones(ROWS), losses)
    assert values == pytest.approx({"loss": np.average(losses, weights=SIZES), "mean_squared_error": 1})


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("constant", ["prediction", "truth"])
def test_correlation_with_a_constant_is_zero(classes: int, constant: str) -> None:
    varied, same = torch.arange(99) % 7 % classes, torch.ones(99, dtype=torch.int64)
    metric = MatthewsCorrelation(classes)
    metric.update(*((same, varied) if constant == "prediction" else (varied, same)))
    assert float(metric.compute()) == 0


def test_correlation_of_several_classes_and_of_hundred_thousands_of_rows() -> None:
    generator = torch.Generator().manual_seed(3)
    truth = torch.randint(0, 3, (400_000,), generator=generator)
    noise = torch.rand(len(truth), generator=generator) < 0.01
    found = torch.where(noise, torch.randint(0, 3, (len(truth),), generator=generator), truth)
    metric = MatthewsCorrelation(3)
    metric.update(found, truth)
    assert float(metric.compute()) == pytest.approx(matthews_corrcoef(truth, found), abs=1e-6)


def test_three_classes_report_what_is_usual_and_what_is_asked_for() -> None:
    usual = ["accuracy", "macro_f1", "weighted_f1", "calibration_error"]
    assert list(ClassificationMetrics(LabelSpace(list("abc"))).metrics) == usual
    assert list(ClassificationMetrics(LabelSpace(list("abc"), metrics=["matthews_correlation"])).metrics) == [
        "matthews_correlation"
    ]


@pytest.mark.parametrize(
    ("space", "wording"),
    [
        (LabelSpace(list("abc"), metrics=["f1"]), "no metric 'f1' for single label classification with 3 labels"),
        (LabelSpace(list("ab"), metrics=["acuracy"]), "did you mean 'accuracy'?"),
        (
            LabelSpace(["score"], problem_type=REGRESSION, metrics=["accuracy"]),
            "no metric 'accuracy' for regression with 1 labels; the choices are mean_absolute_error, ",
        ),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(space: LabelSpace, wording: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        ClassificationMetrics(space)
    assert wording in str(raised.value)


def test_only_single_labels_have_a_confusion() -> None:
    assert ClassificationMetrics(LabelSpace(["a", "b"])).confusion is not None
    assert ClassificationMetrics(LabelSpace(["a", "b"], problem_type=MULTI_LABEL)).confusion is None


def test_reset_forgets_the_last_epoch() -> None:
    metrics = ClassificationMetrics(LabelSpace(["a", "b"]))
    metrics.update(torch.eye(2), torch.tensor([1, 0]), torch.tensor(9.0))
    metrics.compute()
    metrics.reset()
    metrics.update(torch.eye(2), torch.tensor([0, 1]), torch.tensor(1.0))
    values = metrics.compute()
    assert (float(values["accuracy"]), float(values["loss"])) == (1, 1)
    assert int(metrics.confusion.compute().sum()) == 2


def test_intents_get_their_own_metrics() -> None:
    assert type(classification_metrics(LabelSpace(["a", "b"]))) is ClassificationMetrics
    assert type(classification_metrics(LabelSpace(["a", "b"], has_out_of_scope=True))) is IntentMetrics
    assert type(classification_metrics(LabelSpace(["a", "b"], domains={"x": [0]}))) is IntentMetrics
