"""Loads the weights of a checkpoint into a model temporarily, to export or measure them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lora_lightning.lora.sharding import local_shard, shard_like


@contextmanager
def temporary_weights(model: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Replaces the weights of a model in place, and restores them bit for bit afterwards.

    Args:
        model: The task with its network built, sharded or not.
        state: Full tensors by dotted name, such as a checkpoint's `state_dict`. Every process needs them if the model
            is sharded. Parameters and buffers that are not in it stay unchanged.

    Yields:
        Nothing. Inside the `with` block, the model has the given weights.
    """
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    replaced: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for name, value in state.items():
                place = local_shard(own[name].detach())
                new = local_shard(shard_like(value, own[name])).to(place)
                if not torch.equal(place, new):
                    replaced.append((place, place.clone()))
                    place.copy_(new)
        yield
    finally:
        with torch.no_grad():
            for place, former in replaced:
                place.copy_(former)
