"""Do the models behave alike? Predictions, greedy completions, hidden states and decisions of pairs of runs."""

from collections.abc import Sequence
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
from lora_lightning.artefacts.example_measuring import Rows, spread_places
from lora_lightning.backbones.first_token import every_token
from lora_lightning.callbacks.representation_drift import shortened_mask
from lora_lightning.diagnosis.adapter_similarity import PairKind
from lora_lightning.diagnosis.decisions import DecisionRecorder, decisions_in_words
from lora_lightning.diagnosis.opened_runs import OpenedRun
from lora_lightning.diagnosis.prediction_rows import PredictionRecorder, Predictions
from lora_lightning.diagnosis.specification import Measuring
from lora_lightning.diagnosis.texts import beginnings, masks_of, most_positions, texts_of_all_lengths
from lora_lightning.errors import DataError
from lora_lightning.lora.quantized import computing_in_float32
from lora_lightning.statistics.divergence import DivergenceSummary, Estimate, summarize_divergence
from lora_lightning.tasks.causal_language_modeling import CausalLanguageModelingTask
from lora_lightning.tasks.generation import GenerationSettings, complete_tokens
from lora_lightning.tasks.held_out_batches import Batch, isolated_evaluation, on_device
from lora_lightning.tasks.outcome_rows import INDEX, WEIGHT

PROBED = 64  # texts whose hidden states are compared
LABEL = "label"


@dataclass(frozen=True)
class LayerAlike:
    """Hidden states of two models after a layer.

    Attributes:
        cosine: Mean cosine of the texts' mean states.
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
        probed: Of how many of their texts hidden states were compared.
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
        states: (texts, features) by layer.
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
        """How many texts have hidden states."""
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


def hidden_states(opened: OpenedRun, texts: int = PROBED) -> list[Tensor]:
    """The mean hidden states of some texts, of packed documents of each one alone.

    Args:
        opened: The run.
        texts: How many at most.

    Returns:
        (texts, features), float32, on the CPU, by layer; empty if batches have no attention mask.
    """
    task, batches, pooled = opened.task, opened.examples.batches, []
    if not all("attention_mask" in batch for batch in batches):
        return []
    with isolated_evaluation(task), every_token(task):
        for number, chosen in texts_of_all_lengths(batches, texts).items():
            rows = sorted({text.row for text in chosen})
            moved = on_device(opened.trainer, {name: tensor[rows] for name, tensor in batches[number].items()})
            places = [rows.index(text.row) for text in chosen]
            mask = masks_of(chosen, batches[number]).to(task.device)
            states = task.hidden_states(moved)
            pooled.append(
                [pool_tokens(each[places], shortened_mask(mask, each.shape[1]), "mean").cpu() for each in states]
            )
    return [torch.cat(parts) for parts in zip(*pooled, strict=True)]


def greedy_completions(opened: OpenedRun, prompts: int, new_tokens: int) -> list[list[int]]:
    """Continues the beginnings of texts with the most likely tokens.

    Args:
        opened: The run.
        prompts: How many, evenly spread over the lengths of texts.
        new_tokens: Tokens of a completion, at most; fewer than the model has positions.

    Returns:
        Tokens by prompt; empty unless it is a language model.
    """
    task = opened.task
    if not isinstance(task, CausalLanguageModelingTask) or not prompts or not new_tokens:
        return []
    room = max(1, most_positions(task.transformers_model.config) - new_tokens)
    settings = GenerationSettings(max_new_tokens=new_tokens)
    starts = beginnings(opened.examples.batches)
    found: list[list[int]] = []
    with isolated_evaluation(task):
        for place in spread_places(len(starts), prompts):
            ids = starts[place][None, -room:].to(task.device)  # its end is where the answer begins
            prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            found += complete_tokens(task.transformers_model, task.tokenizer, prompt, settings)
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
