"""An adapted model's layers against y = W0 x + b + (alpha / r) B A x in NumPy's float64."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from lora_lightning.lora.delta import adapted_layers, adapter_factors, is_transposed
from lora_lightning.lora.quantized import dequantized_weight


def move_from_zero(model: nn.Module, size: float = 0.1) -> None:
    """Random factors: a fresh adapter is a zero update, on which nothing could go wrong."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            for factor in adapter_factors(layer):
                factor.copy_(size * torch.randn(factor.shape, generator=generator))


def assert_layers_compute_the_formula(model: nn.Module, run: Callable[[], Any], tolerance: float) -> int:
    """Runs the model and computes every adapted layer again.

    Args:
        model: A PEFT model, or anything that contains one, without dropout.
        run: Runs it once.
        tolerance: Largest error of a layer, relative to the norm of what it puts out.

    Returns:
        How many calls of layers were checked.
    """
    calls: list[tuple[str, Any, np.ndarray, np.ndarray]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(layer: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            x, y = (tensor.detach().double().numpy() for tensor in (inputs[0], output))
            calls.append((name, layer, x, y))

        return hook

    layers = adapted_layers(model)
    handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]  # type: ignore[attr-defined]
    run()
    for handle in handles:
        handle.remove()
    assert {name for name, *_ in calls} == set(layers)
    for name, layer, x, y in calls:
        base = layer.get_base_layer()
        weight = dequantized_weight(base).detach().double().numpy()
        weight = weight.T if is_transposed(layer) else weight
        a, b = (factor.detach().double().numpy() for factor in adapter_factors(layer))
        expected = x @ weight.T + layer.scaling["default"] * (x @ a.T @ b.T)
        if base.bias is not None:
            expected += base.bias.detach().double().numpy()
        error = np.linalg.norm(y - expected) / np.linalg.norm(expected)
        assert error < tolerance, f"{name}: {error:.1e}"
    return len(calls)
