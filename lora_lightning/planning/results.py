"""What a plan contains."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ModuleKind:
    """Modules of one name, over all layers.

    Attributes:
        kind: Name within a layer, such as `attention.self.query`.
        modules: How many modules have this name.
        adapted: How many of them get an adapter.
        ranks: The ranks of these adapters, each once, in ascending order.
        trainable: Trainable parameters, of all of them.
        total: Parameters, with adapters and with the frozen copies of modules that train in full.
    """

    kind: str
    modules: int
    adapted: int
    ranks: Sequence[int]
    trainable: int
    total: int


@dataclass(frozen=True)
class RankRow:
    """What another rank would take, everything else unchanged.

    Attributes:
        r: The rank; of AdaLoRA the initial one.
        trainable: Trainable parameters.
        reduction: The ratio of the parameters that full fine-tuning trains to `trainable`.
        share: `trainable` as a share of all parameters, in [0, 1].
        adapter_bytes: Of the tensors in the adapter's file.
        full_rank_modules: How many adapters have a rank of at least the smaller side of their layer.
    """

    r: int
    trainable: int
    reduction: float
    share: float
    adapter_bytes: int
    full_rank_modules: int


@dataclass(frozen=True)
class MemoryRow:
    """Peak memory of a training in one precision, on one device, in bytes.

    Attributes:
        precision: `float32`, `bf16`, `int8`, `NF4`, or the config's own, such as `bf16-mixed`.
        options: The options of `fit` that choose it.
        is_config: Whether the config chooses it.
        weights: All parameters and buffers, packed ones with their scales.
        gradients: At the peak.
        optimizer: Both moments of AdamW, and what a variant of LoRA keeps.
        activations: What forward and backward pass hold at the peak.
        overhead: What libraries take on a CPU beside tensors, fitted on measured runs.
        phase: When the peak is: `forward`, `backward`, `validation`, `checkpoint`, while one is read back, `loading`,
            while a GGUF file is dequantized, or `merge check`, while MergeEquivalence has a second base model.
        largest_batch: The most rows that fit into the memory that was asked about; 0 for none, `None` if no memory was
            given.
        fits: Whether the batch size of the config fits; `None` if no memory was given.
        unavailable: Why there is no such training; empty if there is.
    """

    precision: str
    options: str
    is_config: bool
    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    overhead: int = 0
    phase: str = ""
    largest_batch: int | None = None
    fits: bool | None = None
    unavailable: str = ""

    @property
    def peak(self) -> int:
        """The sum."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.overhead


@dataclass(frozen=True)
class Batch:
    """The shape of the batches.

    Attributes:
        rows: Of a training step.
        evaluation_rows: Of a batch in validation.
        tokens: Of each training row.
        evaluation_tokens: Of each row in validation.
    """

    rows: int
    evaluation_rows: int
    tokens: int
    evaluation_tokens: int


@dataclass(frozen=True)
class TrainingPlan:
    """What a training would need.

    Attributes:
        backbone: As in the config.
        model: The class of the transformers model.
        device: `cpu` or `cuda`, of the memory.
        batch: The shape of the batches.
        modules: By name within a layer, in the model's order.
        adapted_modules: Full dotted names.
        trainable: Trainable parameters.
        total: All parameters.
        pretrained: Those that full fine-tuning would train.
        adapter_bytes: Of the tensors in the file that `fit` exports.
        ranks: Other ranks; empty without LoRA.
        r: The rank in the config; `None` without LoRA.
        memory: A row for each precision.
        memory_limit: In bytes; `None` if not given.
        notes: Sentences on what is assumed or extrapolated.
    """

    backbone: str
    model: str
    device: str
    batch: Batch
    modules: Sequence[ModuleKind]
    adapted_modules: Sequence[str]
    trainable: int
    total: int
    pretrained: int
    adapter_bytes: int
    ranks: Sequence[RankRow]
    r: int | None
    memory: Sequence[MemoryRow] = ()
    memory_limit: int | None = None
    notes: Sequence[str] = ()

    @property
    def share(self) -> float:
        """Trainable parameters as a share of all, in [0, 1]."""
        return self.trainable / self.total

    @property
    def reduction(self) -> float:
        """The ratio of the parameters that full fine-tuning trains to the trainable ones; infinity if none train."""
        return self.pretrained / self.trainable if self.trainable else math.inf

    def as_json(self) -> dict[str, Any]:
        """All numbers, as dictionaries, lists, strings and finite numbers."""
        content = asdict(self)
        content |= {"share": self.share, "reduction": self.reduction if self.trainable else None}
        for row, found in zip(content["memory"], self.memory, strict=True):
            row["peak"] = None if found.unavailable else found.peak
        return content
