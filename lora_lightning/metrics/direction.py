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
