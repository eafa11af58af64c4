"""Check that training did not change the frozen base."""

import hashlib
from collections.abc import Iterator

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lora_lightning.errors import VerificationError
from lora_lightning.loggers import boards_of
from lora_lightning.lora.delta import adapted_layers
from lora_lightning.lora.parameter_names import is_trainable_by_name
from lora_lightning.tasks import AdaptationTask


class FrozenBaseCheck(Callback):
    """Checks that only adapters and the head are trainable, and that frozen tensors get no gradient and do not change.

    Parameters, buffers, and the scales and code books of weights that bitsandbytes quantized are hashed when training
    starts and when it ends (SHA-256: about a second for each GB, and from a GPU the transfer; one tensor at a time is
    copied to the host). Each process checks its own copy or shard.

    Logs `verification/frozen_base/unchanged_tensors`, their number.
    """

    def __init__(self) -> None:
        self._hashes: dict[str, str] | None = None
        self._checked_gradients = False
        self._fault: str | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hashes the frozen tensors.

        Raises:
            VerificationError: If a parameter of the base is trainable.
        """
        self._hashes, self._fault, self._checked_gradients = None, None, False
        if all(parameter.requires_grad for parameter in pl_module.parameters()):
            if trainer.is_global_zero:
                print("FrozenBaseCheck checks nothing: all parameters are trainable, so no base is frozen.")
            return
        if adapted_layers(pl_module):
            check_only_adapters_train(pl_module)
        self._hashes = {name: fingerprint(tensor) for name, tensor in frozen_tensors(pl_module)}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Looks for gradients of frozen parameters at the first step.

        Raises:
            VerificationError: If a frozen parameter has a gradient.
        """
        del trainer, optimizer
        if self._hashes is None or self._checked_gradients:
            return
        self._checked_gradients = True
        for name, parameter in pl_module.named_parameters():
            if not parameter.requires_grad and parameter.grad is not None:
                msg = f"the frozen parameter {name} has a gradient; do not set requires_grad or grad of the base."
                raise VerificationError(msg)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hashes the frozen tensors again and compares."""
        if self._hashes is None:
            return
        self._fault = find_fault(self._hashes, pl_module)
        unchanged = {"verification/frozen_base/unchanged_tensors": float(len(self._hashes))}
        for board in boards_of(trainer) if self._fault is None else []:
            board.add_constants(unchanged, trainer.global_step)
            board.add_text("frozen_base", self._result, trainer.global_step)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the result or raises, now that every checkpoint is written.

        Raises:
            VerificationError: If a frozen tensor changed, or is trainable now.
        """
        del pl_module
        if self._fault is not None:
            raise VerificationError(self._fault)
        if self._hashes is not None and trainer.is_global_zero:
            print(self._result)

    @property
    def _result(self) -> str:
        return f"frozen base: all {len(self._hashes or {})} tensors are unchanged."


def check_only_adapters_train(model: nn.Module) -> None:
    """Refuses trainable parameters in the base.

    Args:
        model: With adapters; biases (`bias: all`, `lora_only`) and `modules_to_save` may be trainable too.

    Raises:
        VerificationError: If another parameter requires a gradient; names the first.
    """
    lora = model.lora if isinstance(model, AdaptationTask) else None
    biases_may_train = lora is not None and lora.bias != "none"
    for name, parameter in model.named_parameters():
        may_train = is_trainable_by_name(name) or (biases_may_train and name.endswith(".bias"))
        if parameter.requires_grad and not may_train:
            msg = f"{name} belongs to the base but is trainable; set its requires_grad to False, or model.lora to null."
            raise VerificationError(msg)


def frozen_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors that training must not change.

    Args:
        model: With adapters; of a task, the pretrained model counts, its metrics and thresholds do not.

    Yields:
        Name and tensor: frozen parameters with bitsandbytes' states, and buffers, those not saved among them.
    """
    network = model.built_network if isinstance(model, AdaptationTask) else model
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    tensors = {**network.state_dict(), **dict(network.named_buffers())}
    for name, tensor in tensors.items():
        if name not in trained and isinstance(tensor, Tensor):  # LoRA-FA's A among them
            yield name, tensor


def find_fault(hashes: dict[str, str], model: nn.Module) -> str | None:
    """What happened to the frozen tensors since they were hashed.

    Args:
        hashes: Of `fingerprint`, by name.
        model: With adapters.

    Returns:
        A sentence; `None` if they are frozen and unchanged.
    """
    network = model.built_network if isinstance(model, AdaptationTask) else model
    for name, parameter in network.named_parameters():
        if parameter.requires_grad and name in hashes:
            return (
                f"{name} was frozen when training started and is trainable at its end; look for a callback or library "
                "that sets requires_grad, or calls PEFT's disable_adapter or set_adapter."
            )
    changed = first_difference(hashes, dict(frozen_tensors(model)))
    return changed and (
        f"the frozen base changed during training, {changed} first: the adapter belongs to weights that exist nowhere "
        "else; look for a callback, hook or library that writes into the base."
    )


def first_difference(hashes: dict[str, str], tensors: dict[str, Tensor]) -> str | None:
    """The first tensor that is missing, new or no longer what was hashed.

    Args:
        hashes: Of `fingerprint`, by name.
        tensors: What there is now, by name.

    Returns:
        Its name; `None` if all are the same.
    """
    for name, expected in hashes.items():
        if name not in tensors or fingerprint(tensors[name]) != expected:
            return name
    return next((name for name in tensors if name not in hashes), None)


def fingerprint(tensor: Tensor) -> str:
    """A hash of dtype, shape and bytes.

    Args:
        tensor: Any, of any dtype on any device; of a sharded one, this process's shard.

    Returns:
        SHA-256, in hexadecimal.
    """
    own = getattr(tensor, "to_local", lambda: tensor)().detach()
    content = own.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(f"{own.dtype} {tuple(own.shape)}".encode())
    digest.update(content.data)
    return digest.hexdigest()
