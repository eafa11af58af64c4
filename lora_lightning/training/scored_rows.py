"""How many rows of a split were scored, if a limit of batches left some out."""

from collections.abc import Mapping
from typing import Any

from lightning import Trainer

from lora_lightning.datamodules import AdaptationDataModule
from lora_lightning.datamodules.base import TEST
from lora_lightning.datamodules.batching import LengthGroupedBatchSampler

SCORED_ROWS = "scored_rows"  # beside the metrics in a file


def scored_rows(trainer: Trainer, datamodule: AdaptationDataModule, kind: str) -> dict[str, str]:
    """Counts the rows that `trainer.limit_val_batches` or `limit_test_batches` leaves.

    Args:
        trainer: Has scored the splits.
        datamodule: With these splits.
        kind: `val` or `test`.

    Returns:
        In words by split, such as `"8 of 26 rows"`; empty if all rows are scored.
    """
    limit: int | float = trainer.limit_test_batches if kind == TEST else trainer.limit_val_batches
    if isinstance(limit, float) and limit == 1:
        return {}
    loaders = datamodule.test_dataloader() if kind == TEST else datamodule.val_dataloader()
    pairs = zip(datamodule.split_names(kind), loaders if isinstance(loaders, list) else [loaders], strict=False)
    counted = {name: _count(loader, limit) for name, loader in pairs}
    return {name: text for name, text in counted.items() if text}


def _count(loader: Any, limit: float) -> str:
    """Lightning takes a whole number of batches, or a share of them, rounded down."""
    try:
        everything = len(loader)
    except TypeError:  # a stream of a user's own
        return f"at most {limit:,} batches"
    batches = int(everything * limit) if isinstance(limit, float) else min(limit, everything)
    if batches == everything:
        return ""
    sampler = loader.sampler
    if isinstance(sampler, LengthGroupedBatchSampler):
        return f"{sampler.rows_of(batches):,} of {len(sampler.lengths):,} rows"
    return f"{batches:,} of {everything:,} batches"


def in_words(rows: Mapping[str, str]) -> str:
    """Says which splits were not scored in full.

    Args:
        rows: From `scored_rows`.

    Returns:
        A clause; empty if all were.
    """
    scores = [f"those of {split} are of {text}" for split, text in rows.items()]
    return f"not all rows were scored (trainer.limit_*_batches): {', '.join(scores)}" if scores else ""
