"""Train, measure and export LoRA and QLoRA adapters with PyTorch Lightning.

`train`, `evaluate`, `predict` and `RunRecord` are the Python side of the program `lora-lightning`. They are imported
when they are first used, so that importing this package loads nothing heavy. Other classes are imported from the
subpackages, for example `lora_lightning.tasks.SequenceClassificationTask`.
"""

from importlib import import_module

TYPE_CHECKING = False  # to a type checker it is True; importing `typing` would take longer than all the rest
if TYPE_CHECKING:
    from lora_lightning.runs.record import RunRecord
    from lora_lightning.training.api import evaluate, predict, train

__version__ = "0.1.0"
__all__ = ["RunRecord", "evaluate", "predict", "train"]

HOMES = {
    "RunRecord": "lora_lightning.runs.record",
    "evaluate": "lora_lightning.training.api",
    "predict": "lora_lightning.training.api",
    "train": "lora_lightning.training.api",
}


def __getattr__(name: str) -> object:
    """Imports what is in `__all__` at its first use (PEP 562)."""
    if name not in HOMES:
        msg = f"module 'lora_lightning' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    """What `from lora_lightning import ...` finds, for completion."""
    return sorted([*globals(), *__all__])
