"""Compute the logits of a causal language model only for positions with a label, some of them at a time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lora_lightning.lora.sharding import run_as_forward
from lora_lightning.tasks.linear_cross_entropy import linear_cross_entropy
from lora_lightning.tasks.packed_documents import (
    Inputs,
    Way,
    check_is_causal,
    how_documents_are_kept_apart,
    packed_inputs,
    reads_padding,
)

IGNORED = -100
ROWS_AT_ONCE = 512  # positions whose logits are held together
ROWS_TO_COMPARE = 256  # of a batch; 125 MiB of float32 logits with 128,000 tokens in the vocabulary
HALVES = (torch.bfloat16, torch.float16)
LOGITS_AT_ONCE = 2**26  # up to that many (256 MiB of float32), one chunk is faster than several

Batch = Mapping[str, Tensor]


class NextTokenModel:
    """Computes losses and hits of a causal language model from batches.

    A batch has `input_ids`, (rows, positions); `labels`, (rows, positions), the token that follows each position or
    -100; and either `attention_mask` or, if a row holds several documents, `position_ids`, which start at 0 with every
    document. All int64. Rows are padded on the right, where earlier positions do not see the padding.

    The logits of a whole batch are the largest tensor of a training step (402 MB for 2,048 positions of SmolLM2, and
    1,061 MiB at the peak with their gradient). Here the head runs only for positions with a label, some hundreds at a
    time: on a CPU as `linear_cross_entropy` says, elsewhere all at once as long as that takes 256 MiB, otherwise
    `ROWS_AT_ONCE` of them. Losses are float32 whatever the precision of the run is.

    Args:
        model: The causal language model, adapters in place.
        known_way: How its architecture keeps the documents of a row apart; `None` to test that when it is needed.
        on_cpu: Whether to compute the loss as on a CPU; `None` to go by the weights. A plan has none on the device.
    """

    def __init__(self, model: PreTrainedModel, known_way: Way | None = None, *, on_cpu: bool | None = None) -> None:
        self.model = model
        self._known_way = known_way
        self._on_cpu = on_cpu

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Cross entropy, differentiable.

        Args:
            batch: As above.

        Returns:
            The sum over all labels, float32 scalar, in nats; and the number of labels.
        """
        if not self.head_is_linear:
            return self._loss_of_logits(batch)
        return run_as_forward(self.model, self._loss, batch, self.inputs(batch))

    def _loss_of_logits(self, batch: Batch) -> tuple[Tensor, int]:
        has_label = batch["labels"] != IGNORED
        labels = batch["labels"][has_label]
        logits = self.model(**self.inputs(batch)).logits[has_label]
        return functional.cross_entropy(logits.float(), labels, reduction="sum"), len(labels)

    def _loss(self, batch: Batch, inputs: Inputs) -> tuple[Tensor, int]:
        has_label = batch["labels"] != IGNORED
        labels = batch["labels"][has_label]
        head = self._head
        hidden, weight = self._hidden_states(inputs)[has_label], head.weight
        if torch.is_autocast_enabled(hidden.device.type):  # the function below is not one that autocast knows
            hidden, weight = (tensor.to(torch.get_autocast_dtype(hidden.device.type)) for tensor in (hidden, weight))
        hidden = hidden.to(weight.dtype)
        on_cpu = weight.device.type == "cpu" if self._on_cpu is None else self._on_cpu
        if on_cpu and weight.dtype in {torch.float32, torch.bfloat16}:
            return linear_cross_entropy(hidden, weight, head.bias, labels), len(labels)
        if len(labels) * len(weight) <= LOGITS_AT_ONCE:
            logits = functional.linear(hidden, weight, head.bias)
            return functional.cross_entropy(_at_least_float32(logits), labels, reduction="sum"), len(labels)
        if weight.dtype in HALVES:  # PyTorch's function would round the loss, and the factor of its gradient, to them
            return linear_cross_entropy(hidden, weight, head.bias, labels, on_cpu=False), len(labels)
        in_parts = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=ROWS_AT_ONCE, chunking_method=None)
        mean = functional.linear_cross_entropy(hidden, weight, labels, linear_bias=head.bias, options=in_parts)
        return mean * len(labels), len(labels)

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """Runs the model without gradients; `score` and `some_logits` take the result.

        Args:
            batch: As above.

        Returns:
            (labels, features): the head's input at each label, or its logits if it is more than a linear layer.
        """
        return self._features(self.inputs(batch))[batch["labels"] != IGNORED]

    @torch.no_grad()
    def score(self, batch: Batch, features: Tensor) -> tuple[Tensor, Tensor, int]:
        """Computes the cross entropy and counts the hits.

        Args:
            batch: As above.
            features: Its `features`.

        Returns:
            The sum of the cross entropy over all labels, float32 scalar, in nats; how many labels are the most likely
            token, int64 scalar; and the number of labels.
        """
        losses, hits = self.score_labels(batch, features)
        return losses.sum(), hits.sum(), len(losses)

    @torch.no_grad()
    def score_labels(self, batch: Batch, features: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the cross entropy and the hit of each label.

        Args:
            batch: As above.
            features: Its `features`.

        Returns:
            shape (labels,) each, in the order of the batch's rows: the cross entropy, float32, in nats; and whether the
            label is the most likely token, bool.
        """
        return run_as_forward(self.model, self._score_labels, batch, features)

    def _score_labels(self, batch: Batch, features: Tensor) -> tuple[Tensor, Tensor]:
        labels = batch["labels"][batch["labels"] != IGNORED]
        losses = torch.zeros(len(labels), device=labels.device, dtype=torch.float32)  # not the default of `16-true`
        hits = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        for place in range(0, len(labels), ROWS_AT_ONCE):
            part = slice(place, place + ROWS_AT_ONCE)
            logits = self._logits(features[part])
            losses[part] = functional.cross_entropy(logits.float(), labels[part], reduction="none")
            hits[part] = logits.argmax(dim=-1) == labels[part]
        return losses, hits

    @torch.no_grad()
    def some_logits(self, features: Tensor) -> Tensor:
        """Computes the logits at some of the labels.

        Args:
            features: Of a batch.

        Returns:
            (labels, vocabulary), any floating dtype; at most `ROWS_TO_COMPARE`, evenly spread over the batch's labels.
        """
        places = spread_positions(len(features)).to(features.device)
        return run_as_forward(self.model, self._logits, features[places])

    def _logits(self, features: Tensor) -> Tensor:
        return self._head_of(features) if self.head_is_linear else features

    @property
    def _head(self) -> nn.Linear:
        return cast("nn.Linear", self.model.get_output_embeddings())

    def _features(self, inputs: Inputs) -> Tensor:
        """(rows, positions, features) of arguments of the model's `forward`."""
        if self.head_is_linear:
            return run_as_forward(self.model, self._hidden_states, inputs)
        logits: Tensor = self.model(**inputs).logits
        return logits

    def _hidden_states(self, inputs: Inputs) -> Tensor:
        hidden: Tensor = self.model.base_model(**inputs).last_hidden_state
        return hidden

    def inputs(self, batch: Batch) -> Inputs:
        """Arguments of the model's `forward` for a batch, with the documents of a row kept apart.

        Args:
            batch: As above.

        Returns:
            The arguments by name.

        Raises:
            BackboneError: If rows hold several documents, which this architecture cannot keep apart.
        """
        if "position_ids" in batch:
            return packed_inputs(self.model, batch["input_ids"], batch["position_ids"], self.documents_kept_apart_by)
        return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}

    def check_is_causal(self) -> None:
        """Refuses a model that sees the token that it has to predict.

        Raises:
            BackboneError: If it does.
        """
        with _evaluating(self.model):
            check_is_causal(self.model, self._features)

    @cached_property
    def documents_kept_apart_by(self) -> Way:
        """How the model is told that a row holds several documents.

        Raises:
            BackboneError: If no way keeps them apart.
        """
        if self._known_way is not None:
            return self._known_way
        with _evaluating(self.model):
            return how_documents_are_kept_apart(self.model, self._features)

    @cached_property
    def reads_padding(self) -> bool:
        """Whether padding before a text changes what follows it, so that prompts must be continued one by one."""
        with _evaluating(self.model):
            return reads_padding(self.model, self._features)

    @cached_property
    def head_is_linear(self) -> bool:
        """Whether the logits are a linear layer of the last hidden state and nothing else; Gemma 2 squashes them."""
        if type(self._head) is not nn.Linear or self.model.base_model is self.model:  # as Llama 4's is
            return False
        tokens = _some_tokens(self.model)
        with _evaluating(self.model), torch.no_grad():
            logits = self.model(input_ids=tokens, use_cache=False).logits
            return torch.equal(logits.float(), run_as_forward(self.model, self._logits_of_head, tokens).float())

    def _logits_of_head(self, tokens: Tensor) -> Tensor:
        return self._head_of(self._hidden_states({"input_ids": tokens, "use_cache": False}))

    def _head_of(self, hidden: Tensor) -> Tensor:
        """Logits; Mamba's hidden states are float32 whatever its weights are."""
        logits: Tensor = self._head(hidden.to(self._head.weight.dtype))
        return logits


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in HALVES else logits


def spread_positions(count: int) -> Tensor:
    """At most `ROWS_TO_COMPARE` of the numbers below `count`, evenly spread; int64, on the CPU."""
    return torch.linspace(0, count - 1, min(count, ROWS_TO_COMPARE), dtype=torch.float64).round().long()


def _some_tokens(model: PreTrainedModel) -> Tensor:
    return torch.arange(7, device=model.device)[None] + int(model.config.get_text_config().vocab_size) // 2


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """In evaluation mode, with gradients, in the weights' own precision; restores the mode."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode(mode=False), torch.enable_grad(), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        model.train(was_training)
