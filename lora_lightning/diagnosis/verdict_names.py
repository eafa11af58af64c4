"""The verdicts of a diagnosis, by the names that `require` takes."""

from enum import StrEnum


class VerdictName(StrEnum):
    """What a diagnosis decides.

    Attributes:
        NOT_WORSE: The quantized precision is proven not to be worse by more than the margin, at the compared rank.
        SAME_ADAPTERS_AS_ANOTHER_SEED: The change by precision is smaller than that by another seed.
        PRECISIONS_DIFFER: Adapters of the two precisions differ by more than adapters of one precision do.
        ENOUGH_RANK: A rank below the largest one is proven to be enough for the quantized precision.
        MORE_RANK: The largest rank buys back half of what quantization loses at the compared rank.
        MERGE_KEEPS_GAIN: Merging into the dequantized weights keeps the adapter's gain.
        SKIP_LIST_PROVEN: The list of modules to skip buys back the wanted share of the loss, and more than random ones.
        HEALTHY: No failure mode was found.
    """

    NOT_WORSE = "not_worse"
    SAME_ADAPTERS_AS_ANOTHER_SEED = "smaller_than_seed_noise"
    PRECISIONS_DIFFER = "precisions_differ"
    ENOUGH_RANK = "enough_rank"
    MORE_RANK = "more_rank_buys_back"
    MERGE_KEEPS_GAIN = "merge_keeps_gain"
    SKIP_LIST_PROVEN = "skip_list_proven"
    HEALTHY = "healthy"
