"""Train, measure and export LoRA and QLoRA adapters with PyTorch Lightning.

`train`, `evaluate`, `predict` and `RunRecord` are the Python interface of the program `lora-lightning`. They are
imported on first use, so that importing this package loads nothing heavy. Import other classes from the subpackages,
for example `lora_lightning.tasks.SequenceClassificationTask`.
"""

from importlib import import_module

TYPE_CHECKING = False  # type checkers treat it as True; importing `typing` would take longer than everything else
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
    """Imports a name in `__all__` on first use (PEP 562)."""
    if name not in HOMES:
        msg = f"module 'lora_lightning' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    """Returns the names in this package, for tab completion."""
    return sorted([*globals(), *__all__])
