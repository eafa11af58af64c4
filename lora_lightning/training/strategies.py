"""FSDP2 with one checkpoint file that every strategy can load."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lora_lightning.compat.lightning import shard_over
from lora_lightning.lora.sharding import full_state_dict, gather_full_tensor, shard_like, shard_state_dict_like
from lora_lightning.runs.optimizer_state import check_optimizer_state


class FullyShardedStrategy(ModelParallelStrategy):
    """FSDP2: every process holds a shard of each weight, gradient and optimizer state.

    Lightning's `ModelParallelStrategy` over all processes, with the same checkpoints as the other strategies: one file
    that contains the trainable parameters as full tensors, and that any strategy with any number of processes can load.
    The frozen base is never gathered to be saved. The tasks shard their model in `configure_model`.

    Args:
        process_group_backend: For example `nccl` or `gloo`; `null` chooses by device.
    """

    def __init__(self, process_group_backend: str | None = None) -> None:
        super().__init__(
            data_parallel_size=1,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
        )

    def setup_environment(self) -> None:
        """Shards over all processes of all machines."""
        shard_over(self, self.num_nodes * self.num_processes)
        super().setup_environment()

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Returns true, so that Lightning calls `load_optimizer_state_dict`."""
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Returns the model's state: full tensors on the main process, no values on the others; collective."""
        return full_state_dict(self._module(), keep=self.is_global_zero)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Returns the optimizer's state with full tensors, as without sharding; collective."""
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        state: dict[str, Any] = apply_to_collection(
            plain.state_dict(), DTensor, gather_full_tensor, keep=self.is_global_zero
        )
        return state

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads the file on every process."""
        # Skips ModelParallelStrategy, which would load the model before anything is checked.
        return super(ModelParallelStrategy, self).load_checkpoint(checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Loads this process's shards of the weights."""
        module = self._module()
        module.load_state_dict(shard_state_dict_like(checkpoint["state_dict"], module.state_dict()), strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Loads this process's shards of the optimizer state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            check_optimizer_state(optimizer, saved)
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state = {
                number: {name: _shard(value, parameters[number]) for name, value in values.items()}
                for number, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})

    def _module(self) -> torch.nn.Module:
        assert self.lightning_module is not None  # noqa: S101  # Lightning attaches it first
        return self.lightning_module


def _shard(value: Any, parameter: Tensor) -> Any:
    return shard_like(value, parameter) if isinstance(value, Tensor) else value
