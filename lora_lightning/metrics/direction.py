"""Which metrics are better when they are lower, and which when they are higher; which values they can have."""

import math
import re

LOWER_IS_BETTER = (
    "loss",
    "calibration_error",
    "mean_absolute_error",
    "mean_squared_error",
    "out_of_scope_fpr_at_95_tpr",
    "perplexity",
    "logperplexity",
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
SHARES = (*HIGHER_IS_BETTER, "calibration_error", "out_of_scope_fpr_at_95_tpr")


NEGATIONS = ("1_", "neg_", "minus_", "one_minus_", "non_", "not_")  # such as 1 - accuracy, which is an error
QUALIFIERS = ("_at_threshold", "_macro", "_micro", "_weighted")  # which decision, or which mean over labels


def higher_is_better(metric: str) -> bool | None:
    """Looks up the direction of a metric.

    Args:
        metric: Its name, such as `"in_scope_accuracy"`, `"f1_macro"` or `"domain_accuracy/travel"`; words before it and
            upper case do not matter.

    Returns:
        Whether larger values are better; `None` if the metric is unknown, such as `"inaccuracy"` or `"neg_loss"`.
    """
    name = _known_name(metric)
    return not name.endswith(LOWER_IS_BETTER) if name else None


def metric_range(metric: str) -> tuple[float, float]:
    """Looks up which values a metric can have.

    Args:
        metric: Its name, such as `"out_of_scope_f1_at_threshold"` or `"domain_accuracy/travel"`.

    Returns:
        The least and the greatest; infinite ones for an unknown metric.
    """
    name = _known_name(metric)
    if name.endswith(CORRELATIONS):
        return -1.0, 1.0
    if name.endswith("perplexity"):
        return 1.0, math.inf
    if name.endswith(("loss", "mean_absolute_error", "mean_squared_error")):
        return 0.0, math.inf
    return (0.0, 1.0) if name.endswith(SHARES) else (-math.inf, math.inf)


def is_logarithm(metric: str) -> bool:
    """Whether a name says that its values are natural logarithms: `"log_perplexity"`, but not `"dialog_perplexity"`.

    Args:
        metric: The name.
    """
    return not {"log", "ln", "logperplexity"}.isdisjoint(re.split(r"[^a-z0-9]+", _lower_words(metric)))


def _known_name(metric: str) -> str:
    """The first part between slashes whose direction is known, without qualifiers; empty if there is none."""
    for part in metric.split("/"):
        name = "_".join(_lower_words(part).replace("-", "_").split())
        for qualifier in QUALIFIERS:
            name = name.removesuffix(qualifier)
        known = any(f"_{name}".endswith(f"_{each}") for each in (*LOWER_IS_BETTER, *HIGHER_IS_BETTER))
        if known and not name.startswith(NEGATIONS):
            return name
    return ""


def _lower_words(name: str) -> str:
    """A name in lower case, whose words are apart: `test_accuracy` for `testAccuracy`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
