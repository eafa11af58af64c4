"""Singular values of the loss's gradients with respect to frozen weights, without forming any gradient.

The gradient of a linear layer's weight is G = sum over tokens of (dL/dy) x^T. Products of G with a few columns need
only the layer's inputs and output gradients, so the largest singular values come from a randomized subspace iteration
(Halko, Martinsson & Tropp 2011, arXiv 0909.4061, algorithm 4.4 with one power iteration). It takes three passes over
the same batches, and holds (in_features + out_features) * (rank + 8) numbers per layer.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lora_lightning.analysis.layer_gradients import observed_gradients
from lora_lightning.compat.peft import LoraLayer
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.delta import adapter_factors

OVERSAMPLING = 8  # columns beyond the rank that make the values of the last ones accurate


def gradient_spectra(
    layers: Mapping[str, LoraLayer], ranks: Mapping[str, int], run_batches: Callable[[], Any]
) -> dict[str, Tensor]:
    """The largest singular values of the summed gradient of each adapted layer's frozen weight.

    The gradient is that of the loss with respect to the weight W of y = W x, at adapters with dW = 0; the inputs and
    output gradients are those of the adapted layer, so a quantized weight counts as the weight that it computes with.
    A layer that is called several times has the sum of its gradients, and one that is never called has zeros.

    Args:
        layers: Of `adapted_layers`, without experts and embeddings.
        ranks: How many values of each layer are wanted, at least 1.
        run_batches: Runs forward and backward passes over all batches, with the same results every time.

    Returns:
        By name: (rank,), or the smaller side of the weight if that is less, descending, float32, on the CPU. They are
        exact up to rounding if rank + 8 reaches the smaller side, and otherwise lower bounds, most of which are close.

    Raises:
        ConfigurationError: If a gradient is not finite.
    """
    sketches = {name: _start_of(layer, ranks[name]) for name, layer in layers.items()}
    left = _add_products(layers, sketches, run_batches, transposed=False)
    right = _add_products(layers, _orthonormal(left), run_batches, transposed=True)
    left = _add_products(layers, _orthonormal(right), run_batches, transposed=False)
    return {name: torch.linalg.svdvals(product.cpu())[: ranks[name]] for name, product in left.items()}


def _start_of(layer: LoraLayer, rank: int) -> Tensor:
    """Random columns, (in_features, columns), the same whenever and wherever they are drawn."""
    a, b = adapter_factors(layer)
    columns = min(rank + OVERSAMPLING, a.shape[1], b.shape[0])
    drawn = torch.randn(a.shape[1], columns, generator=torch.Generator().manual_seed(0))
    return drawn.to(a.device)


def _orthonormal(products: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.linalg.qr(product).Q for name, product in products.items()}


def _add_products(
    layers: Mapping[str, LoraLayer], factors: Mapping[str, Tensor], run_batches: Callable[[], Any], *, transposed: bool
) -> dict[str, Tensor]:
    """G times each layer's factor, (out_features, columns), or G^T times it, (in_features, columns), float32."""
    sides = {name: adapter_factors(layer) for name, layer in layers.items()}
    rows = {name: a.shape[1] if transposed else b.shape[0] for name, (a, b) in sides.items()}
    products = {name: factor.new_zeros(rows[name], factor.shape[1]) for name, factor in factors.items()}

    def add(name: str, inputs: Tensor, gradient: Tensor) -> None:
        x, dy = (part.reshape(-1, part.shape[-1]).float() for part in (inputs, gradient))
        products[name] += x.T @ (dy @ factors[name]) if transposed else dy.T @ (x @ factors[name])

    with observed_gradients(layers, add):
        run_batches()
    for name, product in products.items():
        if not product.isfinite().all():
            msg = (
                f"the gradient of {name} is not finite in these batches; check the data, or set "
                "trainer.precision in the config to 32-true."
            )
            raise ConfigurationError(msg)
    return products
