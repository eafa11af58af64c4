"""What `compress` measured and decided."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lora_lightning.artefacts.loader_rules import LoaderCheck
from lora_lightning.statistics import Metric, Verdict
from lora_lightning.statistics.analysis import as_json
from lora_lightning.statistics.jackknife import Interval

Layout = Literal["portable", "exact", "mixed"]
Rule = Literal["full", "uniform", "budget", "energy", "cumulative", "trained"]


@dataclass(frozen=True)
class RankMeasurement:
    """An adapter of some ranks on a split, compared with the full adapter on the same examples.

    Attributes:
        name: Such as `k = 8`.
        rule: How the ranks were chosen: `full` as trained; `uniform` one for all layers; `budget` one budget of
            parameters over all layers; `energy` and `cumulative` a share of each layer's squared or plain singular
            values; `trained` another run.
        k: The rank of a uniform adapter, or the one whose parameters are the budget; `None` for other rules.
        ranks: By layer; empty for `trained`.
        parameters: Of the factors.
        examples: How many the metric counts, such as those in scope; what gets no verdict is measured on some only.
        value: The metric on them (of a perplexity its logarithm).
        difference: From the full adapter, signed so that larger is better, in the unit of the value; without ends for
            the full adapter, and if the metric is undefined for one of both on these examples.
        verdict: `None` for those that are only compared.
        p_value: One-sided, of "worse by the margin or more"; NaN if there is none.
        missing_examples: With about how many examples of this kind the observed difference would be proven, with a
            power of 80 %; `None` without a verdict, and if it is worse or beyond the margin.
        threshold: For out-of-scope queries or unanswerable questions, as validation chooses it with this adapter;
            `None` for a task without one.
    """

    name: str
    rule: Rule
    k: int | None
    ranks: Mapping[str, int]
    parameters: int
    examples: int
    value: float
    difference: Interval
    verdict: Verdict | None = None
    p_value: float = float("nan")
    missing_examples: int | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Sizes:
    """Bytes of the weight file.

    Attributes:
        full: Of the run's own adapter, in the run's precision.
        kept: Of the ranks that are enough, without padding, in float32.
        written: Of the folder that was written, in float32.
        full_in_float32: Of the run's own adapter, if it were in float32.
    """

    full: int
    kept: int
    written: int
    full_in_float32: int


@dataclass(frozen=True)
class ChosenThreshold:
    """The threshold that the written folder holds, chosen on validation with the truncated adapter.

    Attributes:
        name: `out_of_scope_threshold`, `label_threshold` or `null_threshold`.
        full: Of the full adapter, chosen in the same way.
        written: In the folder.
        metrics: What follows it on the test split, by name: of the full adapter and of the written one.
    """

    name: str
    full: float
    written: float
    metrics: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class CompressResult:
    """A finished compression.

    Attributes:
        source: The run.
        output: The folder that was written.
        metric: What decides, with its margin.
        r: The largest rank of the adapter as it was trained.
        k: The least rank that is proven enough, or the rank whose size the budget has; `r` if no lower one is.
        rank: The largest rank in the written folder, padding included.
        layout: `portable`, `exact` or `mixed`.
        validation: The full adapter, all ranks that were measured from the largest down, and the rivals.
        test: The written folder, loaded again, on the test split.
        full_test: The full adapter on the test split.
        sizes: Bytes.
        loaders: What other programs make of the folder.
        max_logit_difference: Between the model that was judged and the folder, loaded again.
        largest_logit: Absolute.
        measured_on: What the validation examples are.
        tested_on: What the test examples are.
        is_tested_on_validation: Whether the test split has the rows of the validation split, on which the rank was
            chosen; then nothing is confirmed.
        seconds: Of everything after loading the run.
        threshold: `None` for a task without one.
        notes: Sentences for the user.
    """

    source: Path
    output: Path
    metric: Metric
    r: int
    k: int
    rank: int
    layout: Layout
    validation: tuple[RankMeasurement, ...]
    test: RankMeasurement
    full_test: RankMeasurement
    sizes: Sizes
    loaders: tuple[LoaderCheck, ...]
    max_logit_difference: float
    largest_logit: float
    measured_on: str
    tested_on: str
    is_tested_on_validation: bool
    seconds: float
    threshold: ChosenThreshold | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def full(self) -> RankMeasurement:
        """The full adapter on the validation split."""
        return self.validation[0]

    @property
    def sequence(self) -> tuple[RankMeasurement, ...]:
        """The candidates of the test sequence, from the largest down."""
        return tuple(found for found in self.validation[1:] if found.verdict is not None)

    @property
    def rivals(self) -> tuple[RankMeasurement, ...]:
        """What is only compared."""
        return tuple(found for found in self.validation[1:] if found.verdict is None)

    @property
    def chosen(self) -> RankMeasurement:
        """The candidate that was written."""
        return next((found for found in self.sequence if found.k == self.k), self.full)

    @property
    def confirmed(self) -> bool:
        """Whether other rows prove, too, that the written adapter is not worse by more than the margin."""
        return not self.is_tested_on_validation and self.test.verdict is not None and self.test.verdict.proven

    def as_json(self) -> dict[str, Any]:
        """The same as JSON can hold it; what is not finite is null."""
        content: dict[str, Any] = as_json(
            {
                **vars(self),
                "source": str(self.source),
                "output": str(self.output),
                "confirmed": self.confirmed,
            }
        )
        return content
