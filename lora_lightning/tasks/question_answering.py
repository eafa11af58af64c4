"""The LightningModule for question answering; its data module is `datamodules.squad_v2`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig

from lora_lightning.analysis.outputs import Outputs
from lora_lightning.backbones import (
    LoadedBackbone,
    check_question_answering_settings,
    load_question_answerer,
    load_question_answering_config,
    uses_token_types,
)
from lora_lightning.backbones.attention import use_cpu_attention
from lora_lightning.backbones.model_card import QUESTION_ANSWERER
from lora_lightning.backbones.rms_norm import use_fast_rms_norm
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.dropout import use_fast_dropout
from lora_lightning.lora.fused import fuse_lora_layers
from lora_lightning.lora.injection import attach_lora, train_head_only
from lora_lightning.metrics.question_answering import (
    Candidates,
    QuestionAnsweringMetrics,
    TokenSpans,
    answer_text,
    best_spans,
    sort_by_question,
)
from lora_lightning.metrics.squad_v2 import (
    REPORTED,
    VALUES,
    QuestionScores,
    choose_threshold,
    scores_at,
    squad_v2_report,
)
from lora_lightning.tasks.base import EVALUATED, AdaptationTask
from lora_lightning.tasks.optimization import OptimizationSettings
from lora_lightning.tasks.trainer_checks import chooses_thresholds

Batch = dict[str, Tensor]
DIGITS = 6  # of scores in files
CERTAIN = 1e4  # a logit
LEAST_LOGIT = -1e5  # BigBird takes 1e6 from the logits of a question's tokens, beside which all others would be 0
POSITIONS = 2**31  # more characters than a context has


class QuestionAnsweringTask(AdaptationTask):
    """Predicts start and end of an answer, or that there is none, in each window of a context.

    A span scores its start logit plus its end logit; "no answer" those of the CLS token. A question is left unanswered
    if its null odds, the null score minus the score of its best span, are above a threshold that validation chooses.

    Args:
        backbone: A hub id, a local folder, or `package://<installed package>/<folder>`.
        lora: Settings of the adapter; `null` for full fine-tuning.
        adapter: An existing PEFT adapter to continue, a folder or a hub id; it decides all of `lora` but the dropout.
        quantization: Loads the frozen backbone in 4 or 8 bits; `null` for float32.
        optimization: Learning rate, schedule, decay.
        base_dropout: Probability for every dropout of the pretrained model; `null` leaves it unchanged.
        gradient_checkpointing: Store only the input of each layer, and recompute the rest in the backward pass: much
            less memory for long texts, about a third more time.
        torch_compile: Compile the layers of the pretrained model for training, which takes a minute and makes steps in
            bfloat16 faster: for runs of hundreds of steps. Needs a C++ compiler on a CPU.
        freeze_backbone: With `lora: null`, train only the head and other modules that the pretrained checkpoint lacks.
        max_answer_length: Largest number of tokens in an answer.
        n_best: Number of answers that `predict` writes for each question.
    """

    null_threshold: Tensor

    auto_class = QUESTION_ANSWERER

    def __init__(
        self,
        backbone: str,
        *,
        lora: LoraSettings | None = LoraSettings(),  # noqa: B008  # jsonargparse shows it; never changed
        adapter: str | None = None,
        quantization: QuantizationSettings | None = None,
        optimization: OptimizationSettings = OptimizationSettings(),  # noqa: B008
        base_dropout: float | None = None,
        gradient_checkpointing: bool = False,
        torch_compile: bool = False,
        freeze_backbone: bool = False,
        max_answer_length: int = 30,
        n_best: int = 20,
    ) -> None:
        super().__init__(
            backbone,
            lora=lora,
            quantization=quantization,
            optimization=optimization,
            base_dropout=base_dropout,
            gradient_checkpointing=gradient_checkpointing,
            torch_compile=torch_compile,
            freeze_backbone=freeze_backbone,
            adapter=adapter,
        )
        for name, value in (("max_answer_length", max_answer_length), ("n_best", n_best)):
            if value < 1:
                msg = f"model.{name} is {value}, but it must be at least 1."
                raise ConfigurationError(msg)
        self.max_answer_length = max_answer_length
        self.n_best = n_best
        self.metrics = nn.ModuleDict({split: QuestionAnsweringMetrics() for split in ("val", "test")})
        # At infinity every question is answered, until validation has chosen.
        self.register_buffer("null_threshold", torch.tensor(float("inf")))
        self.save_task_hyperparameters(
            backbone=backbone,
            lora=lora,
            adapter=adapter,
            quantization=quantization,
            optimization=optimization,
            base_dropout=base_dropout,
            gradient_checkpointing=gradient_checkpointing,
            torch_compile=torch_compile,
            freeze_backbone=freeze_backbone,
            max_answer_length=max_answer_length,
            n_best=n_best,
        )

    def check_data(self, datamodule: Any) -> None:
        """Refuses data without questions."""
        if not hasattr(datamodule, "questions"):
            name = type(datamodule).__name__
            msg = f"QuestionAnsweringTask needs questions, and {name} has none; use SquadV2DataModule."
            raise ConfigurationError(msg)

    def setup(self, stage: str) -> None:
        """Refuses unsuitable data and counts answers that are too long, before any weights load.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            ConfigurationError: If the data has no questions, or all answers exceed `max_answer_length`.
        """
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        self.check_data(datamodule)
        if hasattr(datamodule, "check_answer_lengths"):  # a data module of a user's own may only have `questions`
            datamodule.check_answer_lengths(self.max_answer_length, stage)

    def load_config(self) -> PretrainedConfig:
        """The architecture, with a head of two outputs a token."""
        return load_question_answering_config(self.backbone, self.pad_token_id, self.base_dropout)

    def check_settings(self) -> None:
        """Refuses settings that do not fit the backbone's architecture, before any weights load."""
        if self.lora is not None:
            check_question_answering_settings(self.load_config(), self.lora, self.quantization)

    def build_network(self) -> nn.Module:
        """Loads the backbone and attaches the adapters."""
        self.check_settings()
        config = self.load_config()
        return self.adapt(
            load_question_answerer(self.backbone, config, self.quantization_on_device(), self.loads_values)
        )

    def adapt(self, loaded: LoadedBackbone) -> nn.Module:
        """Attaches the adapters."""
        use_cpu_attention(loaded.model)
        network: nn.Module = loaded.model
        if self.lora is not None:
            # PEFT's wrapper for QUESTION_ANS silently drops token_type_ids (seen with 0.21.2).
            task_type = None if uses_token_types(loaded.model.config) else "QUESTION_ANS"
            network = attach_lora(loaded.model, self.lora, loaded.lacked, task_type)
            self.load_adapter(network, loaded.lacked)
        elif self.freeze_backbone:
            train_head_only(loaded.model, loaded.lacked)
        use_fast_dropout(network)
        fuse_lora_layers(network)
        use_fast_rms_norm(network)
        return network.train()  # from_pretrained leaves it in eval mode, and Lightning keeps modes as they are

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Start and end logits of a batch of windows.

        Args:
            batch: `input_ids`, `attention_mask` and, if the backbone uses them, `token_type_ids`, (windows, tokens),
                int64.

        Returns:
            Two of (windows, tokens), float32, minus infinity on padding and on tokens that the model itself rules out.
        """
        output = self.built_network(**self.model_inputs(batch))
        padding = batch["attention_mask"] == 0
        # Otherwise a window's loss would depend on how long the others in its batch are.
        start, end = (
            logits.float().masked_fill(padding | (logits < LEAST_LOGIT), -torch.inf)
            for logits in (output.start_logits, output.end_logits)
        )
        return start, end

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Start and end logits, (windows, tokens), and the mean loss, as in training."""
        start, end = self(batch)
        losses = (
            functional.cross_entropy(start, batch["start_positions"]),
            functional.cross_entropy(end, batch["end_positions"]),
        )
        return start, end, (losses[0] + losses[1]) / 2

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The mean of the cross entropies of start and end, summed over the windows of a batch."""
        *_, loss = self.evaluate(batch)
        windows = len(batch["question"])
        return self.scale_summed_loss(loss * windows, windows, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the validation metrics."""
        del batch_idx
        self.add_to_metrics("val", batch, self.evaluate(batch))

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Adds a batch to the test metrics, and returns what the model found for callbacks."""
        del batch_idx
        found = self.evaluate(batch)
        self.add_to_metrics("test", batch, found)
        return {EVALUATED: found}

    def constant_answer(self, batches: Sequence[Batch]) -> Callable[[Batch], tuple[Tensor, Tensor, Tensor]]:
        """No answer to any question, as likely as that is right."""
        positions = torch.cat([batch["start_positions"] == batch["null_position"] for batch in batches])
        share = positions.double().mean().clamp(1e-6, 1 - 1e-6)

        def answer(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
            unanswered = batch["start_positions"] == batch["null_position"]
            others = batch["attention_mask"].sum(dim=1) - 1
            losses = torch.where(unanswered, -share.log(), (others / (1 - share)).log())
            null = functional.one_hot(batch["null_position"], batch["input_ids"].shape[1]) * CERTAIN
            return null.float(), null.float(), losses.mean().float()

        return answer

    def add_to_metrics(self, split: str, batch: Batch, found: tuple[Tensor, Tensor, Tensor]) -> None:
        """Adds the loss and the best answer of each window."""
        start, end, loss = found
        metrics = self.split_metrics(split)
        metrics.loss.update(loss.detach(), weight=len(batch["question"]))
        best = self._candidates(batch, start, end, n_best=1)
        metrics.candidates.update(*(best[name].squeeze(1) for name in Candidates._fields))

    def _candidates(self, batch: Batch, start: Tensor, end: Tensor, n_best: int) -> dict[str, Tensor]:
        """The best answers of each window, as positions in its context; each column is (windows, n_best)."""
        in_context = batch["char_end"] > batch["char_start"]
        spans: TokenSpans = best_spans(start, end, in_context, self.max_answer_length, n_best)
        null = batch["null_position"][:, None]
        return {
            "question": batch["question"][:, None].expand_as(spans.start),
            "start": batch["char_start"].gather(1, spans.start),
            "end": batch["char_end"].gather(1, spans.end),
            "score": spans.score,
            "null_score": (start.gather(1, null) + end.gather(1, null)).expand_as(spans.score),
        }

    def split_metrics(self, split: str) -> QuestionAnsweringMetrics:
        """The metrics of `val` or `test`."""
        return cast("QuestionAnsweringMetrics", self.metrics[split])

    def question_scores(self, split: str) -> QuestionScores:
        """Scores the best answer to each question of which a window was seen, by number of the question.

        Args:
            split: `val` or `test`.

        Returns:
            The scores, before a threshold is applied.
        """
        questions = self.trainer.datamodule.questions(split)  # type: ignore[attr-defined]
        return self.split_metrics(split).score(questions)

    def on_validation_epoch_start(self) -> None:
        """Forgets the last epoch's batches."""
        self.split_metrics("val").reset()

    def on_test_epoch_start(self) -> None:
        """Forgets the last test's batches."""
        self.split_metrics("test").reset()

    def on_validation_epoch_end(self) -> None:
        """Chooses the threshold of a model in training, then logs."""
        scores = self.question_scores("val")
        if chooses_thresholds(self.trainer):
            self.null_threshold.fill_(choose_threshold(scores))
        self._log_metrics("val", scores)

    @property
    def threshold_name(self) -> str:
        """The null odds above which a question is left unanswered."""
        return "null_threshold"

    def metrics_at_threshold(self) -> list[str]:
        """All of the official script but those of the best threshold."""
        return [name for name in REPORTED if not name.startswith("best_")]

    def choose_threshold(self, split: str) -> None:
        """Chooses the null threshold by F1."""
        self.null_threshold.fill_(choose_threshold(self.question_scores(split)))

    def on_test_epoch_end(self) -> None:
        """Logs, with the threshold that validation chose."""
        self._log_metrics("test", self.question_scores("test"))

    def _log_metrics(self, split: str, scores: QuestionScores) -> None:
        for name, value in self._report(split, scores).items():
            self.log(f"{split}/{name}", value, prog_bar=name in {"exact", "f1"}, sync_dist=True)

    def _report(self, split: str, scores: QuestionScores) -> dict[str, float]:
        values = squad_v2_report(scores, float(self.null_threshold))
        return {**values, "loss": float(self.split_metrics(split).loss.compute())}

    def question_rows(self, split: str) -> dict[str, NDArray[Any]]:
        """The exact match and F1 of each question of which a window was seen, with the current threshold.

        Args:
            split: `val` or `test`.

        Returns:
            Columns of shape (questions,): `index`, int64, the number of the question; `exact` and `f1`, float64, in [0,
            1]; and `has_answer`, bool.
        """
        scores, threshold = self.question_scores(split), float(self.null_threshold)
        return {
            "index": self.split_metrics(split).candidates.compute().question,
            **{name: scores_at(scores, threshold, name) for name in VALUES},
            "has_answer": scores.has_answer,
        }

    def answers(self, split: str) -> list[str]:
        """The answer to each question of which a window was seen, with the current threshold.

        Args:
            split: `val` or `test`.

        Returns:
            Texts, empty for no answer, in the order of `question_rows`.
        """
        questions = self.trainer.datamodule.questions(split)  # type: ignore[attr-defined]
        return self.split_metrics(split).answers(questions, float(self.null_threshold))

    def metric_values(self, split: str) -> dict[str, float]:
        """The metrics of the questions of which a window was seen, with the current threshold."""
        return self._report(split, self.question_scores(split))

    def metric_names(self) -> list[str]:
        """The loss and the metrics of the official script."""
        return ["loss", *REPORTED]

    def outputs(self, batch: Batch, found: tuple[Tensor, Tensor, Tensor]) -> Outputs:
        """Start and end logits of each window, and its best span, or that it has no answer."""
        start, end, _ = found
        two = self._candidates(batch, start, end, n_best=2)
        best = {name: column[:, 0] for name, column in two.items()}
        odds = best["null_score"] - best["score"]
        unanswered = odds > self.null_threshold
        spans = best["start"] * POSITIONS + best["end"]
        # Scores are sums of two logits: a difference of two scores moves by up to four times as much as a logit.
        from_threshold = (odds - self.null_threshold).abs() / 4
        from_second = (two["score"][:, 0] - two["score"][:, -1]) / 4 if two["score"].shape[1] > 1 else from_threshold
        return Outputs(
            torch.cat([start, end]),
            "categorical",
            spans.masked_fill(unanswered, -1),
            margins=torch.where(unanswered, from_threshold, torch.minimum(from_threshold, from_second)),
            scores=-window_losses(batch, start, end),
        )

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Proposes answers.

        Args:
            batch: From the data module's predict loader.
            batch_idx: Not used.

        Returns:
            The best `n_best` answers of each window, each column (windows, n_best): `question`, its number in the
            file; `start` and `end`, positions in its context; `score`, minus infinity if a window has fewer answers;
            `null_score`. And `index`, (windows,).
        """
        del batch_idx
        start, end = self(batch)
        return {"index": batch["index"], **self._candidates(batch, start, end, self.n_best)}

    def prediction_rows(
        self, batches: Sequence[Mapping[str, Tensor]], inputs: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """The answer to each question, its null odds and its best answers, from all of its windows together."""
        found = Candidates(
            **{
                name: torch.cat([batch[name].flatten() for batch in batches]).cpu().numpy()
                for name in Candidates._fields
            }
        )
        ranked = sort_by_question(found.take(np.isfinite(found.score)))
        numbers, first = np.unique(ranked.question, return_index=True)
        ends = [*first[1:], len(ranked.question)]
        threshold = float(self.null_threshold)
        return [
            prediction_row(inputs[number], ranked.take(slice(start, end)), threshold, self.n_best)
            for number, start, end in zip(numbers, first, ends, strict=True)
        ]

    def export_files(self) -> dict[str, Any]:
        """What a server needs beside the weights: when to leave a question unanswered."""
        limits = torch.finfo(torch.float32)  # JSON has no infinity
        threshold = float(self.null_threshold.clamp(limits.min, limits.max))
        return {"question_answering.json": {"null_threshold": threshold, "max_answer_length": self.max_answer_length}}


def window_losses(batch: Mapping[str, Tensor], start: Tensor, end: Tensor) -> Tensor:
    """The mean of the cross entropies of start and end.

    Args:
        batch: With `start_positions` and `end_positions`, (windows,), int64.
        start: Logits, (windows, tokens), floating.
        end: The same shape.

    Returns:
        (windows,), nats.
    """
    of_start, of_end = (
        functional.cross_entropy(logits, batch[f"{side}_positions"], reduction="none")
        for side, logits in (("start", start), ("end", end))
    )
    return (of_start + of_end) / 2


def prediction_row(source: Mapping[str, Any], ranked: Candidates, threshold: float, n_best: int) -> dict[str, Any]:
    """The row that is written for a question.

    Args:
        source: Its `id` and `context`.
        ranked: Its answers from all windows, the best first.
        threshold: The question is left unanswered if its null odds are above it.
        n_best: Largest number of answers to write.

    Returns:
        `id`; `answer`, empty for none; `null_odds`; and `nbest`, the best distinct answers and the empty answer, with
        their scores and probabilities (a softmax over these scores), the most probable first.
    """
    texts: dict[str, float] = {}
    for start, end, score in zip(ranked.start, ranked.end, ranked.score, strict=True):
        texts.setdefault(answer_text(source["context"], start, end), float(score))
    answer = next(iter(texts))
    null_score = float(ranked.null_score[0])
    best = [(text, score) for text, score in texts.items() if text][:n_best]
    listed = sorted([*best, ("", null_score)], key=lambda item: -item[1])
    scores = np.array([score for _, score in listed])
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    null_odds = float(ranked.null_score[0] - ranked.score[0])  # float32, as validation compared it
    return {
        "id": source["id"],
        "answer": "" if null_odds > threshold else answer,
        "null_odds": null_odds,
        "nbest": [
            {"text": text, "score": round(score, DIGITS), "probability": round(probability, DIGITS)}
            for (text, score), probability in zip(listed, probabilities.tolist(), strict=True)
        ],
    }
