"""The scores of changes equal gradients that autograd forms, and a damaged layer comes first."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lora_lightning.analysis.sensitivity import change_scores

ROWS, TOKENS, WIDTH, CLASSES = 6, 5, 8, 4


class Small(nn.Module):
    """Layers over tokens, one called twice, one over flattened tokens, GPT-2's, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.flat, self.transposed = nn.Linear(WIDTH, WIDTH), Conv1D(WIDTH, WIDTH)
        self.unused = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        x = torch.tanh(self.flat(x.reshape(-1, WIDTH)).view(x.shape))
        return self.head(torch.tanh(self.transposed(x)).mean(dim=1))


def parts(frozen: bool = True) -> tuple[Small, dict[str, nn.Module], Tensor, Tensor]:
    torch.manual_seed(0)
    model = Small().requires_grad_(not frozen)
    layers = dict(model.named_children())
    return model, layers, torch.randn(ROWS, TOKENS, WIDTH), torch.randint(CLASSES, (ROWS,))


def test_they_are_the_derivatives_of_each_row() -> None:
    model, layers, x, labels = parts()
    changes = {name: 0.01 * torch.randn(layer.weight.shape) for name, layer in layers.items()}  # type: ignore[arg-type]
    changes["transposed"] = changes["transposed"].T

    def run() -> Iterator[tuple[int, int]]:
        for rows in (slice(0, 4), slice(4, ROWS)):
            functional.cross_entropy(model(x[rows]), labels[rows], reduction="sum").backward()  # type: ignore[no-untyped-call]
            yield len(labels[rows]), len(labels[rows])

    found = change_scores(layers, changes, run)
    model.requires_grad_(True)
    derivatives: dict[str, list[float]] = {name: [] for name in layers}
    for row in range(ROWS):
        model.zero_grad()
        functional.cross_entropy(model(x[row : row + 1]), labels[row : row + 1]).backward()  # type: ignore[no-untyped-call]
        for name, layer in layers.items():
            gradient = layer.weight.grad if layer.weight.grad is not None else torch.zeros(1)  # type: ignore[union-attr]
            change = changes[name].T if name == "transposed" else changes[name]
            derivatives[name].append(float((gradient * change).sum()) if gradient.dim() == 2 else 0.0)  # type: ignore[operator]
    for name in layers:
        each = torch.tensor(derivatives[name])
        assert found[name].taylor == pytest.approx(float(each.mean()), rel=1e-4, abs=1e-9), name
        assert found[name].fisher == pytest.approx(float(each.square().mean() / 2), rel=1e-4, abs=1e-12), name
    assert found["unused"].fisher == 0


def test_a_damaged_layer_comes_first() -> None:
    model, layers, x, labels = parts()
    changes = {name: 0.01 * torch.randn(layer.weight.shape) for name, layer in layers.items()}  # type: ignore[arg-type]
    changes["flat"] *= 50

    def run() -> Iterator[tuple[int, int]]:
        functional.cross_entropy(model(x), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
        yield ROWS, ROWS

    found = change_scores(layers, changes, run)
    assert max(found, key=lambda name: found[name].fisher) == "flat"


def test_half_the_mean_square_is_the_divergence_that_a_small_change_causes() -> None:
    """With labels that the model draws itself, as the Fisher information has them."""
    model, layers, x, _ = parts()
    x = torch.randn(2000, TOKENS, WIDTH)
    change = 0.05 * torch.randn(WIDTH, WIDTH)
    with torch.no_grad():
        before = model(x).log_softmax(dim=-1)
    labels = torch.distributions.Categorical(logits=before).sample()  # type: ignore[no-untyped-call]

    def run() -> Iterator[tuple[int, int]]:
        functional.cross_entropy(model(x), labels, reduction="sum").backward()  # type: ignore[no-untyped-call]
        yield len(x), len(x)

    found = change_scores({"first": layers["first"]}, {"first": change}, run)["first"]
    with torch.no_grad():
        layers["first"].weight += change  # type: ignore[operator]
        after = model(x).log_softmax(dim=-1)
    measured = float((before.exp() * (before - after)).sum(dim=-1).mean())
    assert found.fisher == pytest.approx(measured, rel=0.15)
