"""Stand-ins for bitsandbytes' layers, which can be neither quantized nor run without values.

They hold what those layers hold, in the same sizes, and allocate what they allocate in a forward and backward pass:
the 4-bit ones through bitsandbytes' own operations, for which it registers shapes.
"""

from collections.abc import Collection
from math import ceil
from typing import Any, cast

import torch
from bitsandbytes import functional
from bitsandbytes import nn as bnb
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel

from lora_lightning.backbones.quantization import modules_left
from lora_lightning.lora.config import QuantizationSettings
from lora_lightning.lora.target_modules import layer_features, linear_layers

BLOCK, SCALES_IN_A_BLOCK = 64, 256  # weights with one scale; scales with one scale if they are quantized too
FOUR = 4


class _Dequantized4bit(torch.autograd.Function):
    """y = x W^T + b, where W exists only while it is multiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, absmax: Tensor, bias: Tensor | None, layer: Any) -> Tensor:
        ctx.layer, ctx.has_bias = layer, bias is not None
        ctx.save_for_backward(weight, absmax)
        y: Tensor = nn.functional.linear(x, layer.dequantized(weight, absmax, x.dtype), bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, absmax = ctx.saved_tensors
        grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[3] else None
        return grad @ ctx.layer.dequantized(weight, absmax, grad.dtype), None, None, grad_bias, None


class Linear4bitStandIn(bnb.Linear4bit):  # type: ignore[misc]  # bitsandbytes is not typed
    """What `bnb.nn.Linear4bit` keeps and allocates.

    Args:
        layer: The linear layer that would be quantized; may be on the meta device.
        settings: How.
        compute_dtype: In which dtype the weights are multiplied.
    """

    def __init__(self, layer: nn.Module, settings: QuantizationSettings, compute_dtype: torch.dtype) -> None:
        in_features, out_features = layer_features(layer)
        rows, columns = out_features, in_features
        super().__init__(in_features, out_features, bias=False, compute_dtype=compute_dtype, device="meta")
        count = rows * columns
        scales = ceil(count / BLOCK)
        double = settings.double_quantization
        absmax = torch.empty(scales, dtype=torch.uint8 if double else torch.float32, device="meta")
        state: Any = functional.QuantState(
            absmax=torch.empty(scales, device="meta"),
            shape=torch.Size((rows, columns)),
            code=torch.empty(16, device="meta"),
            blocksize=BLOCK,
            quant_type=settings.type,
            dtype=torch.float32,
        )
        packed = torch.empty(ceil(count / 2), 1, dtype=torch.uint8, device="meta")
        self.weight = bnb.Params4bit(packed, quant_state=state, quant_type=settings.type, bnb_quantized=True)
        self.bias = layer.bias
        self.size, self.kind = torch.Size((rows, columns)), settings.type
        self.register_buffer("absmax", absmax, persistent=False)
        nested = ceil(scales / SCALES_IN_A_BLOCK) if double else 0
        self.register_buffer("nested_absmax", torch.empty(nested, device="meta"), persistent=False)

    def dequantized(self, weight: Tensor, absmax: Tensor, dtype: torch.dtype) -> Tensor:
        """The weight, (out_features, in_features), in a dtype."""
        scales = absmax.float()
        operation = torch.ops.bitsandbytes.dequantize_4bit.default
        found: Tensor = operation(weight, scales, BLOCK, self.kind, self.size, dtype)
        return found

    @property
    def W_q(self) -> Tensor:  # noqa: N802  # HQQ's name
        """The packed weight: PEFT's DoRA calls `dequantize` of a layer that has it under this name."""
        packed: Tensor = self.weight
        return packed

    def dequantize(self) -> Tensor:
        """The weight, (out_features, in_features), float32."""
        return self.dequantized(self.weight, self.absmax, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features), the dtype of x."""
        inputs = x.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        y: Tensor = _Dequantized4bit.apply(inputs, self.weight, self.absmax, bias, self)  # type: ignore[no-untyped-call]
        return y.to(x.dtype)


class _Dequantized8bit(torch.autograd.Function):
    """y = x W^T + b as bitsandbytes trains it on a CPU: it keeps x, although W is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        ctx.x = x
        ctx.save_for_backward(weight, scales)
        y: Tensor = nn.functional.linear(x, weight.to(x.dtype).mul_(scales[:, None]), bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, scales = ctx.saved_tensors
        grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[3] else None
        return grad @ weight.to(grad.dtype).mul_(scales[:, None]), None, None, grad_bias


class Linear8bitStandIn(bnb.Linear8bitLt):  # type: ignore[misc]  # bitsandbytes is not typed
    """What `bnb.nn.Linear8bitLt` keeps and allocates.

    Args:
        layer: The linear layer that would be quantized; may be on the meta device.
    """

    def __init__(self, layer: nn.Module) -> None:
        in_features, out_features = layer_features(layer)
        super().__init__(in_features, out_features, bias=False, has_fp16_weights=False, device="meta")
        packed = torch.empty(out_features, in_features, dtype=torch.int8, device="meta")
        self.weight = bnb.Int8Params(packed, requires_grad=False, has_fp16_weights=False)
        self.bias = layer.bias
        self.register_buffer("row_scales", torch.empty(out_features, device="meta"), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) to (..., out_features), the dtype of x."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return cast("Tensor", _Dequantized8bit.apply(x, self.weight, self.row_scales, bias))  # type: ignore[no-untyped-call]


def quantize_without_storage(
    model: PreTrainedModel, settings: QuantizationSettings, compute_dtype: torch.dtype, trained: Collection[str]
) -> None:
    """Replaces the layers that bitsandbytes would quantize by stand-ins, in place.

    Args:
        model: On the meta device.
        settings: How to quantize.
        compute_dtype: In which dtype 4-bit weights are multiplied.
        trained: Dotted names of the modules that train in full, and are not quantized.
    """
    is_4bit = settings.bits == FOUR
    for name, layer in linear_layers(model, modules_left(model, settings, trained)).items():
        parent, _, last = name.rpartition(".")
        stand_in = Linear4bitStandIn(layer, settings, compute_dtype) if is_4bit else Linear8bitStandIn(layer)
        setattr(model.get_submodule(parent), last, stand_in)
    # By these PEFT decides which of its layers an adapter gets.
    vars(model).update(is_loaded_in_4bit=is_4bit, is_loaded_in_8bit=not is_4bit)
