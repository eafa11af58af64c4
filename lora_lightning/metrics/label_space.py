"""What tasks, metrics and reports have to know of a data set's labels."""

from dataclasses import dataclass

OUT_OF_SCOPE_TARGET = -1  # target of a query that has no class


@dataclass(frozen=True)
class LabelSpace:
    """The labels of a data set.

    Args:
        names: Class names, by index.
        out_of_scope_index: Index of the class for queries out of scope, or `None` where there is none.
        has_out_of_scope: Whether the data has out-of-scope queries (with a class or without).
        domains: Class indices by domain; empty where there are no domains.
    """

    names: list[str]
    out_of_scope_index: int | None
    has_out_of_scope: bool
    domains: dict[str, list[int]]
