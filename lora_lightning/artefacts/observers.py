"""Runs states of a model over the same examples: validation data with labels, or random tokens without any."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from lightning import Trainer
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_lightning.analysis.outputs import Outputs, top_margins
from lora_lightning.metrics import MULTI_LABEL, REGRESSION
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.base import MODEL_INPUTS
from lora_lightning.tasks.held_out_batches import (
    Batch,
    isolated_evaluation,
    network_replaced,
    on_device,
    reset_metrics,
    split_rows,
    validation_precision,
)

GROUPS = 10  # of examples; leaving out one at a time shows how certain a metric is
RANDOM_BATCHES, RANDOM_ROWS, RANDOM_TOKENS = 4, 4, 32


class JackknifeMetrics:
    """A task's metrics over all examples of each split, and without each of several groups of them in turn.

    Args:
        task: In evaluation mode.
        groups: How many groups there are, by split; at least one each.
    """

    def __init__(self, task: AdaptationTask, groups: Mapping[str, int]) -> None:
        self.task, self.groups = task, groups
        self.overall = copy.deepcopy(task.metrics)
        reset_metrics(self.overall)
        self.without = [copy.deepcopy(self.overall) for _ in range(max(groups.values()))]

    def add(self, split: str, number: int, batch: Batch, found: Any) -> None:
        """Adds a batch of a split; its number in the split decides its group."""
        own, found = number % self.groups[split], self.task.condense(batch, found)
        others = [metrics for group, metrics in enumerate(self.without[: self.groups[split]]) if group != own]
        with self._metrics_kept():
            for metrics in (self.overall, *others):
                self.task.metrics = metrics
                self.task.add_to_metrics(split, batch, found)

    def values(self) -> dict[tuple[str, str], tuple[float, NDArray[np.float64]]]:
        """Each metric by split and name: over all examples, and without each group, (groups,); NaN for no value."""
        found = {}
        with self._metrics_kept():
            for split, groups in self.groups.items():
                overall, *without = (
                    self._values_of(split, metrics) for metrics in (self.overall, *self.without[:groups])
                )
                for name, value in overall.items():
                    left_out = np.array([values.get(name, math.nan) for values in without])
                    found[split, name] = (value, left_out)
        return found

    def _values_of(self, split: str, metrics: nn.ModuleDict) -> dict[str, float]:
        self.task.metrics = metrics
        return self.task.metric_values(split)

    @contextmanager
    def _metrics_kept(self) -> Iterator[None]:
        former = self.task.metrics
        try:
            yield
        finally:
            self.task.metrics = former


class Observer(ABC):
    """Runs the adapter model, or another model in its place, over the same batches.

    Args:
        network: The adapter model.
        batches: On the host.
    """

    has_labels = False

    def __init__(self, network: PeftModel, batches: list[Batch]) -> None:
        self.network, self.batches = network, batches

    @abstractmethod
    def replaced(self, model: PreTrainedModel) -> Any:
        """A context in which `observe` runs another model."""

    @abstractmethod
    def observe(self, numbers: Sequence[int], metrics: JackknifeMetrics | None = None) -> list[Outputs]:
        """The outputs for some batches, on the host.

        Args:
            numbers: Of the batches.
            metrics: Get the same outputs; `None` for no metrics.
        """

    @abstractmethod
    def isolated(self) -> Any:
        """A context without gradients and in evaluation mode."""

    def new_metrics(self) -> JackknifeMetrics | None:
        """Empty metrics; `None` without labels."""
        return None

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where the model is."""


class ValidationObserver(Observer):
    """The validation splits of a data module, with the task's metrics.

    Args:
        task: Its network is the adapter model, and its metrics are those of the splits.
        trainer: Has validated the task.
        batches: By split.
    """

    has_labels = True

    def __init__(self, task: AdaptationTask, trainer: Trainer, batches: Mapping[str, list[Batch]]) -> None:
        pieces = {split: split_rows(found, GROUPS) for split, found in batches.items()}
        super().__init__(task.adapted_network, [batch for found in pieces.values() for batch in found])
        self.task, self.trainer = task, trainer
        self.places = [(split, number) for split, found in pieces.items() for number in range(len(found))]
        self.groups = {split: min(GROUPS, len(found)) for split, found in pieces.items() if found}

    def replaced(self, model: PreTrainedModel) -> Any:
        """The task runs another model."""
        return network_replaced(self.task, model)

    def isolated(self) -> Any:
        """No gradients, evaluation mode, random states restored afterwards."""
        return isolated_evaluation(self.task)

    def new_metrics(self) -> JackknifeMetrics:
        """Empty metrics of all examples and of ten groups."""
        return JackknifeMetrics(self.task, self.groups)

    def observe(self, numbers: Sequence[int], metrics: JackknifeMetrics | None = None) -> list[Outputs]:
        """What the task makes of the batches."""
        outputs = []
        for number in numbers:
            batch = on_device(self.trainer, self.batches[number])
            with validation_precision(self.trainer):
                found = self.task.evaluate(batch)
                outputs.append(self.task.outputs(batch, found).on_host())
                if metrics is not None:
                    metrics.add(*self.places[number], batch, found)
        return outputs

    @property
    def device(self) -> torch.device:
        """The task's."""
        return self.task.device


class RandomTokenObserver(Observer):
    """Random tokens, for an adapter without data: logits can be compared, and nothing can be scored.

    Args:
        network: The adapter model.
        certain: Ids that occur at least once, such as special tokens, whose embeddings the adapter may have trained.
    """

    def __init__(self, network: PeftModel, certain: Collection[int] = ()) -> None:
        size = int(network.config.get_text_config().vocab_size)
        limit = getattr(network.config, "max_position_embeddings", None) or RANDOM_TOKENS
        shape = (RANDOM_BATCHES, RANDOM_ROWS, min(RANDOM_TOKENS, max(2, limit - 2)))
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(size, shape, generator=generator)
        wanted = torch.tensor(sorted({token for token in certain if 0 <= token < size}), dtype=torch.int64)
        places = torch.randperm(tokens.numel(), generator=generator)[: len(wanted)]
        tokens.view(-1)[places] = wanted[: len(places)]
        end = getattr(network.config, "eos_token_id", None)  # Funnel's has none
        if network.config.is_encoder_decoder and end is not None:
            tokens[tokens == end] = 0 if end else 1  # whose classifiers read the hidden state of the token that ends a
            tokens[..., -1] = end  # text, of which there has to be one
        rows = list(tokens)
        super().__init__(network, [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in rows])
        self.current: nn.Module = network

    @contextmanager
    def replaced(self, model: PreTrainedModel) -> Iterator[None]:
        """Another model runs."""
        self.current = model
        try:
            yield
        finally:
            self.current = self.network

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """No gradients; the model is in evaluation mode anyway."""
        with torch.no_grad():
            yield

    def observe(self, numbers: Sequence[int], metrics: JackknifeMetrics | None = None) -> list[Outputs]:
        """Logits, and the decisions that follow from them."""
        del metrics
        outputs = []
        for number in numbers:
            logits = raw_logits(self.current, self.batches[number], self.device).float()
            outputs.append(_outputs(logits, self.network.config.problem_type).on_host())
        return outputs

    @property
    def device(self) -> torch.device:
        """The adapter model's."""
        return cast("torch.device", self.network.device)


def _outputs(logits: Tensor, problem_type: str | None) -> Outputs:
    if problem_type == REGRESSION:
        return Outputs(logits, "number", logits.new_empty(0, dtype=torch.int64))
    if problem_type == MULTI_LABEL:
        return Outputs(logits, "bernoulli", (logits > 0).long(), margins=logits.abs())
    return Outputs(logits, "categorical", logits.argmax(dim=-1), margins=top_margins(logits))


def raw_inputs(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a batch that any model of its kind takes."""
    return {name: batch[name] for name in MODEL_INPUTS if name in batch}


def raw_logits(model: nn.Module, batch: Mapping[str, Tensor], device: torch.device) -> Tensor:
    """The logits that a model's own `forward` returns.

    Args:
        model: A classifier, question answerer or language model.
        batch: On the host; only `MODEL_INPUTS` are used.
        device: Of the model.

    Returns:
        As `rows_of_output`, on the model's device.
    """
    output = model(**{name: tensor.to(device) for name, tensor in raw_inputs(batch).items()})
    return rows_of_output(output, batch)


def rows_of_output(output: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """The logits in a model's output, without padding.

    Args:
        output: With `logits`, or with `start_logits` and `end_logits`.
        batch: The input.

    Returns:
        (rows, choices): a row for each text of a classifier, for start and end of each text of a question answerer,
        for each token of a language model; minus infinity for a start or end at padding.
    """
    logits = output["start_logits" if "start_logits" in output else "logits"]
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool().to(logits.device)
    if "start_logits" in output:
        both = torch.cat([logits, output["end_logits"]])
        return both.masked_fill(~torch.cat([mask, mask]), -math.inf)
    return logits[mask] if logits.dim() > 2 else logits  # noqa: PLR2004  # (rows, tokens, vocabulary)
