"""What `merge` measured and decided."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora_lightning.analysis.outputs import OutputDifference
from lora_lightning.lora.merging import MergeTarget
from lora_lightning.statistics import Interval, Recovery
from lora_lightning.statistics.analysis import as_json

DtypeName = Literal["float32", "bfloat16", "float16"]
FreshReference = Literal["adapter", "merged"]


@dataclass(frozen=True)
class MetricEstimate:
    """A metric of the task on the validation examples, with 95 % intervals.

    Intervals are those of the jackknife that leaves out one of ten groups of examples at a time; without ends if a
    metric has no value on some of them.

    Attributes:
        split: Of the examples, such as `val` or `val_mismatched`.
        name: Such as `accuracy`.
        adapter: Of the adapter beside its base.
        merged: Of the merged model.
        change: Merged minus adapter, on the same examples.
    """

    split: str
    name: str
    adapter: Interval
    merged: Interval
    change: Interval


@dataclass(frozen=True)
class MergeMeasurement:
    """How a merged folder, loaded again, compares with the adapter beside its base.

    Attributes:
        target: What the adapter was merged into.
        dtype: In which the folder keeps its weights; of a requantized one those that are not quantized.
        difference: Of the merged model from the adapter model.
        adapter_effect: Of the base without adapters from the adapter model.
        recovery: Share of the adapter's gain in log-likelihood that is left; `None` without labels.
        metrics: Of the task; empty without labels.
        size: Bytes of the weight files.
        failure: Why this folder is not good enough, as a clause; `None` if it is.
    """

    target: MergeTarget
    dtype: DtypeName
    difference: OutputDifference
    adapter_effect: OutputDifference
    recovery: Recovery | None
    metrics: tuple[MetricEstimate, ...]
    size: int
    failure: str | None = None

    def label(self, estimate: MetricEstimate) -> str:
        """The name of a metric, with its split if there are several."""
        several = len({each.split for each in self.metrics}) > 1
        return f"{estimate.split}/{estimate.name}" if several else estimate.name


@dataclass(frozen=True)
class FreshProcessCheck:
    """What a new process found that loaded the folder with transformers alone.

    Attributes:
        max_logit_difference: From the reference, largest absolute value.
        max_difference_after_saving_again: Between the folder and what transformers saved of it and loaded once
            more; `None` if transformers cannot save it, as a model that was loaded in 4 bits.
        largest_logit: Absolute, of the reference.
        reference: What it was compared with: the adapter model, or the merged model in this process where the merge
            rounds (`original`, `requantized`, and all in 16 bits), because the merge itself moves the logits then.
    """

    max_logit_difference: float
    max_difference_after_saving_again: float | None
    largest_logit: float
    reference: FreshReference = "adapter"


@dataclass(frozen=True)
class MergeResult:
    """A finished merge.

    Attributes:
        source: The run or adapter folder.
        output: The folder that was written.
        base_model: The base model's name in the model card; `None` if it is a local folder without a name.
        target: What the adapter was merged into.
        dtype: Of the weights.
        recommended: The target that changes least of those that passed.
        measured_on: What was compared, such as `val of Clinc150DataModule, 3100 examples`.
        monitor: The metric that decided which checkpoint is best; `None` if unknown.
        measurements: Of every target, the written one among them.
        fresh_process: What the new process found.
        notes: Sentences about what was not judged or not measured.
    """

    source: Path
    output: Path
    base_model: str | None
    target: MergeTarget
    dtype: DtypeName
    recommended: MergeTarget
    measured_on: str
    monitor: str | None
    measurements: tuple[MergeMeasurement, ...]
    fresh_process: FreshProcessCheck
    notes: tuple[str, ...] = ()

    @property
    def written(self) -> MergeMeasurement:
        """The measurement of the folder that was written."""
        return next(found for found in self.measurements if (found.target, found.dtype) == (self.target, self.dtype))

    def as_json(self) -> dict[str, Any]:
        """The same as JSON can hold it: dictionaries, lists, strings and numbers; what is not finite is null."""
        content: dict[str, Any] = as_json({**vars(self), "source": str(self.source), "output": str(self.output)})
        return content
