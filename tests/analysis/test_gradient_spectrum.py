"""Singular values of gradients: those that NumPy finds in the dense gradients of autograd."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora_lightning.analysis.gradient_spectrum import gradient_spectra
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.delta import adapted_layers


class Network(nn.Module):
    """A layer that is called twice, one of each kind, and one that is never called."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = Conv1D(12, width)
        self.third = nn.Linear(12, 5)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(torch.tanh(self.first(x))))
        result: Tensor = self.third(torch.relu_(self.second(hidden)))
        return result


def measure(
    width: int, rank: int, spectrum: Callable[[int], Tensor]
) -> tuple[dict[str, Tensor], dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float64]]]]:
    """Singular values by this package, and by autograd and NumPy."""
    torch.manual_seed(0)
    batches = [torch.randn(2, 7, width) * spectrum(width) for _ in range(3)]
    plain = Network(width).double()
    for batch in batches:
        plain(batch.double()).square().sum().backward()
    expected = {
        name: np.linalg.svd(np.nan_to_num(parameter.grad.numpy()), compute_uv=False)
        for name in ("first", "second", "third")
        if (parameter := plain.get_parameter(f"{name}.weight")).grad is not None
    }
    network = get_peft_model(
        plain.float(), LoraConfig(r=2, target_modules=["first", "second", "third", "unused"], fan_in_fan_out=True)
    )

    def run() -> None:
        for batch in batches:
            network(batch).square().sum().backward()

    layers = adapted_layers(network)
    return gradient_spectra(layers, dict.fromkeys(layers, rank), run), expected


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_small_layers_are_exact() -> None:
    found, expected = measure(9, 9, torch.ones)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values[:9], atol=1e-4 * values[0])
    assert [len(found[name]) for name in ("first", "second", "third", "unused")] == [9, 9, 5, 3]
    assert not found["unused"].any()


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_large_layers_are_close() -> None:
    found, expected = measure(80, 4, lambda width: 0.9 ** torch.arange(width))
    assert len(found["first"]) == 4
    np.testing.assert_allclose(found["first"].numpy(), expected["first"][:4], rtol=0.01)
    np.testing.assert_allclose(found["second"].numpy(), expected["second"][:4], rtol=1e-4)  # 12 columns are all


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_gradients_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="the gradient of first is not finite"):
        measure(4, 2, lambda width: torch.full((width,), torch.inf))
