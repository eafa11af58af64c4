"""Do the models behave alike? Predictions, greedy completions, hidden states and decisions of pairs of runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora_lightning.analysis.behavior import (
    Decisions,
    Flips,
    PredictionChanges,
    compare_predictions,
    count_flips,
    leading_match,
)
from lora_lightning.analysis.representations import linear_cka, pool_tokens, row_cosines
from lora_lightning.artefacts.example_measuring import Rows, rows_of_all_lengths, spread_places
from lora_lightning.backbones.first_token import every_token
from lora_lightning.callbacks.representation_drift import shortened_mask
from lora_lightning.diagnosis.adapter_similarity import PairKind
from lora_lightning.diagnosis.decisions import DecisionRecorder, decisions_in_words
from lora_lightning.diagnosis.opened_runs import OpenedRun
from lora_lightning.diagnosis.prediction_rows import PredictionRecorder, Predictions
from lora_lightning.diagnosis.specification import Measuring
from lora_lightning.errors import DataError
from lora_lightning.lora.quantized import computing_in_float32
from lora_lightning.statistics.divergence import DivergenceSummary, Estimate, summarize_divergence
from lora_lightning.tasks.causal_language_modeling import CausalLanguageModelingTask
from lora_lightning.tasks.generation import GenerationSettings, complete_tokens
from lora_lightning.tasks.held_out_batches import Batch, isolated_evaluation, on_device
from lora_lightning.tasks.next_token import IGNORED
from lora_lightning.tasks.outcome_rows import INDEX, WEIGHT

PROBED = 64  # examples whose hidden states are compared
LABEL = "label"


@dataclass(frozen=True)
class LayerAlike:
    """Hidden states of two models after a layer.

    Attributes:
        cosine: Mean cosine of the examples' mean states.
        cka: Debiased linear centered kernel alignment.
    """

    cosine: float
    cka: float


@dataclass(frozen=True)
class PairBehavior:
    """How two models behave on the same validation examples.

    Attributes:
        first: Title of one run.
        second: Title of the other one.
        kind: In what they differ; both of `PRECISION` started with the same adapter and the same new head.
        predictions: In the measures of llama.cpp; `None` for a task that predicts numbers.
        layers: Hidden states by layer, the embeddings' output first; empty if the model reads no tokens.
        greedy: Share of a greedy completion that the second model repeats; `None` unless it is a language model.
        flips: Decisions; `None` for a task that makes none.
    """

    first: str
    second: str
    kind: PairKind
    predictions: DivergenceSummary | None
    layers: tuple[LayerAlike, ...]
    greedy: Estimate | None
    flips: Flips | None


@dataclass(frozen=True)
class Behaviors:
    """How pairs of runs behave.

    Attributes:
        examples: How many validation examples were compared.
        probed: Of how many of them hidden states were compared.
        completions: How many texts were continued greedily.
        decisions: What decisions are, or why there are none, in words.
        pairs: The pairs.
    """

    examples: int
    probed: int
    completions: int
    decisions: str
    pairs: tuple[PairBehavior, ...]


@dataclass(frozen=True)
class Observed:
    """What a model does.

    Attributes:
        title: Of its run.
        predictions: By batch.
        rows: Of the split.
        states: (examples, features) by layer.
        completions: Tokens by prompt.
        decisions: What a user would get; `None` for a task that makes none.
        decided: What decisions are, or why there are none, in words.
    """

    title: str
    predictions: list[Predictions]
    rows: Rows
    states: list[Tensor]
    completions: list[list[int]]
    decisions: Decisions | None
    decided: str

    @property
    def examples(self) -> int:
        """How many were run."""
        return len(next(iter(self.rows.values()), []))

    @property
    def probed(self) -> int:
        """How many have hidden states."""
        return len(self.states[0]) if self.states else 0


def observe(opened: OpenedRun, measuring: Measuring) -> Observed:
    """Runs a model over its examples.

    Args:
        opened: The run.
        measuring: How many prompts are continued, and how far.

    Returns:
        What it does.
    """
    task, examples = opened.task, opened.examples
    recorder = PredictionRecorder(task, len(examples.batches))
    decisions = DecisionRecorder(task, examples.split, len(examples.batches))

    def watch(batch: Batch, found: Any) -> None:
        recorder.watch(batch, found)
        decisions.watch(batch, found)

    # Products in 16 bits on one side would be taken for what quantizing the weights does.
    with computing_in_float32(task.built_network):
        measured = examples.measure(task.built_network, watch)
        return Observed(
            opened.run.title,
            recorder.kept,
            measured.rows,
            hidden_states(opened),
            greedy_completions(opened, measuring.prompts, measuring.new_tokens),
            decisions.decisions,
            decisions_in_words(task),
        )


def hidden_states(opened: OpenedRun, examples: int = PROBED) -> list[Tensor]:
    """The mean hidden states of some examples.

    Args:
        opened: The run.
        examples: How many at most.

    Returns:
        (examples, features), float32, on the CPU, by layer; empty if batches have no attention mask.
    """
    task, pooled = opened.task, []
    with isolated_evaluation(task), every_token(task):
        for batch in rows_of_all_lengths(opened.examples.batches, examples):
            if "attention_mask" not in batch:
                return []
            moved = on_device(opened.trainer, batch)
            mask = moved["attention_mask"]
            states = task.hidden_states(moved)
            pooled.append([pool_tokens(each, shortened_mask(mask, each.shape[1]), "mean").cpu() for each in states])
    return [torch.cat(parts) for parts in zip(*pooled, strict=True)]


def greedy_completions(opened: OpenedRun, prompts: int, new_tokens: int) -> list[list[int]]:
    """Continues the beginnings of examples with the most likely tokens.

    Args:
        opened: The run.
        prompts: How many, evenly spread over the examples.
        new_tokens: Tokens of a completion, at most.

    Returns:
        Tokens by prompt; empty unless it is a language model.
    """
    task = opened.task
    if not isinstance(task, CausalLanguageModelingTask) or not prompts or not new_tokens:
        return []
    limit = getattr(task.transformers_model.config, "max_position_embeddings", None) or 2**31
    settings = GenerationSettings(max_new_tokens=new_tokens)
    starts = [start for batch in opened.examples.batches for start in beginnings(batch)]
    found: list[list[int]] = []
    with isolated_evaluation(task):
        for place in spread_places(len(starts), prompts):
            ids = starts[place][None, : limit - new_tokens].to(task.device)
            prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            found += complete_tokens(task.transformers_model, task.tokenizer, prompt, settings)
    return found


def beginnings(batch: Mapping[str, Tensor]) -> list[Tensor]:
    """The prompts in a batch of a language model: what comes before the first label, or the first half of a text.

    Args:
        batch: With `input_ids` and `labels`, (rows, positions), int64; a label is the token after its position.

    Returns:
        (tokens,) each, int64, at least 1.
    """
    found = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learnt = (labels != IGNORED).nonzero().flatten()
        if not len(learnt):
            continue
        first, last = int(learnt[0]), int(learnt[-1])
        found.append(ids[: first + 1] if first else ids[: max(1, (last + 1) // 2)])
    return found


def compare_behavior(first: Observed, second: Observed, kind: PairKind) -> PairBehavior:
    """Compares two models.

    Args:
        first: One model.
        second: The other one, on the same examples.
        kind: In what they differ.

    Returns:
        How they differ.

    Raises:
        DataError: If they were not run on the same examples with the same labels.
    """
    _check_same_examples(first, second)
    changes = [
        compare_predictions(one.logits, other.logits, one.labels, one.examples)
        for one, other in zip(first.predictions, second.predictions, strict=True)
    ]
    return PairBehavior(
        first.title,
        second.title,
        kind,
        predictions=_summarize(PredictionChanges.joined(changes)) if changes else None,
        layers=tuple(
            LayerAlike(float(row_cosines(one, other).nanmean()), float(linear_cka(one, other)))
            for one, other in zip(first.states, second.states, strict=True)
        ),
        greedy=_greedy_match(first.completions, second.completions),
        flips=_flips(first.decisions, second.decisions),
    )


def _check_same_examples(first: Observed, second: Observed) -> None:
    """Numbers of two texts mean nothing, and nobody would see it if their counts agree."""
    own, other = (_what_was_run(each) for each in (first, second))
    if len(own) != len(other) or not all(map(np.array_equal, own, other)):
        msg = f"{first.title!r} and {second.title!r} were run on different validation examples, so that their "
        msg += "predictions cannot be compared; give both precisions the same options of data"
        raise DataError(msg)


def _what_was_run(observed: Observed) -> list[NDArray[Any]]:
    rows = [observed.rows[name] for name in (INDEX, WEIGHT, LABEL) if name in observed.rows]
    predictions = [part for each in observed.predictions for part in (each.labels.numpy(), each.examples.numpy())]
    return [*rows, *predictions]


def _summarize(changes: PredictionChanges) -> DivergenceSummary:
    return summarize_divergence(
        changes.divergences, changes.probability_changes, changes.loss_changes, changes.same_top, changes.examples
    )


def _greedy_match(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> Estimate | None:
    if not first:
        return None
    shares = np.array([leading_match(one, other) for one, other in zip(first, second, strict=True)])
    error = float(shares.std(ddof=1) / np.sqrt(len(shares))) if len(shares) > 1 else float("nan")
    return Estimate(float(shares.mean()), error)


def _flips(first: Decisions | None, second: Decisions | None) -> Flips | None:
    return None if first is None or second is None else count_flips(first, second)
