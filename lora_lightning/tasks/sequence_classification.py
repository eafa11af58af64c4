"""Classify texts with an adapted transformers backbone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig

from lora_lightning.backbones import (
    check_adapter_settings,
    load_classification_config,
    load_sequence_classifier,
    load_tokenizer,
)
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.dropout import use_fast_dropout
from lora_lightning.lora.fused import fuse_lora_layers
from lora_lightning.lora.injection import attach_lora
from lora_lightning.metrics import (
    OUT_OF_SCOPE_TARGET,
    IntentMetrics,
    LabelSpace,
    in_scope_prediction,
    out_of_scope_score,
)
from lora_lightning.tasks.base import AdaptationTask, from_plain
from lora_lightning.tasks.optimization import OptimizationSettings

Batch = dict[str, Tensor]
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
DIGITS = 6  # of scores in files


class SequenceClassificationTask(AdaptationTask):
    """One label a text, with an optional class or threshold for texts out of scope.

    Args:
        backbone: A hub id, a local folder, or `package://<installed package>/<folder>`.
        lora: The adapter; `null` trains the whole backbone.
        optimization: Learning rate, schedule, decay.
        base_dropout: Probability for every dropout of the pretrained model; `null` leaves what it came with.
        gradient_checkpointing: Keep only what goes into each layer and compute the rest again in the backward pass:
            much less memory for long texts, about a third more time.
        label_smoothing: Share of the target's mass spread over all classes, in [0, 1).
        label_space: The labels; filled in from the data module, or from the checkpoint in `predict`.
    """

    out_of_scope_threshold: Tensor

    def __init__(
        self,
        backbone: str,
        *,
        lora: LoraSettings | None = LoraSettings(),  # noqa: B008  # jsonargparse shows it; never changed
        optimization: OptimizationSettings = OptimizationSettings(),  # noqa: B008
        base_dropout: float | None = None,
        gradient_checkpointing: bool = False,
        label_smoothing: float = 0.0,
        label_space: LabelSpace | None = None,
    ) -> None:
        super().__init__(backbone, lora, optimization, base_dropout, gradient_checkpointing)
        if not 0 <= label_smoothing < 1:
            msg = f"model.label_smoothing is {label_smoothing}, but a share in [0, 1) is needed."
            raise ConfigurationError(msg)
        self.label_smoothing = label_smoothing
        self.label_space = from_plain(LabelSpace, label_space)
        self.metrics = nn.ModuleDict()
        # Infinity calls nothing out of scope, until validation has chosen.
        self.register_buffer("out_of_scope_threshold", torch.tensor(float("inf")))
        self.remember(
            backbone=backbone,
            lora=lora,
            optimization=optimization,
            base_dropout=base_dropout,
            gradient_checkpointing=gradient_checkpointing,
            label_smoothing=label_smoothing,
            label_space=label_space,
        )

    def setup(self, stage: str) -> None:
        """Takes the labels from the data module.

        Args:
            stage: `fit`, `validate`, `test` or `predict`; prediction keeps the checkpoint's labels.
        """
        offered = getattr(self.trainer.datamodule, "label_space", None) if stage != "predict" else None  # type: ignore[attr-defined]
        if self.label_space is None and offered is not None:
            self.adopt_labels(offered)

    def adopt_labels(self, space: LabelSpace) -> None:
        """Takes the labels from a data module or a checkpoint, before the model is built."""
        self.label_space = space
        self.hparams["label_space"] = asdict(space)

    @property
    def labels(self) -> LabelSpace:
        """The labels.

        Raises:
            ConfigurationError: If neither the data module nor a checkpoint gave them.
        """
        if self.label_space is None:
            msg = "the labels are unknown: give a data module that has them, or --ckpt_path of a trained model."
            raise ConfigurationError(msg)
        return self.label_space

    def _load_config(self) -> PretrainedConfig:
        pad_token_id = int(load_tokenizer(self.backbone).pad_token_id)
        return load_classification_config(self.backbone, self.labels.names, pad_token_id, self.base_dropout)

    def check_settings(self) -> None:
        """Finds settings that do not fit the backbone's architecture, before any weights load."""
        if self.lora is not None:
            check_adapter_settings(self._load_config(), self.lora)

    def build_network(self) -> nn.Module:
        """Loads the backbone, attaches the adapters, and makes the metrics."""
        self.check_settings()
        loaded = load_sequence_classifier(self.backbone, self._load_config())
        network: nn.Module = loaded.model
        if self.lora is not None:
            network = attach_lora(loaded.model, self.lora, loaded.lacked, "SEQ_CLS")
        use_fast_dropout(network)
        fuse_lora_layers(network)
        for split in ("val", "test"):
            self.metrics[split] = IntentMetrics(self.labels)
        return network.train()  # from_pretrained leaves it in eval mode, and Lightning keeps modes as they are

    def forward(self, batch: Batch) -> Tensor:
        """Logits of a batch.

        Args:
            batch: `input_ids` and `attention_mask`, (batch, tokens), int64; for pairs of texts on some backbones
                `token_type_ids` too.

        Returns:
            (batch, classes), the backbone's floating dtype.
        """
        inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        logits: Tensor = self.built_network(**inputs).logits
        return logits

    def _shared_step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self(batch)
        loss = functional.cross_entropy(
            logits.float(),
            batch["labels"],
            ignore_index=OUT_OF_SCOPE_TARGET,
            label_smoothing=self.label_smoothing if self.training else 0.0,
        )
        return logits, loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross entropy of a batch."""
        del batch_idx
        _, loss = self._shared_step(batch)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch["labels"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the validation metrics."""
        del batch_idx
        self._evaluation_step(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the test metrics."""
        del batch_idx
        self._evaluation_step(batch, "test")

    def _evaluation_step(self, batch: Batch, split: str) -> None:
        logits, loss = self._shared_step(batch)
        self.split_metrics(split).update(logits, batch["labels"], loss)

    def split_metrics(self, split: str) -> IntentMetrics:
        """The metrics of `val` or `test`."""
        return cast("IntentMetrics", self.metrics[split])

    def on_validation_epoch_end(self) -> None:
        """Chooses the out-of-scope threshold, then logs."""
        self.out_of_scope_threshold.fill_(self.split_metrics("val").choose_threshold())
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Logs, with the threshold that validation chose."""
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> None:
        values = self.split_metrics(split).compute(float(self.out_of_scope_threshold))
        headline = {"in_scope_accuracy", "accuracy"}
        for name, value in values.items():
            self.log(f"{split}/{name}", value, prog_bar=name in headline, sync_dist=True)

    def on_validation_epoch_start(self) -> None:
        """Forgets the last epoch's batches; callbacks may look at them until now."""
        self.split_metrics("val").reset()

    def on_test_epoch_start(self) -> None:
        """Forgets the last test's batches."""
        self.split_metrics("test").reset()

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Scores queries.

        Args:
            batch: From the data module's predict loader.
            batch_idx: Not used.

        Returns:
            For each query, (batch,): `index` in the file, `intent` (best in-scope class), `score` (its softmax
            probability), `out_of_scope_score`, both in [0, 1], and `is_out_of_scope`, bool.
        """
        del batch_idx
        logits = self(batch)
        outside_index = self.labels.out_of_scope_index
        intent = in_scope_prediction(logits, outside_index)
        outside = out_of_scope_score(logits, outside_index)
        return {
            "index": batch["index"],
            "intent": intent,
            "score": logits.float().softmax(dim=-1).gather(1, intent[:, None]).squeeze(1),
            "out_of_scope_score": outside,
            "is_out_of_scope": outside >= self.out_of_scope_threshold,
        }

    def prediction_rows(
        self, batches: Sequence[Mapping[str, Any]], inputs: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """The input, its intent, the scores and the decision of each row."""
        rows = {}
        for batch in batches:
            columns = [
                batch[name].tolist() for name in ("index", "intent", "score", "out_of_scope_score", "is_out_of_scope")
            ]
            for index, intent, score, outside, is_outside in zip(*columns, strict=True):
                rows[index] = {
                    **inputs[index],
                    "intent": self.labels.names[intent],
                    "score": round(score, DIGITS),
                    "out_of_scope_score": round(outside, DIGITS),
                    "decision": "out_of_scope" if is_outside else "in_scope",
                }
        return [rows[index] for index in sorted(rows)]

    def export_files(self) -> dict[str, Any]:
        """What a server needs beside the weights: label names and the out-of-scope rule."""
        threshold = float(self.out_of_scope_threshold)
        return {
            "labels.json": {
                "names": self.labels.names,
                "out_of_scope_index": self.labels.out_of_scope_index,
                "out_of_scope_threshold": threshold if math.isfinite(threshold) else None,
            }
        }
