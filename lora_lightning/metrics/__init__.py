"""What torchmetrics lacks, and the set of metrics each task reports."""

from lora_lightning.metrics.intents import IntentMetrics
from lora_lightning.metrics.label_space import OUT_OF_SCOPE_TARGET, LabelSpace
from lora_lightning.metrics.out_of_scope import best_threshold, in_scope_prediction, out_of_scope_score

__all__ = [
    "OUT_OF_SCOPE_TARGET",
    "IntentMetrics",
    "LabelSpace",
    "best_threshold",
    "in_scope_prediction",
    "out_of_scope_score",
]
