"""Which metrics are better when they are lower, and which when they are higher; which values they can have."""

import math

LOWER_IS_BETTER = (
    "loss",
    "calibration_error",
    "mean_absolute_error",
    "mean_squared_error",
    "out_of_scope_fpr_at_95_tpr",
    "perplexity",
)
HIGHER_IS_BETTER = (  # also at the end of longer names
    "accuracy",
    "auroc",
    "correlation",
    "exact",
    "exact_match",
    "f1",
    "pearson",
    "precision",
    "recall",
    "spearman",
)
CORRELATIONS = ("correlation", "pearson", "spearman")
SHARES = (*HIGHER_IS_BETTER, "calibration_error", "mean_average_precision", "out_of_scope_fpr_at_95_tpr")


def higher_is_better(metric: str) -> bool | None:
    """Looks up the direction of a metric.

    Args:
        metric: Its name, such as `"in_scope_accuracy"`; prefixes and upper case do not matter.

    Returns:
        Whether larger values are better; `None` if the metric is unknown.
    """
    name = "_".join(metric.lower().replace("/", "_").replace("-", "_").split())
    if name.endswith(LOWER_IS_BETTER):
        return False
    return True if name.endswith(HIGHER_IS_BETTER) else None


def metric_range(metric: str) -> tuple[float, float]:
    """Looks up which values a metric of a task can have.

    Args:
        metric: Its name, such as `"out_of_scope_f1_at_threshold"` or `"domain_accuracy/travel"`.

    Returns:
        The least and the greatest; infinite ones for an unknown metric.
    """
    name = metric.partition("/")[0].removesuffix("_at_threshold")
    if name.endswith(CORRELATIONS):
        return -1.0, 1.0
    if name.endswith("perplexity"):
        return 1.0, math.inf
    if name.endswith(("loss", "mean_absolute_error", "mean_squared_error")):
        return 0.0, math.inf
    return (0.0, 1.0) if name.endswith(SHARES) else (-math.inf, math.inf)
