"""How much a change of each layer's weight would change the loss, for all layers in one backward pass.

For a change dW of a weight, the derivative of an example's loss in its direction is c = <G, dW> with the gradient G =
sum over tokens of (dL/dy) x^T, so c = sum over tokens of (dL/dy) . (dW x): neither G nor a second backward pass is
needed. Its mean is the first-order change of the loss. Half of its mean square is the second-order change of the
predicted distribution, in nats of Kullback-Leibler divergence, if the labels are what the model itself predicts: the
Fisher information in the direction dW, here with the labels of the data. Over the tokens of a text the derivatives are
martingale differences, so that their products have a mean of 0, and the square of a text's sum stands for the sum of
the tokens' squares.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_lightning.analysis.layer_gradients import observed_gradients


@dataclass(frozen=True)
class ChangeScore:
    """What a change of one weight is expected to do.

    Attributes:
        taylor: First-order change of the loss, in nats per label; below 0 if the change helps.
        fisher: Half the mean square of the derivatives, per label, at least 0. It ranks changes: as the second-order
            change of the predictions it is too large for a model that is surer of itself than it is right, and too
            small where an example has several labels.
    """

    taylor: float
    fisher: float


def change_scores(
    layers: Mapping[str, nn.Module],
    changes: Mapping[str, Tensor],
    run_batches: Callable[[], Iterator[tuple[int, int]]],
) -> dict[str, ChangeScore]:
    """Scores a change of each layer's weight.

    Args:
        layers: By name, each of a linear layer whose first argument is x; in evaluation mode, without dropout.
        changes: dW by the same names, (out_features, in_features), floating dtype, on the layer's device.
        run_batches: Runs forward and backward passes of the summed loss of each batch, and yields after each one its
            numbers of rows and of labels.

    Returns:
        Scores by name; zeros for a layer that is never called.
    """
    parts: dict[str, list[Tensor]] = {name: [] for name in layers}

    def add(name: str, inputs: Tensor, gradient: Tensor) -> None:
        change = changes[name].to(inputs.dtype)
        parts[name].append((gradient * (inputs @ change.T)).sum(dim=-1).detach().flatten())

    sums, squares, total = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0), 0
    with observed_gradients(layers, add):
        for rows, labels in run_batches():
            total += labels
            for name, found in parts.items():
                derivatives = sum((_by_row(part, rows) for part in found), torch.zeros(rows, dtype=torch.float64))
                sums[name] += float(derivatives.sum())
                squares[name] += float(derivatives.square().sum())
                found.clear()
    each = max(total, 1)
    return {name: ChangeScore(sums[name] / each, squares[name] / each / 2) for name in layers}


def _by_row(values: Tensor, rows: int) -> Tensor:
    """Sums of what belongs to each row; of a layer that mixes the rows, all counts as one row's."""
    values = values.cpu().double()
    if len(values) % rows:
        return torch.nn.functional.pad(values.sum()[None], (0, rows - 1))
    return values.view(rows, -1).sum(dim=1)
