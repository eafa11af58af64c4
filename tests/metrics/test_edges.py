"""Every reported value where metrics usually break: one class, one row, constants, huge and tiny numbers, 16 bits.

References are NumPy, SciPy and scikit-learn in float64; where they warn or give NaN, our documented answer is written
out (docs/metrics.md).
"""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, matthews_corrcoef
from torch import Tensor

from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics import MULTI_LABEL, REGRESSION, ClassificationMetrics, IntentMetrics, LabelSpace
from lora_lightning.metrics.all_rows import WeightedMean
from lora_lightning.metrics.calibration import expected_calibration_error
from lora_lightning.metrics.question_answering import QuestionAnsweringMetrics
from lora_lightning.metrics.regression import pearson_correlation, spearman_correlation

Array = NDArray[np.float64]
NUMBER = LabelSpace(["score"], problem_type=REGRESSION)


def values_of(space: LabelSpace, logits: Tensor, target: Tensor, size: int = 700) -> dict[str, float]:
    metrics = ClassificationMetrics(space)
    for part, truth in zip(logits.split(size), target.split(size), strict=True):
        metrics.update(part, truth, torch.tensor(0.5))
    return {name: float(value) for name, value in metrics.compute().items()}


def numbers_of(predictions: Array, targets: Array) -> dict[str, float]:
    """Through the task's own path, which keeps numbers in float32."""
    return values_of(NUMBER, torch.tensor(predictions)[:, None], torch.tensor(targets, dtype=torch.float32))


def reference_of_numbers(predictions: Array, targets: Array) -> dict[str, float]:
    found, truth = np.float32(predictions).astype(np.float64), np.float32(targets).astype(np.float64)
    return {
        "loss": 0.5,
        "pearson": stats.pearsonr(found, truth).statistic,
        "spearman": stats.spearmanr(found, truth).statistic,
        "mean_squared_error": np.square(found - truth).mean(),
        "mean_absolute_error": np.abs(found - truth).mean(),
    }


def related(rows: int, scale: float = 1.0, offset: float = 0.0) -> tuple[Array, Array]:
    generator = np.random.default_rng(0)
    targets = generator.normal(size=rows)
    return (targets + generator.normal(size=rows)) * scale + offset, targets * scale + offset


def with_far_value(rows: int, far: float) -> tuple[Array, Array]:
    predictions, targets = related(rows)
    predictions[rows // 2] = far
    return predictions, targets


NUMBERS = {
    "near 1e5": related(5000, offset=1e5),
    "near 1e5, small spread": related(500, scale=0.1, offset=1e5),
    "negative": related(500, offset=-1e6),
    "tiny": related(3000, scale=1e-20),
    "small": related(1000, scale=1e-4, offset=1.0),
    "huge": related(3000, scale=1e30),
    "one far value": with_far_value(2900, 1e4),
    "one very far value": with_far_value(10_000, 1e9),
    "two rows": related(2),
    "two values": (np.tile([0.0, 1.0, 1.0], 50), np.tile([2.0, 2.0, 5.0], 50)),
}


@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_are_those_of_scipy(case: str) -> None:
    assert numbers_of(*NUMBERS[case]) == pytest.approx(reference_of_numbers(*NUMBERS[case]), rel=1e-9, abs=1e-300)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_in_16_bits_are_measured_as_they_are(dtype: torch.dtype) -> None:
    predictions, targets = related(4000, scale=1e-3)
    rounded = torch.tensor(predictions).to(dtype)
    found = values_of(NUMBER, rounded[:, None], torch.tensor(targets, dtype=torch.float32))
    assert found == pytest.approx(reference_of_numbers(rounded.double().numpy(), targets), rel=1e-9)


@pytest.mark.parametrize(
    ("predictions", "targets"),
    [([0.1] * 7, range(7)), (range(7), [1e5 + 0.1] * 7), ([0.1] * 7, [0.3] * 7), ([3.0], [4.0])],
    ids=["constant predictions", "constant targets", "both", "one row"],
)
def test_a_constant_correlates_with_nothing(predictions: list[float], targets: list[float]) -> None:
    found = numbers_of(np.array(predictions, dtype=float), np.array(targets, dtype=float))
    assert (found["pearson"], found["spearman"]) == (0.0, 0.0)
    assert math.isfinite(found["mean_squared_error"])


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_not_hidden(broken: float) -> None:
    found = numbers_of(np.array([1.0, broken, 2.0]), np.array([1.0, 2.0, 3.0]))
    assert not any(math.isfinite(value) for name, value in found.items() if name != "loss")


numbers = st.lists(
    st.tuples(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32)), min_size=2, max_size=40
).map(lambda rows: np.array(rows, dtype=np.float64).T)


@given(numbers)
@settings(deadline=None)
def test_correlations_of_any_numbers(rows: Array) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants, for which SciPy gives NaN
        expected = [stats.pearsonr(*rows).statistic, stats.spearmanr(*rows).statistic]
    constant = len(np.unique(rows[0])) == 1 or len(np.unique(rows[1])) == 1
    found = [pearson_correlation(*rows), spearman_correlation(*rows)]
    assert found == pytest.approx([0.0, 0.0] if constant else expected, abs=1e-6)


def reference_calibration_error(confidences: Array, correct: Array, bins: int) -> float:
    """Bins as `numpy.histogram` cuts them: open on the right, but for the last."""
    counts, edges = np.histogram(confidences, bins=bins, range=(0, 1))
    sums = [np.histogram(confidences, bins=edges, weights=column)[0] for column in (confidences, correct)]
    filled = counts > 0
    gaps = np.abs(sums[0][filled] / counts[filled] - sums[1][filled] / counts[filled])
    return float((gaps * counts[filled] / len(confidences)).sum())


@pytest.mark.parametrize("bins", [1, 2, 3, 7, 10, 15, 20, 100])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_confidence_of_one_belongs_to_the_last_bin(bins: int, share: float) -> None:
    generator = np.random.default_rng(bins)
    confidences = generator.uniform(size=1000)
    confidences[generator.uniform(size=1000) < share] = 1.0
    confidences[:3] = [0.0, 1.0, 0.97]
    correct = (generator.uniform(size=1000) < confidences * 0.8).astype(float)
    found = expected_calibration_error(confidences, correct, bins)
    assert found == pytest.approx(reference_calibration_error(confidences, correct, bins), abs=1e-12)


def test_calibration_error_of_the_reported_case() -> None:
    """The last bin holds both: mean confidence 0.975, accuracy 0.5. In bins of their own they would give 0.525."""
    assert expected_calibration_error(np.array([0.95, 1.0]), np.array([1.0, 0.0])) == pytest.approx(0.475)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e30], ids=["usual", "sure", "huge"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_calibration_error_of_sure_models(classes: int, scale: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2000, classes, generator=generator).clamp(-3, 3) * scale).to(dtype)
    logits = logits.nan_to_num(posinf=6e4, neginf=-6e4)
    target = torch.randint(0, classes, (2000,), generator=generator)
    confidence, found = logits.float().softmax(dim=1).max(dim=1)
    expected = reference_calibration_error(confidence.double().numpy(), (found == target).double().numpy(), 15)
    space = LabelSpace([str(number) for number in range(classes)])
    assert values_of(space, logits, target)["calibration_error"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("case", ["one class only", "a class without rows", "one row", "one wrong row"])
def test_labels_where_classes_are_missing(classes: int, case: str) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = {"one row": 1, "one wrong row": 1}.get(case, 60)
    logits = torch.randn(rows, classes, generator=generator)
    target = torch.randint(1, classes, (rows,), generator=generator)
    if case == "one class only":
        target = torch.ones(rows, dtype=torch.int64)
        logits[:, 1] = 10.0
    if rows == 1:
        logits[0, int(target)] = 9.0 if case == "one row" else -9.0
    metrics = ["accuracy", "macro_f1", "weighted_f1", "calibration_error", "matthews_correlation"]
    found = values_of(LabelSpace([str(number) for number in range(classes)], metrics=metrics), logits, target)
    said = logits.argmax(dim=1)
    confidence = logits.softmax(dim=1).amax(dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's about a single label
        assert found == pytest.approx(
            {
                "loss": 0.5,
                "accuracy": accuracy_score(target, said),
                "macro_f1": f1_score(target, said, average="macro", zero_division=0),
                "weighted_f1": f1_score(target, said, average="weighted", zero_division=0),
                "calibration_error": reference_calibration_error(
                    confidence.double().numpy(), (said == target).double().numpy(), 15
                ),
                "matthews_correlation": matthews_corrcoef(target, said),
            },
            abs=1e-6,
        )


@pytest.mark.parametrize("case", ["a label without rows", "no label at all", "every label", "one row", "16 bits"])
def test_several_labels_where_some_are_missing(case: str) -> None:
    generator = torch.Generator().manual_seed(2)
    target = (torch.rand(1 if case == "one row" else 50, 3, generator=generator) < 0.4).float()
    if case == "a label without rows":
        target[:, 1] = 0
    if case in {"no label at all", "every label"}:
        target[:] = float(case == "every label")
    logits = torch.randn(target.shape, generator=generator)
    logits = logits.half() if case == "16 bits" else logits
    truth, said = target.long(), (logits >= 0).long()
    scores = logits.float().sigmoid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both libraries' about labels without a row
        found = values_of(LabelSpace(list("abc"), problem_type=MULTI_LABEL), logits, target)
        expected = {
            "loss": 0.5,
            "micro_f1": f1_score(truth, said, average="micro", zero_division=0),
            "macro_f1": f1_score(truth, said, average="macro", zero_division=0),
            "exact_match": accuracy_score(truth, said),
            "mean_average_precision": average_precision_score(truth, scores, average="macro"),
        }
    assert found == pytest.approx(expected, abs=1e-6)


def test_one_label_alone_is_refused() -> None:
    for space in (LabelSpace(["only"]), LabelSpace(["only"], has_out_of_scope=True)):
        with pytest.raises(ConfigurationError, match="only the label 'only', but classification needs at least 2"):
            ClassificationMetrics(space)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("space", [NUMBER, LabelSpace(["a", "b"]), LabelSpace(["a", "b"], problem_type=MULTI_LABEL)])
def test_without_a_row_there_is_nothing_to_report(space: LabelSpace) -> None:
    assert ClassificationMetrics(space).compute() == {}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_queries_that_are_all_out_of_scope_have_no_labels_to_score() -> None:
    metrics = IntentMetrics(LabelSpace(["a", "b"], None, True, {"x": [0]}))
    metrics.update(torch.randn(5, 2), torch.full((5,), -1), torch.tensor(math.nan))
    assert metrics.compute(0.5) == {}
    assert math.isfinite(metrics.choose_threshold())


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_no_question_has_no_score() -> None:
    scores = QuestionAnsweringMetrics().score([])
    assert len(scores.null_score) == 0


def test_a_mean_hides_no_nan_and_counts_weights() -> None:
    mean = WeightedMean()
    mean.update(torch.tensor(1.0), weight=10)
    mean.update(torch.tensor(4.0), weight=5)
    mean.update(torch.tensor(math.nan), weight=0)  # a batch without labels
    assert float(mean.compute()) == 2.0
    mean.update(torch.tensor(math.nan), weight=1)
    assert math.isnan(mean.compute())


def test_a_mean_of_many_batches_loses_no_digits() -> None:
    """Sums in float32 are off by 1e-6 after 20,000 batches, and by 1e-7 here."""
    numbers = torch.rand(2_000, generator=torch.Generator().manual_seed(0)) * 0.1 + 2
    mean = WeightedMean()
    for number in numbers:
        mean.update(number, weight=32)
    assert float(mean.compute()) == pytest.approx(numbers.double().mean().item(), rel=1e-12)


def test_numbers_keep_no_graph_and_are_forgotten() -> None:
    metrics = ClassificationMetrics(NUMBER)
    metrics.update(torch.ones(3, 1, requires_grad=True), torch.zeros(3), torch.tensor(1.0, requires_grad=True))
    assert not any(value.requires_grad for value in metrics.compute().values())
    metrics.reset()
    metrics.update(torch.zeros(2, 1), torch.zeros(2), torch.tensor(0.0))
    assert float(metrics.compute()["mean_absolute_error"]) == 0
