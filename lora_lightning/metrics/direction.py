"""Which metrics are better when they are lower, and which when they are higher."""

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
