"""Class weights: their values, the loss and its gradient over accumulated batches, against NumPy in float64."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lora_lightning.datamodules.base import AdaptationDataModule
from lora_lightning.errors import ConfigurationError
from lora_lightning.metrics import MULTI_LABEL, REGRESSION, SINGLE_LABEL, LabelSpace
from lora_lightning.metrics.label_space import ProblemType
from lora_lightning.tasks import SequenceClassificationTask
from lora_lightning.tasks.class_weights import ClassWeight, check_class_weight, class_weights
from lora_lightning.tasks.classification_outputs import classification_loss

NAMES = ["a", "b", "c", "1"]
SINGLE = LabelSpace(NAMES)
SEVERAL = LabelSpace(NAMES, problem_type=MULTI_LABEL)


def weights_of(class_weight: ClassWeight, space: LabelSpace, counts: list[int], rows: int) -> tuple[Any, str]:
    weights, note = class_weights(class_weight, space, lambda: (np.array(counts), rows))
    assert weights.dtype == torch.float32
    return weights.tolist(), note


def test_balanced_weights_are_those_of_scikit_learn() -> None:
    weights, note = weights_of("balanced", SINGLE, [10, 20, 30, 40], 100)
    assert weights == pytest.approx([100 / (4 * count) for count in (10, 20, 30, 40)])
    assert note == ""


def test_rows_without_a_label_and_labels_without_rows_balance_nothing() -> None:
    weights, note = weights_of("balanced", SINGLE, [10, 0, 30, 0], 50)  # ten rows have no class
    assert weights == pytest.approx([40 / (2 * 10), 1, 40 / (2 * 30), 1])
    assert note == "model.class_weight is balanced, but 2 labels have no training row and weigh 1: 'b', '1'."


def test_each_of_several_labels_is_balanced_between_its_rows_and_the_others() -> None:
    (without, having), note = weights_of("balanced", SEVERAL, [10, 50, 0, 100], 100)
    assert without == pytest.approx([100 / (2 * 90), 1, 1, 1])
    assert having == pytest.approx([100 / (2 * 10), 1, 1, 1])
    assert "2 labels are in no training row, or in every one and weigh 1: 'c', '1'." in note


def test_named_weights_leave_the_other_labels_at_one_and_say_so() -> None:
    weights, note = weights_of(cast("Any", {"c": 3.0, 1: 0.5}), SINGLE, [], 0)  # YAML reads 1 as a number
    assert weights == [1, 1, 3, 0.5]
    assert note == "model.class_weight names 2 of 4 labels; the others weigh 1."
    assert weights_of({"c": 3.0}, SEVERAL, [], 0)[0] == [[1, 1, 1, 1], [1, 1, 3, 1]]
    assert weights_of(dict.fromkeys(NAMES, 2.0), SINGLE, [], 0)[1] == ""


@pytest.mark.parametrize(
    ("weights", "problem_type", "said"),
    [
        ("balanced", REGRESSION, "is 'balanced', but this data is regression and has no labels; set it to null"),
        ({"a": 2.0}, REGRESSION, "this data is regression"),
        ({}, SINGLE_LABEL, "needs the weight of at least one label"),
        ({"d": 1.0}, SINGLE_LABEL, "names 'd', which is no label; the choices are 1, a, b, c"),
        ({True: 1.0}, SINGLE_LABEL, "quote a label that YAML reads as a truth value"),
        ({"a": 0.0}, SINGLE_LABEL, "of 'a' is 0.0, but it must be a positive number"),
        ({"a": -1.0}, MULTI_LABEL, "of 'a' is -1.0, but"),
        ({"a": float("nan")}, SINGLE_LABEL, "of 'a' is nan, but"),
        ({"a": float("inf")}, SINGLE_LABEL, "of 'a' is inf, but"),
    ],
)
def test_weights_that_mean_nothing_are_refused(weights: Any, problem_type: ProblemType, said: str) -> None:
    with pytest.raises(ConfigurationError, match="class_weight") as caught:
        check_class_weight(weights, LabelSpace(NAMES, problem_type=problem_type))
    assert said in str(caught.value)


def test_data_that_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="does not count the training rows of each label"):
        AdaptationDataModule.label_counts(cast("Any", object()))


def log_softmax(logits: Any) -> Any:
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_the_loss_is_the_weighted_mean_of_the_rows() -> None:
    logits, labels = np.random.default_rng(0).normal(size=(6, 3)), np.array([0, 2, 1, 1, -1, 0])
    weights, known = np.array([0.5, 1, 4]), labels >= 0
    scores = log_softmax(logits)
    smooth = 0.9 * scores[np.arange(6), labels] + 0.1 * scores.mean(axis=1)
    expected = -np.average(smooth[known], weights=weights[labels[known]])
    found = classification_loss(
        torch.tensor(logits), torch.tensor(labels), SINGLE_LABEL, 0.1, torch.tensor(weights).float()
    )
    assert float(found) == pytest.approx(expected, abs=1e-6)


def test_the_loss_of_several_labels_is_the_weighted_mean_of_their_terms() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 3)), random.integers(0, 2, size=(6, 3))
    table = np.array([[1, 2, 0.5], [3, 1, 4]])
    weights = np.where(labels == 1, table[1], table[0])
    probability = 1 / (1 + np.exp(-logits))
    expected = -np.average(np.log(np.where(labels == 1, probability, 1 - probability)), weights=weights)
    tensors = torch.tensor(logits), torch.tensor(labels).float()
    found = classification_loss(*tensors, MULTI_LABEL, 0.0, torch.tensor(table).float())
    assert float(found) == pytest.approx(expected, abs=1e-6)


class LinearModel(nn.Module):
    """Logits of numbers in place of tokens."""

    def __init__(self, labels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(5, labels))

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=input_ids @ self.weight)


def gradient_and_loss(space: LabelSpace, inputs: Any, labels: Tensor, counts: Any, sizes: list[int]) -> Any:
    """Of an optimizer step that accumulates batches of these sizes, with balanced weights."""
    task = SequenceClassificationTask("none", lora=None, class_weight="balanced", label_space=space)
    task.network = model = LinearModel(len(space.names))
    data = SimpleNamespace(
        label_space=space, split_names=lambda _: [], label_counts=lambda: (np.array(counts), len(labels))
    )
    trainer = SimpleNamespace(
        datamodule=data,
        accumulate_grad_batches=len(sizes),
        is_last_batch=False,
        num_training_batches=len(sizes),
        world_size=1,
        global_step=0,
        precision_plugin=None,
    )
    task.trainer = cast("Any", trainer)
    logged: list[float] = []
    vars(task)["log"] = lambda _name, value, **_: logged.append(float(value))
    task.setup("fit")
    start = 0
    for number, size in enumerate(sizes):
        rows = slice(start, start + size)
        batch = {"input_ids": torch.tensor(inputs[rows]).float(), "labels": labels[rows]}
        (task.training_step(batch, number) / len(sizes)).backward()  # type: ignore[no-untyped-call]
        task.on_after_backward()
        start += size
    assert model.weight.grad is not None
    return model.weight.grad.double().numpy(), logged


@pytest.mark.parametrize("sizes", [[12], [3, 9], [5, 1, 6]])
def test_accumulated_batches_have_the_gradient_of_all_rows(sizes: list[int]) -> None:
    inputs, labels = np.random.default_rng(0).normal(size=(12, 5)), np.array([0] * 8 + [1] * 3 + [2])
    labels = np.random.default_rng(1).permutation(labels)
    counts = np.bincount(labels)
    weights = (12 / (3 * counts))[labels]
    errors = 1 / 3 - np.eye(3)[labels]  # softmax of zeros minus the truth
    expected = inputs.T @ (errors * weights[:, None]) / weights.sum()
    space = LabelSpace(["a", "b", "c"])
    found, logged = gradient_and_loss(space, inputs, torch.tensor(labels), counts, sizes)
    assert found == pytest.approx(expected, abs=1e-6)
    assert logged == pytest.approx([np.log(3)])


@pytest.mark.parametrize("sizes", [[12], [3, 9]])
def test_accumulated_batches_of_several_labels_have_the_gradient_of_all_rows(sizes: list[int]) -> None:
    random = np.random.default_rng(0)
    inputs, labels = random.normal(size=(12, 5)), random.integers(0, 2, size=(12, 3))
    labels[:4, 1] = 1
    counts = labels.sum(axis=0)
    weights = np.where(labels == 1, 12 / (2 * counts), 12 / (2 * (12 - counts)))
    expected = inputs.T @ ((0.5 - labels) * weights) / weights.sum()
    space = LabelSpace(["a", "b", "c"], problem_type=MULTI_LABEL)
    found, logged = gradient_and_loss(space, inputs, torch.tensor(labels).float(), counts, sizes)
    assert found == pytest.approx(expected, abs=1e-6)
    assert logged == pytest.approx([np.log(2)])


def test_weights_are_of_the_training_loss_alone() -> None:
    space = LabelSpace(["a", "b"])
    task = SequenceClassificationTask("none", lora=None, class_weight={"a": 5.0}, label_space=space)
    task.network = model = LinearModel(2)
    task.class_weights = torch.tensor([5.0, 1.0])
    nn.init.normal_(model.weight)
    batch = {"input_ids": torch.randn(4, 5), "labels": torch.tensor([0, 1, 1, 1])}
    _, trained = task.train().evaluate(batch)
    logits, validated = task.eval().evaluate(batch)
    assert validated == nn.functional.cross_entropy(logits, batch["labels"])
    assert trained != validated


def test_what_labels_the_user_did_not_name_weigh_is_said() -> None:
    space = LabelSpace(["a", "b"])
    task = SequenceClassificationTask("none", lora=None, class_weight={"a": 5.0}, label_space=space)
    data = SimpleNamespace(label_space=space, split_names=lambda _: [], label_counts=None)
    task.trainer = cast("Any", SimpleNamespace(datamodule=data))
    with pytest.warns(UserWarning, match="names 1 of 2 labels; the others weigh 1"):
        task.setup("fit")
    assert task.class_weights is not None
    assert task.class_weights.tolist() == [5, 1]
