"""What torchmetrics lacks, the set of metrics each task reports, and which direction of each is better.

Nothing here knows a model or a data module. Names are imported on first use, because torchmetrics takes seconds, and
`direction` is also for commands that only read tables.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_lightning.metrics.classification import ClassificationMetrics, chosen_metrics, scores_and_decisions
    from lora_lightning.metrics.decision_threshold import ThresholdMetrics
    from lora_lightning.metrics.intents import IntentMetrics, classification_metrics
    from lora_lightning.metrics.label_space import (
        MULTI_LABEL,
        OUT_OF_SCOPE_TARGET,
        REGRESSION,
        SINGLE_LABEL,
        LabelSpace,
    )
    from lora_lightning.metrics.out_of_scope import best_threshold, in_scope_prediction, out_of_scope_score

__all__ = [
    "MULTI_LABEL",
    "OUT_OF_SCOPE_TARGET",
    "REGRESSION",
    "SINGLE_LABEL",
    "ClassificationMetrics",
    "IntentMetrics",
    "LabelSpace",
    "ThresholdMetrics",
    "best_threshold",
    "chosen_metrics",
    "classification_metrics",
    "in_scope_prediction",
    "out_of_scope_score",
    "scores_and_decisions",
]

HOMES = {
    "ClassificationMetrics": "classification",
    "chosen_metrics": "classification",
    "scores_and_decisions": "classification",
    "ThresholdMetrics": "decision_threshold",
    "IntentMetrics": "intents",
    "classification_metrics": "intents",
    "best_threshold": "out_of_scope",
    "in_scope_prediction": "out_of_scope",
    "out_of_scope_score": "out_of_scope",
}  # all others are in `label_space`


def __getattr__(name: str) -> object:
    """Imports a name in `__all__` on first use (PEP 562)."""
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{HOMES.get(name, 'label_space')}"), name)
