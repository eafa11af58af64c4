"""LoftQ: adapters that start from what quantisation took away from the weights under them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_lightning.lora.delta import adapted_layers, adapter_factors, pretrained_weight
from lora_lightning.lora.quantized import quantized_bits


@torch.no_grad()
def start_from_quantization_error(model: nn.Module, originals: Mapping[str, Tensor]) -> None:
    """Sets each adapter on a 4-bit layer to the best approximation of W - Q of its rank: dW = (W - Q)_r.

    Source: Li et al. 2023 (arXiv 2310.08659), algorithm 1 with T = 1, as PEFT's `LoftQConfig` has it by default. More
    turns would quantise W - dW instead of W, which nobody but this program could build again; so the base stays the
    quantised model that anyone has. PEFT's own `replace_lora_weights_loftq` needs a GPU, leaves the adapter's scaling
    out and does not know GPT-2's transposed layers (0.21.2).

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
        scaling = layer.scaling["default"]
        a.copy_(right / scaling**0.5)
        b.copy_(left / scaling**0.5)


def truncated_svd_factors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best approximation of a rank, by its largest singular values (Eckart and Young 1936), as two factors.

    Args:
        matrix: (out_features, in_features), float32.
        rank: At least 1; above the smaller side the rest of the factors is 0.

    Returns:
        (out_features, rank) and (rank, in_features), float32, each with half of the singular values' magnitude.
    """
    u, sigma, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = sigma[:rank].sqrt()
    left = matrix.new_zeros(matrix.shape[0], rank)
    right = matrix.new_zeros(rank, matrix.shape[1])
    left[:, : len(root)] = u[:, :rank] * root
    right[: len(root)] = root[:, None] * vh[:rank]
    return left, right
