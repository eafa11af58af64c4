"""Models whose weights are sharded over several processes (FSDP2), and their full tensors."""

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from lora_lightning.lora.delta import full_tensor

Result = TypeVar("Result")


def shard_model(model: nn.Module, mesh: DeviceMesh) -> None:
    """Leaves each process a shard of every parameter, frozen or trainable; in place, once.

    A layer's weights are gathered while it computes, forwards and backwards, and freed again; the weights outside the
    layers (embeddings, head) are gathered while the model computes. Only trainable parameters have gradients to reduce,
    in float32. Weights are gathered in their own dtype, so that autocast computes as it does without sharding.

    Values come from the main process: no other process ever holds more than its shards.

    Args:
        model: A transformers model with its adapters in place, the same on every process. Its values matter on the main
            process alone; elsewhere it may be on the meta device.
        mesh: The processes, one dimension, the main process first.
    """
    for part in (*transformer_layers(model), model):
        places = _make_room(part, mesh)
        # By default the outermost module keeps its weights gathered; PEFT, which freezes and unfreezes modules around a
        # forward pass without adapters, would then unfreeze copies, and the head would stop training.
        policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
        fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        _hand_out(places, mesh)
    model.call = MethodType(_call, model)  # type: ignore[assignment]
    register_fsdp_forward_method(model, "call")


def _make_room(part: nn.Module, mesh: DeviceMesh) -> list[tuple[nn.Module, str, Tensor]]:
    """Gives storage to parameters on the meta device, and buffers their values.

    An operating system provides memory only when it is written to, so what `fully_shard` discards was never provided.

    Returns:
        Each parameter that is not sharded yet, shared parameters once, with its module and its name there.
    """
    device = torch.device(mesh.device_type)
    places: dict[int, tuple[nn.Module, str, Tensor]] = {}
    for module in part.modules():
        for name, buffer in module.named_buffers(recurse=False):
            values = torch.empty_like(buffer, device=device) if buffer.is_meta else buffer.to(device)
            distributed.broadcast(values, group=mesh.get_group(), group_src=0)
            setattr(module, name, values)
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                continue
            if id(parameter) not in places:
                room: Tensor = parameter
                if parameter.is_meta:
                    room = nn.Parameter(torch.empty_like(parameter, device=device), parameter.requires_grad)
                places[id(parameter)] = module, name, room
            setattr(module, name, places[id(parameter)][2])
    return list(places.values())


@torch.no_grad()
def _hand_out(places: list[tuple[nn.Module, str, Tensor]], mesh: DeviceMesh) -> None:
    """Sends every process the values of its shards from the main process; collective."""
    for module, name, values in places:
        own = local_shard(getattr(module, name))
        if mesh.get_local_rank():
            if own.numel():  # some processes have no part of a small tensor
                distributed.recv(own, group=mesh.get_group(), group_src=0)
            continue
        for rank, part in enumerate(values.chunk(mesh.size())):  # as `fully_shard` cuts
            if rank:
                distributed.send(part.to(own.device), group=mesh.get_group(), group_dst=rank)


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that a transformer is a stack of.

    Args:
        model: Any; a model without a list of modules has no layers.

    Returns:
        The members of its outermost `nn.ModuleList`s, in the model's order.
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    return [
        layer
        for name, members in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists)
        for layer in members
    ]


def is_sharded(model: nn.Module) -> bool:
    """Whether a model, or anything in it, is sharded by `shard_model`."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def run_as_forward(model: nn.Module, function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function that uses a model's parts and weights, not only its `forward`.

    Args:
        model: Sharded or not. The function must not call the model itself.
        function: What to call.
        arguments: Its arguments, which may contain tensors.

    Returns:
        The function's result; gradients flow through its tensors.
    """
    if not isinstance(model, FSDPModule):
        return function(*arguments)
    return cast("Result", cast("Any", model).call(function, *arguments))


def _call(_model: nn.Module, function: Callable[..., Result], *arguments: Any) -> Result:
    return function(*arguments)


def full_state_dict(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """The state of a sharded model without its frozen parameters, gathered one tensor at a time; collective.

    Args:
        model: The same on every process.
        keep: Whether this process keeps the values.

    Returns:
        Full tensors by name, on the CPU, or without values on the meta device.
    """
    frozen = {n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    return {
        name: gather_full_tensor(tensor, keep=keep) for name, tensor in model.state_dict().items() if name not in frozen
    }


def gather_full_tensor(tensor: Tensor, *, keep: bool) -> Tensor:
    """Gathers a tensor; collective if it is sharded.

    Args:
        tensor: Sharded or not.
        keep: Whether this process keeps the values.

    Returns:
        The full tensor on the CPU, or without values on the meta device.
    """
    return full_tensor(tensor).to("cpu" if keep else "meta")


def local_shard(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, in the same memory; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shard_like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """Takes this process's shard of a full tensor, sharded as another tensor of the same shape is.

    Args:
        tensor: Full, with its values on every process.
        pattern: Sharded or not.

    Returns:
        The tensor, sharded like `pattern`; the tensor itself if `pattern` is not sharded or has another shape.
    """
    if not isinstance(pattern, DTensor) or tensor.shape != pattern.shape:
        return tensor
    return distribute_tensor(tensor.to(pattern.device), pattern.device_mesh, pattern.placements, src_data_rank=None)


def shard_state_dict_like(state: Mapping[str, Tensor], pattern: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Takes this process's shards of full tensors.

    Args:
        state: Full tensors by name.
        pattern: The model's own tensors by name.

    Returns:
        The same names; tensors of unknown names or other shapes are unchanged.
    """
    return {name: shard_like(tensor, pattern[name]) if name in pattern else tensor for name, tensor in state.items()}
