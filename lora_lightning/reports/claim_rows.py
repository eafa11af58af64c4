"""What a study found about claims, as the rows of a table, for the terminal and for the HTML report."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from lora_lightning.statistics.claims import Claim, ClaimFinding, Quantity
from lora_lightning.statistics.jackknife import Interval
from lora_lightning.statistics.study_results import Metric
from lora_lightning.statistics.verdicts import shown_number

WORDS = {
    Quantity.DIFFERENCE: "difference",
    Quantity.EXPONENT: "exponent of {measurement} over r",
    Quantity.LEARNING_RATE_EXPONENT: "exponent of the best learning rate over r",
    Quantity.LEARNING_RATE_RATIO: "ratio of the best learning rates",
    Quantity.DIFFERENCE_AT_EQUAL_LOSS: "difference in {measurement} at equal validation loss",
}


@dataclass(frozen=True)
class ClaimRow:
    """A claim in a table; numbers are formatted.

    Attributes:
        claim: The claim.
        source: Who claims it.
        verdict: `PASS`, `FAIL` or `UNDECIDED`.
        quantity: What was measured, with its unit.
        claimed: The claimed range.
        found: The quantity with its interval, one text per configuration, with a dash where nothing is known.
        note: What was left out or is not counted, or why nothing is decided; may be empty.
        seeds: Number of seeds.
    """

    claim: str
    source: str
    verdict: str
    quantity: str
    claimed: str
    found: tuple[str, ...]
    note: str
    seeds: int

    @property
    def sentence(self) -> str:
        """All of it, in one line."""
        found = "; ".join(self.found)
        numbers = f"{self.quantity} {found}, {self.seeds} seed{'s' * (self.seeds != 1)}, claimed {self.claimed}"
        return f"{self.verdict}: {self.claim} ({self.source}): {numbers}.{f' {self.note}' if self.note else ''}"


def claim_rows(findings: tuple[ClaimFinding, ...], metric: Metric) -> list[ClaimRow]:
    """Arranges what was found about claims.

    Args:
        findings: Of the analysis.
        metric: The metric that decides.

    Returns:
        A row per claim.
    """
    return [_row(each, metric) for each in findings]


def _row(finding: ClaimFinding, metric: Metric) -> ClaimRow:
    claim = finding.claim
    of_metric = claim.quantity is Quantity.DIFFERENCE
    unit = metric.unit if of_metric else ""
    quantity = WORDS[claim.quantity].format(measurement=claim.measurement.replace("_", " "))

    def shown(number: float) -> str:
        return shown_number(number, metric) if of_metric else f"{round(number, 9) + 0.0:.3g}"

    found = tuple(f"{name}{': ' if name else ''}{_interval(each, shown)}" for name, each in finding.intervals.items())
    return ClaimRow(
        claim.claim,
        claim.source,
        str(finding.verdict),
        f"{quantity}{f',{unit}' if unit else ''}",
        claimed_range(claim),
        found or ("-",),
        finding.note,
        finding.seeds,
    )


def _interval(interval: Interval, shown: Callable[[float], str]) -> str:
    if math.isnan(interval.value):
        return "-"
    if math.isnan(interval.low):
        return f"{shown(interval.value)} (no interval)"
    return f"{shown(interval.value)} (95 % interval {shown(interval.low)} to {shown(interval.high)})"


def claimed_range(claim: Claim) -> str:
    """Formats the range of a claim, such as `-0.5 to 0.5` or `at least 0`."""
    if math.isinf(claim.high):
        return f"at least {claim.low:g}"
    return f"at most {claim.high:g}" if math.isinf(claim.low) else f"{claim.low:g} to {claim.high:g}"
