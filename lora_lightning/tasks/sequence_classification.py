"""The LightningModule for text classification; its data modules share `datamodules.sequence_classification`."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from transformers import PretrainedConfig

from lora_lightning.analysis.outputs import Outputs
from lora_lightning.backbones import (
    LoadedBackbone,
    check_adapter_settings,
    check_idle_options,
    load_classification_config,
    load_sequence_classifier,
)
from lora_lightning.backbones.attention import use_cpu_attention
from lora_lightning.backbones.finished_head import output_layer_name
from lora_lightning.backbones.first_token import keep_first_token_only
from lora_lightning.backbones.loading import build_without_storage
from lora_lightning.backbones.model_card import CLASSIFIER
from lora_lightning.backbones.rms_norm import use_fast_rms_norm
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.dropout import use_fast_dropout
from lora_lightning.lora.fused import fuse_lora_layers
from lora_lightning.lora.injection import attach_lora, train_head_only
from lora_lightning.metrics import (
    SINGLE_LABEL,
    ClassificationMetrics,
    IntentMetrics,
    LabelSpace,
    ThresholdMetrics,
    classification_metrics,
)
from lora_lightning.metrics.decision_threshold import AT_THRESHOLD, HALF
from lora_lightning.tasks.base import EVALUATED, AdaptationTask
from lora_lightning.tasks.class_weights import ClassWeight, check_class_weight, class_weights, examples_of
from lora_lightning.tasks.classification_outputs import (
    classification_loss,
    constant_logits,
    outputs_of_logits,
    predict_labels,
    readable_prediction,
    row_scores,
)
from lora_lightning.tasks.continued_adapter import ContinuedAdapter
from lora_lightning.tasks.hyperparameters import as_settings
from lora_lightning.tasks.optimization import OptimizationSettings
from lora_lightning.tasks.trainer_checks import chooses_thresholds

Batch = dict[str, Tensor]
KINDS_OF_STAGE = {"fit": ["val"], "validate": ["val"], "test": ["test"]}
HEADLINES = ("in_scope_accuracy", "accuracy", "matthews_correlation", "micro_f1", "pearson")  # for the progress bar


class SequenceClassificationTask(AdaptationTask):
    """Labels of texts or pairs of texts: one of several, any number of them, or a number.

    The data module's labels decide the loss and the metrics. Queries out of scope get a class of their own or a
    threshold.

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
        label_smoothing: Share of the target's mass spread over all classes, in [0, 1); for single labels.
        class_weight: How much the rows of a label count in the training loss: weights by label (others 1), or
            `balanced`, as in scikit-learn: the fewer training rows a label has, the more they count.
        decision_threshold: From which probability the second of two labels, or any of several, applies: `best_f1` lets
            validation choose it, for `predict` and for the metrics whose names end in `_at_threshold`; `null` is 0.5.
        label_space: The labels; filled in from the data module, or from the checkpoint in `predict`.
    """

    auto_class = CLASSIFIER
    out_of_scope_threshold: Tensor
    label_threshold: Tensor

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
        label_smoothing: float = 0.0,
        class_weight: ClassWeight | None = None,
        decision_threshold: Literal["best_f1"] | None = None,
        label_space: LabelSpace | None = None,
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
        if not 0 <= label_smoothing < 1:
            msg = f"model.label_smoothing is {label_smoothing}, but it must be in [0, 1)."
            raise ConfigurationError(msg)
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.class_weights: Tensor | None = None  # by `setup`, as `balanced` needs the training data
        self.label_space = as_settings(LabelSpace, label_space)
        self.scored_splits: list[str] = []  # in the order of the loaders
        # At infinity no query is out of scope, until validation has chosen.
        self.register_buffer("out_of_scope_threshold", torch.tensor(float("inf")))
        self.decision_threshold = decision_threshold
        if decision_threshold is not None:  # checkpoints of earlier releases have none
            self.register_buffer("label_threshold", torch.tensor(HALF))
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
            label_smoothing=label_smoothing,
            class_weight=class_weight,
            decision_threshold=decision_threshold,
            label_space=label_space,
        )

    def setup(self, stage: str) -> None:
        """Takes the labels from the data module, and creates the metrics of every split that will be scored.

        Args:
            stage: `fit`, `validate`, `test` or `predict`; prediction keeps the checkpoint's labels.

        Raises:
            ConfigurationError: If a chosen metric does not exist for such labels.
        """
        if stage == "predict":
            return
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.label_space is None and datamodule.label_space is not None:
            self.adopt_labels(datamodule.label_space)
        self.scored_splits = [name for kind in KINDS_OF_STAGE[stage] for name in datamodule.split_names(kind)]
        for name in self.scored_splits:
            self.metrics[name] = self._new_metrics()
        if stage == "fit" and self.class_weight is not None:
            check_class_weight(self.class_weight, self.labels)
            self.class_weights, note = class_weights(self.class_weight, self.labels, datamodule.label_counts)
            if note:
                rank_zero_warn(note)

    def _new_metrics(self) -> ClassificationMetrics:
        return classification_metrics(self.labels, has_threshold=self.decision_threshold is not None)

    def adopt_labels(self, space: LabelSpace) -> None:
        """Takes the labels from a data module or a checkpoint, before the model is built."""
        self.label_space = space
        self.hparams["label_space"] = asdict(space)

    @property
    def labels(self) -> LabelSpace:
        """The labels.

        Raises:
            ConfigurationError: If neither the data module nor a checkpoint has them.
        """
        if self.label_space is None:
            msg = "the labels are unknown: give a data module that has them, or --ckpt_path of a trained model."
            raise ConfigurationError(msg)
        return self.label_space

    def load_config(self) -> PretrainedConfig:
        """The architecture, with the labels."""
        return load_classification_config(
            self.backbone, self.labels.names, self.pad_token_id, self.base_dropout, self.labels.problem_type
        )

    def check_settings(self) -> None:
        """Refuses settings that do not fit the labels or the backbone's architecture, before any weights load."""
        self._new_metrics()
        check_class_weight(self.class_weight, self.labels)
        if self.label_smoothing and self.labels.problem_type != SINGLE_LABEL:
            kind = self.labels.problem_type.replace("_", " ")
            msg = f"model.label_smoothing is {self.label_smoothing}, but this data is {kind}; set it to 0."
            raise ConfigurationError(msg)
        if self.lora is not None:
            config = self.load_config()
            check_adapter_settings(config, self.lora, self.quantization)
            check_idle_options(config, self.lora, self.quantization)

    def weights_to_continue(self) -> Mapping[str, Tensor]:
        """The weights of the adapter in `model.adapter`, the rows of its head in the order of the labels."""
        adapter = cast("ContinuedAdapter", self.continued_adapter)
        if (order := adapter.order_of_labels(self.labels)) is None:
            return adapter.weights
        config = self.load_config()
        return adapter.weights_in_order(order, build_without_storage(self.model_class, config))

    def build_network(self) -> nn.Module:
        """Loads the backbone and attaches the adapters."""
        self.check_settings()
        loaded = load_sequence_classifier(
            self.backbone, self.load_config(), self.quantization_on_device(), self.loads_values
        )
        if loaded.notice and not self.resumes and self.is_fitting:
            warnings.warn(loaded.notice, stacklevel=2)
        return self.adapt(loaded)

    def adapt(self, loaded: LoadedBackbone) -> nn.Module:
        """Attaches the adapters."""
        keep_first_token_only(loaded.model)
        use_cpu_attention(loaded.model)
        network: nn.Module = loaded.model
        head = output_layer_name(loaded.model)  # trains even if the checkpoint has it, whatever its name
        trained_in_full = list(dict.fromkeys([*loaded.lacked, *([] if head is None else [head])]))
        if self.lora is not None:
            network = attach_lora(loaded.model, self.lora, trained_in_full, "SEQ_CLS")
            self.load_adapter(network, loaded.lacked)
        elif self.freeze_backbone:
            train_head_only(loaded.model, trained_in_full)
        use_fast_dropout(network)
        fuse_lora_layers(network)
        use_fast_rms_norm(network)
        return network.train()  # from_pretrained leaves it in eval mode, and Lightning keeps modes as they are

    def forward(self, batch: Batch) -> Tensor:
        """Logits of a batch.

        Args:
            batch: `input_ids` and `attention_mask`, (batch, tokens), int64; for pairs of texts on some backbones
                `token_type_ids` too.

        Returns:
            (batch, labels), the backbone's floating dtype.
        """
        logits: Tensor = self.built_network(**self.model_inputs(batch)).logits
        return logits

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits, (batch, labels), and the mean loss; in training mode with label smoothing and class weights."""
        logits, labels = self(batch), batch["labels"]
        if not self.training:
            return logits, classification_loss(logits, labels, self.labels.problem_type)
        if self.class_weights is not None:
            self.class_weights = self.class_weights.to(labels.device)
        loss = classification_loss(logits, labels, self.labels.problem_type, self.label_smoothing, self.class_weights)
        return logits, loss

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Summed loss of a batch; a row with a weight counts as so many rows."""
        _, loss = self.evaluate(batch)
        examples = examples_of(batch["labels"], self.class_weights)
        return self.scale_summed_loss(loss * examples, examples, batch_idx)

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Adds a batch to the metrics of its validation split."""
        del batch_idx
        self.add_to_metrics(self.scored_splits[dataloader_idx], batch, self.evaluate(batch))

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Adds a batch to the metrics of its test split, and returns what the model found for callbacks."""
        del batch_idx
        found = self.evaluate(batch)
        self.add_to_metrics(self.scored_splits[dataloader_idx], batch, found)
        return {EVALUATED: found}

    def constant_answer(self, batches: Sequence[Batch]) -> Callable[[Batch], tuple[Tensor, Tensor]]:
        """The labels' shares, and so the most frequent class; the mean of a regression."""
        labels = torch.cat([batch["labels"] for batch in batches])
        logits = constant_logits(labels, len(self.labels.names), self.labels.problem_type).to(self.device)

        def answer(batch: Batch) -> tuple[Tensor, Tensor]:
            rows = logits.expand(len(batch["labels"]), -1)
            return rows, classification_loss(rows, batch["labels"], self.labels.problem_type)

        return answer

    def add_to_metrics(self, split: str, batch: Batch, found: tuple[Tensor, Tensor]) -> None:
        """Adds logits and loss of a batch."""
        logits, loss = found
        self.split_metrics(split).update(logits, batch["labels"], loss)

    def split_metrics(self, split: str) -> ClassificationMetrics:
        """The metrics of a split, such as `val` or `test`."""
        return cast("ClassificationMetrics", self.metrics[split])

    def on_validation_epoch_end(self) -> None:
        """Chooses the threshold of a model in training, if there is one, then logs."""
        for split in self.scored_splits if chooses_thresholds(self.trainer) else ():
            self.choose_threshold(split)
        self._log_metrics()

    @property
    def threshold_name(self) -> str | None:
        """The out-of-scope threshold, if the labels have one, or that of `decision_threshold`."""
        if self.labels.has_out_of_scope:
            return "out_of_scope_threshold"
        return None if self.decision_threshold is None else "label_threshold"

    @property
    def _threshold(self) -> Tensor | None:
        return None if self.threshold_name is None else self.get_buffer(self.threshold_name)

    def metrics_at_threshold(self) -> list[str]:
        """Those of decisions by the threshold: which queries are out of scope, or which label applies."""
        return [name for name in self.metric_names() if name.endswith(AT_THRESHOLD)]

    def choose_threshold(self, split: str) -> None:
        """Chooses the threshold, if there is one."""
        metrics = self.split_metrics(split)
        if isinstance(metrics, IntentMetrics):
            self.out_of_scope_threshold.fill_(metrics.choose_threshold())
        elif isinstance(metrics, ThresholdMetrics):
            self.label_threshold.fill_(metrics.choose_threshold())

    def on_test_epoch_end(self) -> None:
        """Logs, with the threshold that validation chose."""
        self._log_metrics()

    def _log_metrics(self) -> None:
        for split in self.scored_splits:
            for name, value in self.metric_values(split).items():
                self.log(f"{split}/{name}", value, prog_bar=name in HEADLINES, sync_dist=True)

    def metric_values(self, split: str) -> dict[str, float]:
        """The metrics of a split, with the threshold as it is."""
        metrics = self.split_metrics(split)
        if isinstance(metrics, IntentMetrics):
            values = metrics.compute(float(self.out_of_scope_threshold))
        elif isinstance(metrics, ThresholdMetrics):
            values = metrics.compute(float(self.label_threshold))
        else:
            values = metrics.compute()
        return {name: float(value) for name, value in values.items()}

    def metric_names(self) -> list[str]:
        """The metrics of the labels."""
        return self._new_metrics().names()

    def outputs(self, batch: Batch, found: tuple[Tensor, Tensor]) -> Outputs:
        """The logits, the decisions that `predict` would write, and each row's log-likelihood."""
        outputs = outputs_of_logits(found[0], self.labels, self._threshold)
        scores, weights = row_scores(found[0], batch["labels"], self.labels.problem_type)
        return outputs._replace(scores=scores, weights=weights)

    def on_validation_epoch_start(self) -> None:
        """Forgets the last epoch's batches, which callbacks may have used until now."""
        self._reset_metrics()

    def on_test_epoch_start(self) -> None:
        """Forgets the last test's batches."""
        self._reset_metrics()

    def _reset_metrics(self) -> None:
        for split in self.scored_splits:
            self.split_metrics(split).reset()

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Tensor]:
        """Predicts the labels of texts.

        Args:
            batch: From the data module's predict loader.
            batch_idx: Not used.
            dataloader_idx: Not used.

        Returns:
            `index`, the row number, (batch,) int64, and the columns of `predict_labels`.
        """
        del batch_idx, dataloader_idx
        return {"index": batch["index"]} | predict_labels(self(batch), self.labels, self._threshold)

    def prediction_rows(
        self, batches: Sequence[Mapping[str, Any]], inputs: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Each input with its labels and scores."""
        rows = {}
        for batch in batches:
            columns = {name: column.tolist() for name, column in batch.items()}
            for position, index in enumerate(columns.pop("index")):
                prediction = {name: column[position] for name, column in columns.items()}
                rows[index] = {**inputs[index], **readable_prediction(prediction, self.labels)}
        return [rows[index] for index in sorted(rows)]

    def export_files(self) -> dict[str, Any]:
        """What a server needs beside the weights: label names, their kind, and the threshold that validation chose."""
        content: dict[str, Any] = {"names": self.labels.names, "problem_type": self.labels.problem_type}
        if self.labels.has_out_of_scope:
            threshold = float(self.out_of_scope_threshold)
            content["out_of_scope_index"] = self.labels.out_of_scope_index
            content["out_of_scope_threshold"] = threshold if math.isfinite(threshold) else None
        elif self.decision_threshold is not None:
            content["decision_threshold"] = float(self.label_threshold)
        return {"labels.json": content}
