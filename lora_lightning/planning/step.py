"""Traces one training step and one validation batch of a network without values, and counts what they hold."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora_lightning.compat.fake_tensors import FakeTensorMode
from lora_lightning.metrics.label_space import MULTI_LABEL, REGRESSION
from lora_lightning.planning.cuda_stand_ins import use_cuda_stand_ins
from lora_lightning.planning.storage import Peak, StorageCounter, storages_of
from lora_lightning.tasks import (
    AdaptationTask,
    CausalLanguageModelingTask,
    QuestionAnsweringTask,
    SequenceClassificationTask,
)
from lora_lightning.tasks.next_token import NextTokenModel


@dataclass(frozen=True)
class BatchShape:
    """What a batch looks like.

    Attributes:
        rows: Number of rows.
        tokens: Of each row.
        has_padding: Whether attention needs a mask.
        is_packed: Whether rows hold several documents.
    """

    rows: int
    tokens: int
    has_padding: bool
    is_packed: bool


@dataclass(frozen=True)
class StepTrace:
    """Peaks beside the weights, in bytes.

    Attributes:
        forward: Of the forward pass, without gradients of an earlier step.
        backward: Of the backward pass, with the gradients so far.
        validation: Of a pass without gradients; nothing if none was traced.
    """

    forward: Peak
    backward: Peak
    validation: Peak


class StepTracer:
    """Traces a task whose network is on the meta device.

    Args:
        task: With its network, which gets tensors without values on the CPU for good.
        autocast: In which dtype products are computed; `None` for that of the weights.
        head_is_linear: Of a language model: whether its logits are a linear layer of the last hidden state.
        device: `cuda` has fused attention also under dropout, masks of dropout in a byte an element, and PyTorch's own
            loss of a language model's head.
    """

    def __init__(
        self, task: AdaptationTask, autocast: torch.dtype | None, head_is_linear: bool, device: str = "cpu"
    ) -> None:
        self.task, self.autocast = task, autocast
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        _use_fake_tensors(task, self._mode)
        if device == "cuda":
            use_cuda_stand_ins(task)
        # What a trainer divides by is a number; it holds nothing.
        vars(task)["scale_summed_loss"] = lambda loss, *_: loss
        if isinstance(task, CausalLanguageModelingTask):
            model = NextTokenModel(task.transformers_model, "positions", on_cpu=device == "cpu")
            vars(model)["head_is_linear"] = head_is_linear
            vars(task)["next_token"] = model

    def trace(self, training: BatchShape, evaluation: BatchShape | None) -> StepTrace:
        """Traces a step and a validation batch.

        Args:
            training: A training batch.
            evaluation: A batch in validation; `None` traces none.

        Returns:
            What they hold.
        """
        task = self.task
        counter = StorageCounter(storages_of(task), all_true=not training.has_padding)
        with self._mode, _hooked(task.built_network, counter), self._precision():
            with counter:
                task.train()
                batch = self._batch(training)
                counter.start_phase()
                loss: Any = task.training_step(batch, 0)
                forward = counter.peak
            counter.start_phase()
            with counter:
                loss.backward()
            backward = counter.peak
            del loss, batch
            for parameter in task.parameters():
                parameter.grad = None
            validation = Peak() if evaluation is None else self._validate(counter, evaluation)
        return StepTrace(forward, backward, validation)

    def _validate(self, counter: StorageCounter, shape: BatchShape) -> Peak:
        task = self.task
        with counter, torch.no_grad():
            task.eval()
            counter.start_phase()
            batch = self._batch(shape)
            task.condense(batch, task.evaluate(batch))
            return counter.peak

    def _precision(self) -> Any:
        return nullcontext() if self.autocast is None else torch.autocast("cpu", self.autocast)

    def _batch(self, shape: BatchShape) -> dict[str, Tensor]:
        """A batch of a shape, as the task's data modules would give it."""
        task, rows, tokens = self.task, shape.rows, shape.tokens
        if task.auto_class is None:
            return {"inputs": torch.empty(rows, int(task.problem.in_features))}  # type: ignore[union-attr,arg-type]
        ids = torch.empty(rows, tokens, dtype=torch.int64)
        batch = {"input_ids": ids, "attention_mask": torch.empty_like(ids)}
        if isinstance(task, SequenceClassificationTask):
            count, kind = len(task.labels.names), task.labels.problem_type
            floats = {MULTI_LABEL: torch.empty(rows, count), REGRESSION: torch.empty(rows)}
            batch["labels"] = floats.get(kind, torch.empty(rows, dtype=torch.int64))
        elif isinstance(task, QuestionAnsweringTask):
            names = ("start_positions", "end_positions", "question", "null_position")
            batch |= {name: torch.empty(rows, dtype=torch.int64) for name in names}
        else:
            batch["labels"] = torch.empty_like(ids)
            if shape.is_packed:
                batch["position_ids"] = torch.empty_like(ids)
        return batch


def _use_fake_tensors(module: nn.Module, mode: FakeTensorMode) -> None:
    """Gives every parameter and buffer a tensor on the CPU that has no values; shared ones stay shared."""
    made: dict[int, Tensor] = {}
    with mode:
        for part in module.modules():
            own = [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]
            for name, tensor in own:
                if id(tensor) not in made:
                    new: Tensor = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if is_parameter else new
                setattr(part, name, made[id(tensor)])


@contextmanager
def _hooked(network: nn.Module, counter: StorageCounter) -> Iterator[None]:
    """Tells the counter which tensors are gradients of weights."""
    handles = [
        parameter.register_post_accumulate_grad_hook(counter.mark_gradient)  # type: ignore[no-untyped-call]
        for parameter in network.parameters()
        if parameter.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
