"""Two readers of PEFT folders that know no patterns, as other programs read them; written from their rules alone."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

PREFIX = "base_model.model."


@torch.no_grad()
def read_blindly(base: nn.Module, folder: Path, *, scale_by: str) -> None:
    """Adds an adapter to the weights of a base, scaled by one number of the configuration.

    Args:
        base: A plain transformers model; changed in place.
        folder: The adapter.
        scale_by: `config` for alpha / r of the configuration; `tensor` for alpha / rows of A.
    """
    config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    tensors: dict[str, Tensor] = load_file(folder / "adapter_model.safetensors")
    for name, tensor in tensors.items():
        path = name.removeprefix(PREFIX)
        if path.endswith(".lora_A.weight"):
            module = base.get_submodule(path.removesuffix(".lora_A.weight"))
            other = tensors[name.replace("lora_A", "lora_B")]
            rank = config["r"] if scale_by == "config" else len(tensor)
            update = config["lora_alpha"] / rank * other.double() @ tensor.double()
            weight = module.get_parameter("weight")
            weight += (update.T if isinstance(module, Conv1D) else update).to(weight)
        elif not path.endswith(".lora_B.weight"):  # a head
            base.get_parameter(path).copy_(tensor)
