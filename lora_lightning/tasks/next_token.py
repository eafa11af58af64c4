"""Ask a causal language model only for what is learnt: logits where there is a label, a part at a time."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from lora_lightning.compat.transformers import create_causal_mask
from lora_lightning.errors import BackboneError
from lora_lightning.lora.sharding import run_as_forward

IGNORED = -100
ROWS_AT_ONCE = 512  # positions whose logits are held together
ROWS_TO_COMPARE = 256  # of a batch; 125 MiB of float32 logits with 128,000 tokens in the vocabulary
LOGITS_AT_ONCE = 2**26  # up to so many (256 MiB of float32), one piece is faster than several

Batch = Mapping[str, Tensor]


class NextTokenModel:
    """A causal language model as a function from a batch to losses and hits.

    A batch has `input_ids`, (rows, positions); `labels`, (rows, positions), the token that follows each position or
    -100; and either `attention_mask` or, where a row holds several documents, `position_ids`, which start at 0 with
    every document. All int64. Rows are padded on the right, where no position before can see it.

    The logits of a whole batch are the largest tensor of a training step (402 MB for 2,048 positions of SmolLM2, and
    1,061 MiB at the peak with their gradient). Here the head runs where there is a label, and over `ROWS_AT_ONCE`
    positions at a time (85 MiB at the peak).

    Args:
        model: The causal language model, adapters in place.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def loss(self, batch: Batch) -> tuple[Tensor, int]:
        """Cross entropy, differentiable.

        Args:
            batch: As above.

        Returns:
            The sum over all labels, float32 scalar, in nats; and the number of labels.
        """
        if not self._head_is_linear:
            return self._loss_of_logits(batch)
        self._find_out(batch)
        return run_as_forward(self.model, self._loss, batch)

    def _loss_of_logits(self, batch: Batch) -> tuple[Tensor, int]:
        learnt = batch["labels"] != IGNORED
        labels = batch["labels"][learnt]
        logits = self.model(**self.inputs(batch)).logits[learnt]
        return functional.cross_entropy(logits.float(), labels, reduction="sum"), len(labels)

    def _loss(self, batch: Batch) -> tuple[Tensor, int]:
        learnt = batch["labels"] != IGNORED
        labels = batch["labels"][learnt]
        head = self._head
        hidden, weight = self._hidden_states(batch)[learnt], head.weight
        if torch.is_autocast_enabled(hidden.device.type):  # the function below is not one that autocast knows
            hidden, weight = (tensor.to(torch.get_autocast_dtype(hidden.device.type)) for tensor in (hidden, weight))
        in_parts = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=ROWS_AT_ONCE, chunking_method=None)
        mean = functional.linear_cross_entropy(
            hidden.to(weight.dtype),
            weight,
            labels,
            linear_bias=head.bias,
            options=in_parts if len(labels) * len(weight) > LOGITS_AT_ONCE else None,
        )
        return mean.float() * len(labels), len(labels)  # a sum would overflow in float16

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """One pass over a batch without gradients, of which `score` and `some_logits` are made.

        Args:
            batch: As above.

        Returns:
            (labels, features): what the head takes at each label, or its logits where it is more than a linear layer.
        """
        learnt = batch["labels"] != IGNORED
        if self._head_is_linear:
            self._find_out(batch)
            return run_as_forward(self.model, self._hidden_states, batch)[learnt]
        logits: Tensor = self.model(**self.inputs(batch)).logits
        return logits[learnt]

    @torch.no_grad()
    def score(self, batch: Batch, features: Tensor) -> tuple[Tensor, Tensor, int]:
        """Cross entropy and hits.

        Args:
            batch: As above.
            features: Its `features`.

        Returns:
            The sum of the cross entropy over all labels, float32 scalar, in nats; how many labels are the most likely
            token, int64 scalar; and the number of labels.
        """
        return run_as_forward(self.model, self._score, batch, features)

    def _score(self, batch: Batch, features: Tensor) -> tuple[Tensor, Tensor, int]:
        labels = batch["labels"][batch["labels"] != IGNORED]
        loss = torch.zeros((), device=labels.device)
        hits = torch.zeros((), dtype=torch.int64, device=labels.device)
        for part, targets in zip(pieces(features), pieces(labels), strict=True):
            logits = self._logits(part)
            loss += functional.cross_entropy(logits.float(), targets, reduction="sum")
            hits += (logits.argmax(dim=-1) == targets).sum()
        return loss, hits, len(labels)

    @torch.no_grad()
    def some_logits(self, features: Tensor) -> Tensor:
        """Logits at some of the labels.

        Args:
            features: Of a batch.

        Returns:
            (labels, vocabulary), any floating dtype; at most `ROWS_TO_COMPARE`, evenly spread over the batch's labels.
        """
        last, count = len(features) - 1, min(len(features), ROWS_TO_COMPARE)
        places = torch.linspace(0, last, count, dtype=torch.float64).round().long()
        return run_as_forward(self.model, self._logits, features[places.to(features.device)])

    def _logits(self, features: Tensor) -> Tensor:
        return self._head(features) if self._head_is_linear else features

    def _find_out(self, batch: Batch) -> None:
        """Answers the questions that call the whole model, which must not happen inside `run_as_forward`."""
        if "position_ids" in batch:
            _ = self._documents_kept_apart_by

    @property
    def _head(self) -> nn.Linear:
        return cast("nn.Linear", self.model.get_output_embeddings())

    def _hidden_states(self, batch: Batch) -> Tensor:
        hidden: Tensor = self.model.base_model(**self.inputs(batch)).last_hidden_state
        return hidden

    def inputs(self, batch: Batch) -> dict[str, Any]:
        """What the model takes of a batch, documents of one row kept apart.

        Args:
            batch: As above.

        Returns:
            Arguments of its `forward`.
        """
        # With a cache transformers does not look for several documents in a row.
        inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "use_cache": False}
        if "position_ids" not in batch:
            return inputs | {"attention_mask": batch["attention_mask"]}
        inputs["position_ids"] = batch["position_ids"]
        if self._documents_kept_apart_by == "mask":
            inputs["attention_mask"] = block_diagonal_mask(self.model, batch["position_ids"])
        return inputs

    @cached_property
    def _head_is_linear(self) -> bool:
        """Whether logits are the output layer of the last hidden state and nothing else; Gemma 2 squashes them."""
        if type(self._head) is not nn.Linear:
            return False
        tokens = _some_tokens(self.model)
        with _asked_quietly(self.model):
            logits = self.model(input_ids=tokens, use_cache=False).logits
            return torch.equal(logits, run_as_forward(self.model, self._logits_of_head, tokens))

    def _logits_of_head(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self._head(self.model.base_model(input_ids=tokens, use_cache=False).last_hidden_state)
        return logits

    @cached_property
    def _documents_kept_apart_by(self) -> Literal["positions", "mask"]:
        return how_documents_are_kept_apart(self.model)


def block_diagonal_mask(model: PreTrainedModel, position_ids: Tensor) -> Tensor | None:
    """A causal mask that ends where a document ends, in the form that the model's attention takes.

    Args:
        model: The language model.
        position_ids: (rows, positions), starting at 0 with every document.

    Returns:
        (rows, 1, positions, positions); `None` where every row is one document.
    """
    mask = create_causal_mask(
        model.config,
        torch.empty(*position_ids.shape, 0, dtype=model.dtype, device=position_ids.device),  # its shape
        None,
        None,  # by place: transformers 5.23 calls it past_key_values, and 5.24 warns of that name
        position_ids=position_ids,
    )
    return cast("Tensor | None", mask)


def how_documents_are_kept_apart(model: PreTrainedModel) -> Literal["positions", "mask"]:
    """Finds out how this architecture must be told that a row holds several documents, by trying.

    Where positions start anew transformers 5 makes a block-diagonal mask, in most architectures: OPT's attention
    never sees the positions and would look into the document before. A mask works there, but would hide a sliding
    window, so positions alone are preferred.

    Args:
        model: The language model.

    Returns:
        `positions` if `position_ids` are enough, `mask` if it needs `block_diagonal_mask` as well.

    Raises:
        BackboneError: If the logits of a document change with its neighbours either way.
    """
    tokens = _some_tokens(model)
    places = torch.tensor([[0, 1, 2, 0, 1, 2, 3]], device=tokens.device)
    with _asked_quietly(model):
        alone = model(input_ids=tokens[:, 3:], use_cache=False).logits
        # Quantised weights round differently for every shape of the input, by some percent: what is small shows only
        # beside what the neighbour does where nothing hides it.
        exposed = (model(input_ids=tokens, use_cache=False).logits[:, 3:] - alone).norm()
        for way, mask in (("positions", None), ("mask", block_diagonal_mask(model, places))):
            together = model(input_ids=tokens, position_ids=places, attention_mask=mask, use_cache=False).logits[:, 3:]
            if (together - alone).norm() <= 0.2 * exposed:
                return way  # type: ignore[return-value]
    msg = (
        f"{type(model).__name__} cannot keep several documents in one row apart, so instructions cannot be packed for "
        "it; choose another backbone."
    )
    raise BackboneError(msg)


def pieces(rows: Tensor) -> list[Tensor]:
    """Rows in pieces of `ROWS_AT_ONCE`."""
    return [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]


def _some_tokens(model: PreTrainedModel) -> Tensor:
    return torch.arange(7, device=model.device)[None] + int(model.config.vocab_size) // 2


@contextmanager
def _asked_quietly(model: PreTrainedModel) -> Iterator[None]:
    """In evaluation mode, without gradients, in the weights' own precision; puts the mode back."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(model.device.type, enabled=False):
            yield
    finally:
        model.train(was_training)
