"""LoRA-FA: A keeps its initial value, and the gradient of B is projected so that dW follows the gradient of W.

Source: Zhang et al. 2023 (arXiv 2308.03303).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import AdamW

from lora_lightning.compat.peft import LoraLayer
from lora_lightning.lora.delta import adapted_layers, adapter_factors
from lora_lightning.lora.parameter_names import ADAPTER
from lora_lightning.lora.variants.variant import Variant


class LoraFa(Variant):
    """LoRA-FA's part in a run: a frozen A and an optimizer of its own."""

    option = "model.optimization.lorafa"
    excludes: ClassVar[Mapping[str, str]] = {
        "model.optimization.loraplus_lr_ratio": (
            "LoRA-FA trains no A that B's rate could be a multiple of; choose one of the two"
        )
    }
    why_not_sharded = "LoRA-FA projects with full matrices"

    def freeze_parameters(self, network: PeftModel) -> None:
        """Freezes A; it still belongs to the adapter and to its checkpoints."""
        freeze_A(network)

    def optimizer_class(self, network: nn.Module) -> Callable[..., AdamW]:
        """AdamW on projected gradients."""
        return partial(LoraFaAdamW, layers=list(adapted_layers(network).values()))


def freeze_A(model: nn.Module) -> None:  # noqa: N802  # the matrix
    """Freezes the factor A of every adapter, as LoRA-FA does."""
    for layer in adapted_layers(model).values():
        adapter_factors(layer)[0].requires_grad = False


class LoraFaAdamW(AdamW):
    """AdamW on the projected gradients of LoRA-FA.

    With A fixed, the change of dW = s B A that is closest to the gradient of W comes from
    g = 1 / s^2 * (dL/dB) (A A^T)^-1 (as in PEFT's `LoraFAOptimizer`, here after clipping too, but in full precision
    and fused).

    Args:
        groups: Parameter groups.
        layers: PEFT's layers, A frozen.
        kwargs: AdamW's.
    """

    def __init__(self, groups: list[dict[str, Any]], layers: Sequence[LoraLayer], **kwargs: Any) -> None:
        super().__init__(groups, **kwargs)
        self._layers = layers
        self._projections: list[tuple[Tensor, Tensor]] | None = None  # of B; made once A is loaded

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes a step.

        Args:
            closure: Computes the gradients, as Lightning passes it.

        Returns:
            The closure's result.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._projections is None:
            self._projections = [projection(layer) for layer in self._layers]
        for b, matrix in self._projections:
            if b.grad is not None:
                b.grad.copy_(b.grad @ matrix)
        super().step()
        return loss


@torch.no_grad()
def projection(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    """The matrix that LoRA-FA multiplies the gradient of a layer's B with.

    Source: Zhang et al. 2023 (arXiv 2308.03303), as PEFT has it.

    Args:
        layer: PEFT's.

    Returns:
        B, the parameter, and (A A^T)^-1 / s^2, (r, r), B's dtype and device.
    """
    a, b = adapter_factors(layer)
    gram = (a @ a.T).double()
    inverse = torch.linalg.pinv(gram + 1e-8 * torch.eye(len(gram)).to(gram), hermitian=True)
    return b, (inverse / float(layer.scaling[ADAPTER]) ** 2).to(b)
