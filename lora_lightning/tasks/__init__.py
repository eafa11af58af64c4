"""LightningModules, one for each kind of task: the adapted model, its loss, its metrics and its predictions.

Nothing here reads data or writes files.
"""

from lora_lightning.tasks.base import AdaptationTask
from lora_lightning.tasks.causal_language_modeling import CausalLanguageModelingTask
from lora_lightning.tasks.generation import GenerationSettings
from lora_lightning.tasks.optimization import OptimizationSettings
from lora_lightning.tasks.planted_rank import PlantedRankTask
from lora_lightning.tasks.question_answering import QuestionAnsweringTask
from lora_lightning.tasks.sequence_classification import SequenceClassificationTask

__all__ = [
    "AdaptationTask",
    "CausalLanguageModelingTask",
    "GenerationSettings",
    "OptimizationSettings",
    "PlantedRankTask",
    "QuestionAnsweringTask",
    "SequenceClassificationTask",
]
