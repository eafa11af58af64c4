"""What tasks, metrics and reports have to know of a data set's labels."""

from dataclasses import dataclass, field
from typing import Literal

OUT_OF_SCOPE_TARGET = -1  # target of a query that has no class

# transformers' own words, which go into the model's configuration.
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
SINGLE_LABEL: ProblemType = "single_label_classification"
MULTI_LABEL: ProblemType = "multi_label_classification"
REGRESSION: ProblemType = "regression"


@dataclass(frozen=True)
class LabelSpace:
    """The labels of a data set.

    Args:
        names: Class names, by index; of a regression the name of the one number.
        out_of_scope_index: Index of the class for queries out of scope, or `None` where there is none.
        has_out_of_scope: Whether the data has out-of-scope queries (with a class or without).
        domains: Class indices by domain; empty where there are no domains.
        problem_type: One class a text, any number of them, or a number.
        metrics: What to report, by names of `lora_lightning.metrics`; `None` for what is usual.
    """

    names: list[str]
    out_of_scope_index: int | None = None
    has_out_of_scope: bool = False
    domains: dict[str, list[int]] = field(default_factory=dict)
    problem_type: ProblemType = SINGLE_LABEL
    metrics: list[str] | None = None
