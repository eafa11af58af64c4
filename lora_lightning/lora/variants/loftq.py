"""LoftQ: adapters that start with what quantization took away from the weights under them."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor, nn

from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.delta import adapted_layers, adapter_factors, pretrained_weight
from lora_lightning.lora.parameter_names import ADAPTER
from lora_lightning.lora.quantized import quantized_bits
from lora_lightning.lora.variants.variant import Initialization


class LoftQ(Initialization):
    """LoftQ's part in a run: a start from the weights that the base was quantized from."""

    initializations = ("loftq",)
    needs_quantized_layers = True
    excludes: ClassVar[Mapping[str, str]] = {
        "model.lora.use_dora": (
            "DoRA's magnitudes would be those of the base without what LoftQ adds to it; choose one of the two"
        )
    }

    def check_base(self, bits: int | None) -> None:
        """Refuses a base that is not quantized to 4 bits."""
        if bits != 4:  # noqa: PLR2004
            found = "null" if bits is None else f"in {bits} bits"
            msg = (
                f"model.lora.init_lora_weights is loftq, but model.quantization is {found}, and LoftQ starts from what "
                "4 bits take away; write `quantization: {bits: 4}`, or set init_lora_weights to true."
            )
            raise ConfigurationError(msg)

    def peft_arguments(self) -> dict[str, Any]:
        """PEFT's default start, until the quantized base and the weights that it came from are there."""
        return {"init_lora_weights": True}

    def start_from_base(
        self, network: PeftModel, original_weights: Callable[[Collection[str]], Mapping[str, Tensor]]
    ) -> None:
        """Reads the original weights of the adapted layers and starts from the error of quantizing them."""
        start_from_quantization_error(network, original_weights(adapted_layers(network)))


@torch.no_grad()
def start_from_quantization_error(model: nn.Module, originals: Mapping[str, Tensor]) -> None:
    """Sets each adapter on a 4-bit layer to the best approximation of W - Q of its rank: dW = (W - Q)_r.

    Source: Li et al. 2023 (arXiv 2310.08659), algorithm 1 with T = 1, PEFT's default in `LoftQConfig`. Further
    iterations would quantize W - dW instead of W, and no other program could rebuild that base; so it stays the
    quantized model that everybody has. PEFT's own `replace_lora_weights_loftq` needs a GPU, leaves the adapter's
    scaling out and does not know GPT-2's transposed layers (0.21.2).

    Args:
        model: A PEFT model, or anything that contains one; changed in place.
        originals: W by the layer's name, (out_features, in_features), any floating dtype.
    """
    for name, layer in adapted_layers(model).items():
        if quantized_bits(layer.get_base_layer()) != 4:  # noqa: PLR2004  # one of skip_modules
            continue
        quantized = pretrained_weight(layer)
        a, b = adapter_factors(layer)
        left, right = truncated_svd_factors(originals[name].to(quantized) - quantized, a.shape[0])
        scaling = layer.scaling[ADAPTER]
        a.copy_(right / scaling**0.5)
        b.copy_(left / scaling**0.5)


def truncated_svd_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of a rank, by its largest singular values (Eckart and Young 1936), as two factors.

    Args:
        matrix: (out_features, in_features), float32.
        rank: At least 1; above the smaller side the rest of the factors is 0.

    Returns:
        (out_features, rank) and (rank, in_features), float32, each with the square roots of the singular values.
    """
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = sigma[:rank].sqrt()
    left = matrix.new_zeros(matrix.shape[0], rank)
    right = matrix.new_zeros(rank, matrix.shape[1])
    left[:, : len(root)] = u[:, :rank] * root
    right[: len(root)] = root[:, None] * vh[:rank]
    return left, right
