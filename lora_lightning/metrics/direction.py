"""Which metrics are better when they are lower, and which when they are higher; which values they can have."""

import math
import re
from collections.abc import Sequence

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


NEGATION = "1_"  # at the start, such as 1 - accuracy, which is an error; "top-1-accuracy" is none
# Words before a metric's name, with which it is another quantity: another direction, or no share.
SPREADS_AND_COUNTS = {"delta", "epochs", "seconds", "std", "steps"}
OTHER_QUANTITY = SPREADS_AND_COUNTS | {
    *("change", "decrease", "difference", "diff", "drop", "gap", "increase", "inv", "inverse", "minus", "neg"),
    *("negative", "non", "not", "reduction", "sd", "time", "variance"),
}
JOINING = {"in", "of", "to"}  # right before a metric's name, such as "loss of accuracy", "seconds to accuracy"
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
    """The first part between slashes whose direction is known, without qualifiers; empty if there is none.

    None is known of what is derived from a metric, such as the seconds until an accuracy is reached.
    """
    parts = metric.split("/")
    for place, part in enumerate(parts):
        name = "_".join(_lower_words(part).replace("-", "_").split())
        for qualifier in QUALIFIERS:
            name = name.removesuffix(qualifier)
        known = [each for each in (*LOWER_IS_BETTER, *HIGHER_IS_BETTER) if f"_{name}".endswith(f"_{each}")]
        if known and not name.startswith(NEGATION):
            before = name.removesuffix(max(known, key=len)).split("_")[:-1]
            return "" if _is_other_quantity(before, parts[place + 1 :]) else name
    return ""


def _is_other_quantity(before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether words before a metric's name, or parts after its slash, say that it is not the metric itself."""
    joined, derived = not JOINING.isdisjoint(before[-1:]), not OTHER_QUANTITY.isdisjoint(before)
    return joined or derived or not SPREADS_AND_COUNTS.isdisjoint(map(_lower_words, after))


def _lower_words(name: str) -> str:
    """A name in lower case, whose words are apart: `test_accuracy` for `testAccuracy`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
