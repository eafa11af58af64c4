"""LightningDataModules and their readers: from files or the hub to tokenized, batched examples, one module a data set.

Nothing here knows a model beyond its tokenizer and config.
"""

from lora_lightning.datamodules.base import AdaptationDataModule
from lora_lightning.datamodules.causal_language_modeling import CausalLMDataModule
from lora_lightning.datamodules.clinc150 import Clinc150DataModule
from lora_lightning.datamodules.glue import GlueDataModule
from lora_lightning.datamodules.instructions import InstructionDataModule
from lora_lightning.datamodules.intents import IntentDataModule
from lora_lightning.datamodules.plain_text import PlainTextDataModule
from lora_lightning.datamodules.planted_rank import PlantedRankDataModule
from lora_lightning.datamodules.sequence_classification import ClassificationDataModule
from lora_lightning.datamodules.squad_v2 import SquadV2DataModule
from lora_lightning.datamodules.synthetic_intents import SyntheticIntentsDataModule
from lora_lightning.datamodules.text_base import TextDataModule
from lora_lightning.datamodules.text_classification import TextClassificationDataModule

__all__ = [
    "AdaptationDataModule",
    "CausalLMDataModule",
    "ClassificationDataModule",
    "Clinc150DataModule",
    "GlueDataModule",
    "InstructionDataModule",
    "IntentDataModule",
    "PlainTextDataModule",
    "PlantedRankDataModule",
    "SquadV2DataModule",
    "SyntheticIntentsDataModule",
    "TextClassificationDataModule",
    "TextDataModule",
]
