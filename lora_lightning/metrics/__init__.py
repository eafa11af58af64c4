"""What torchmetrics lacks, the set of metrics each task reports, and which direction of each is better.

Nothing here knows a model or a data module.
"""

from lora_lightning.metrics.classification import ClassificationMetrics, chosen_metrics, scores_and_decisions
from lora_lightning.metrics.intents import IntentMetrics
from lora_lightning.metrics.label_space import MULTI_LABEL, OUT_OF_SCOPE_TARGET, REGRESSION, SINGLE_LABEL, LabelSpace
from lora_lightning.metrics.out_of_scope import best_threshold, in_scope_prediction, out_of_scope_score

__all__ = [
    "MULTI_LABEL",
    "OUT_OF_SCOPE_TARGET",
    "REGRESSION",
    "SINGLE_LABEL",
    "ClassificationMetrics",
    "IntentMetrics",
    "LabelSpace",
    "best_threshold",
    "chosen_metrics",
    "classification_metrics",
    "in_scope_prediction",
    "out_of_scope_score",
    "scores_and_decisions",
]


def classification_metrics(space: LabelSpace) -> ClassificationMetrics:
    """The metrics that fit a data set's labels.

    Args:
        space: The labels.

    Returns:
        Metrics for one split.

    Raises:
        ConfigurationError: If `space.metrics` names one that does not exist for such labels.
    """
    return IntentMetrics(space) if space.has_out_of_scope or space.domains else ClassificationMetrics(space)
