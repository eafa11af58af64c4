"""Where batches come from, one module a data set."""

from lora_lightning.datamodules.base import TextDataModule
from lora_lightning.datamodules.classification import ClassificationDataModule
from lora_lightning.datamodules.clinc150 import Clinc150DataModule
from lora_lightning.datamodules.intents import IntentDataModule
from lora_lightning.datamodules.synthetic_intents import SyntheticIntentsDataModule

__all__ = [
    "ClassificationDataModule",
    "Clinc150DataModule",
    "IntentDataModule",
    "SyntheticIntentsDataModule",
    "TextDataModule",
]
