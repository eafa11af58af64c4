"""Check a saved optimizer state against the parameters that it is for, before the optimizer takes it.

PyTorch compares the number of parameters only, and its fused kernels read beyond tensors of other shapes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lora_lightning.errors import CheckpointError

STEP = "step"
MOMENTS = {"exp_avg", "exp_avg_sq"}
LARGEST_MOMENT = "max_exp_avg_sq"  # of AMSGrad
MUST_AGREE = ("amsgrad", "maximize", "capturable", "differentiable")
PATHS = ("fused", "foreach")  # may differ by machine
REMEDY = "the checkpoint is damaged or of other settings; use another file of the run"


def check_optimizer_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Refuses a state whose tensors or options do not fit; `register_load_state_dict_pre_hook` takes the function.

    Args:
        optimizer: AdamW or a subclass, with its parameters, sharded or not.
        state: As `state_dict()` returned it: full tensors, or sharded like the parameters.

    Raises:
        CheckpointError: If a group, a tensor's shape or dtype, or an option differs; names the entry.
    """
    if not isinstance(state.get("state"), Mapping) or not isinstance(state.get("param_groups"), list):
        msg = f"the optimizer state has no state and param_groups: {REMEDY}."
        raise CheckpointError(msg)
    _check_groups(optimizer.param_groups, state["param_groups"])
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    amsgrad = [group.get("amsgrad", False) for group in optimizer.param_groups for _ in group["params"]]
    for number, values in state["state"].items():
        if type(number) is not int or not 0 <= number < len(parameters) or not isinstance(values, Mapping):
            msg = f"the optimizer state has an entry {str(number)[:60]!r} for no parameter of this model: {REMEDY}."
            raise CheckpointError(msg)
        expected = {STEP, *MOMENTS} | ({LARGEST_MOMENT} if amsgrad[number] else set())
        if set(values) != expected:
            found, wanted = sorted(map(str, values)), sorted(expected)
            msg = f"the optimizer state of parameter {number} holds {found}, but needs {wanted}: {REMEDY}."
            raise CheckpointError(msg)
        for name, value in values.items():
            shape = torch.Size() if name == STEP else parameters[number].shape
            _check_value(f"{name} of parameter {number}", value, shape)


def _check_groups(own: Sequence[Mapping[str, Any]], saved: Sequence[Any]) -> None:
    sizes = [len(group["params"]) for group in own]
    first = 0
    for number, size in enumerate(sizes):
        group = saved[number] if number < len(saved) else None
        if not isinstance(group, Mapping) or group.get("params") != list(range(first, first + size)):
            break
        _check_options(own[number], group, number)
        first += size
    else:
        if len(saved) == len(sizes):
            return
    msg = f"the optimizer state is not of parameter groups of {sizes} parameters, which this model trains: {REMEDY}."
    raise CheckpointError(msg)


def _check_options(own: Mapping[str, Any], saved: Mapping[str, Any], number: int) -> None:
    wrong = [name for name in MUST_AGREE if name in saved and saved[name] is not own.get(name)]
    wrong += [name for name in PATHS if not isinstance(saved.get(name), bool | None)]
    wrong += [name for name in ("lr", "eps", "weight_decay") if not _is_number(saved.get(name))]
    betas = saved.get("betas")
    if not isinstance(betas, list | tuple) or len(betas) != len(own["betas"]) or not all(map(_is_share, betas)):
        wrong.append("betas")
    if wrong:
        value = str(saved.get(wrong[0]))[:60]
        msg = f"the optimizer state has {wrong[0]} = {value} in parameter group {number}: {REMEDY}."
        raise CheckpointError(msg)


def _is_number(value: Any) -> bool:
    """A finite number of at least 0."""
    return type(value) in {int, float} and 0 <= value < float("inf")


def _is_share(value: Any) -> bool:
    return _is_number(value) and value < 1


def _check_value(name: str, value: Any, shape: torch.Size) -> None:
    if not isinstance(value, Tensor) or value.shape != shape or not value.is_floating_point():
        found = f"{tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        msg = f"the optimizer state's {name} is {found}, but needs {tuple(shape)}, floating point: {REMEDY}."
        raise CheckpointError(msg)
