"""The LightningModule for causal language models; `backbones` loads them, `datamodules` has their data."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase

from lora_lightning.analysis.outputs import Outputs, top_margins
from lora_lightning.backbones import LoadedBackbone, load_tokenizer, position_limit
from lora_lightning.backbones.causal_language_modeling import (
    check_causal_lm_settings,
    load_causal_lm,
    load_causal_lm_config,
    output_head_name,
)
from lora_lightning.backbones.miniature import build_miniature
from lora_lightning.backbones.model_card import LANGUAGE_MODEL
from lora_lightning.backbones.rms_norm import use_fast_rms_norm
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.dropout import use_fast_dropout
from lora_lightning.lora.fused import fuse_lora_layers
from lora_lightning.lora.injection import attach_lora
from lora_lightning.metrics.all_rows import WeightedMean
from lora_lightning.tasks.base import EVALUATED, AdaptationTask
from lora_lightning.tasks.generation import GenerationSettings, complete
from lora_lightning.tasks.hyperparameters import as_settings
from lora_lightning.tasks.next_token import IGNORED, NextTokenModel, spread_positions
from lora_lightning.tasks.optimization import OptimizationSettings
from lora_lightning.tasks.packed_documents import Way

Batch = dict[str, Tensor]
Scores = tuple[Tensor, Tensor, int]  # summed loss, hits and number of the labels


class CausalLanguageModelingTask(AdaptationTask):
    """Next-token prediction on plain text, or on the responses of instructions and chats.

    Every label counts the same, in the loss of an optimizer step (over its accumulated batches and all processes) as
    in the metrics. The head gets no adapter, and embeddings that are tied to it stay tied and frozen.

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
        generation: How `predict` and sample texts are generated.
    """

    auto_class = LANGUAGE_MODEL

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
        generation: GenerationSettings = GenerationSettings(),  # noqa: B008
    ) -> None:
        super().__init__(
            backbone,
            lora=lora,
            quantization=quantization,
            optimization=optimization,
            base_dropout=base_dropout,
            gradient_checkpointing=gradient_checkpointing,
            torch_compile=torch_compile,
            adapter=adapter,
        )
        self.generation = as_settings(GenerationSettings, generation) or GenerationSettings()
        self._documents_kept_apart_by: Way | None = None
        self._reads_padding: bool | None = None  # `None` until the model has shown it
        self.metrics = nn.ModuleDict(
            {
                split: nn.ModuleDict({"loss": WeightedMean(), "next_token_accuracy": WeightedMean()})
                for split in ("val", "test")
            }
        )
        self.save_task_hyperparameters(
            backbone=backbone,
            lora=lora,
            adapter=adapter,
            quantization=quantization,
            optimization=optimization,
            base_dropout=base_dropout,
            gradient_checkpointing=gradient_checkpointing,
            torch_compile=torch_compile,
            generation=generation,
        )

    def check_data(self, datamodule: Any) -> None:
        """Refuses data without texts to continue, and packed data that the architecture cannot keep apart.

        Args:
            datamodule: Of any kind.

        Raises:
            BackboneError: If examples are packed and the architecture cannot keep them apart.
            ConfigurationError: If the data has no texts to continue.
        """
        if not hasattr(datamodule, "prompts"):
            name = type(datamodule).__name__
            msg = (
                f"CausalLanguageModelingTask needs texts to continue, and {name} has none; use PlainTextDataModule or "
                "InstructionDataModule."
            )
            raise ConfigurationError(msg)
        if getattr(datamodule, "packing", False) and self._miniature is not None:
            self._documents_kept_apart_by = self._miniature.documents_kept_apart_by

    def setup(self, stage: str) -> None:
        """Finds data that does not fit, and prompts that are too long, before any weights load.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            ConfigurationError: If the data has no texts to continue, or a prompt leaves no room for its completion.
        """
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if datamodule is not None:  # a user's own loaders need none
            self.check_data(datamodule)
        if stage == "predict":
            self.check_lengths(datamodule.splits["predict"].lengths.tolist(), datamodule.prompt_places)

    @cached_property
    def _miniature(self) -> NextTokenModel | None:
        """A small random model of the architecture; without one, the loaded model has to show what it does."""
        model = build_miniature(AutoModelForCausalLM, self._config)
        return None if model is None else NextTokenModel(model)

    @property
    def head_is_linear(self) -> bool:
        """Whether the architecture's logits are a linear layer of the last hidden state, found out without weights."""
        return self._miniature is None or self._miniature.head_is_linear

    @cached_property
    def _config(self) -> PretrainedConfig:
        return load_causal_lm_config(self.backbone, self.base_dropout)  # a GGUF file takes seconds to look into

    def load_config(self) -> PretrainedConfig:
        """The architecture of the language model."""
        return self._config

    def check_settings(self) -> None:
        """Finds settings that do not fit the backbone's architecture, before any weights load.

        Raises:
            BackboneError: If the architecture sees the token that it has to predict.
            ConfigurationError: If a setting does not fit.
        """
        config = self._config
        if self.lora is not None:
            check_causal_lm_settings(config, self.lora, self.quantization)
        if self._miniature is not None:
            self._miniature.check_is_causal()
            self._reads_padding = self._miniature.reads_padding

    def build_network(self) -> nn.Module:
        """Loads the backbone and attaches the adapters."""
        self.check_settings()
        self.__dict__.pop("_miniature", None)  # up to 1 GiB
        model = load_causal_lm(self.backbone, self._config, self.quantization_on_device(), self.loads_values)
        return self.adapt(LoadedBackbone(model, []))

    def adapt(self, loaded: LoadedBackbone) -> nn.Module:
        """Attaches the adapters."""
        model = loaded.model
        network: nn.Module = model
        if self.lora is not None:
            network = attach_lora(model, self.lora, [], "CAUSAL_LM", [output_head_name(model)])
            self.load_adapter(network, [])
        use_fast_dropout(network)
        fuse_lora_layers(network)
        use_fast_rms_norm(network)
        return network.train()  # from_pretrained leaves it in eval mode, and Lightning keeps modes as they are

    @cached_property
    def next_token(self) -> NextTokenModel:
        """Losses and hits of the model."""
        return NextTokenModel(self.transformers_model, self._documents_kept_apart_by)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The backbone's tokenizer, which generation needs."""
        return load_tokenizer(self.backbone)

    def model_inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the model takes of a batch, documents of one row kept apart; logits of the last position only."""
        return {**self.next_token.inputs(batch), "logits_to_keep": 1}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Summed cross entropy of a batch."""
        loss, labels = self.next_token.loss(batch)
        return self.scale_summed_loss(loss, labels, batch_idx)

    def on_validation_epoch_start(self) -> None:
        """Forgets the last epoch's batches."""
        self._reset("val")

    def on_test_epoch_start(self) -> None:
        """Forgets the last test's batches."""
        self._reset("test")

    def _reset(self, split: str) -> None:
        for metric in self._split_metrics(split).values():
            metric.reset()

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

    def evaluate(self, batch: Batch) -> Tensor:
        """What the head takes at each label."""
        return self.next_token.features(batch)

    def constant_answer(self, batches: Sequence[Batch]) -> Callable[[Batch], Scores]:
        """The unigram distribution of the labels, whatever comes before."""
        learnt = torch.cat([batch["labels"][batch["labels"] != IGNORED] for batch in batches])
        counts = torch.bincount(learnt, minlength=1).double().to(self.device)
        log_shares = (counts / counts.sum()).log().float()

        def answer(batch: Batch) -> Scores:
            labels = batch["labels"][batch["labels"] != IGNORED]
            return -log_shares[labels].sum(), (labels == counts.argmax()).sum(), len(labels)

        return answer

    def condense(self, batch: Batch, found: Tensor | Scores) -> Scores:
        """The loss and the hits, for which the head has to run."""
        return found if isinstance(found, tuple) else self.next_token.score(batch, found)

    def add_to_metrics(self, split: str, batch: Batch, found: Tensor | Scores) -> None:
        """Adds loss and hits, each batch weighted by its labels."""
        loss, hits, labels = self.condense(batch, found)
        metrics = self._split_metrics(split)
        metrics["loss"].update(loss / labels, weight=labels)
        metrics["next_token_accuracy"].update(hits / labels, weight=labels)

    def _split_metrics(self, split: str) -> dict[str, WeightedMean]:
        return cast("dict[str, WeightedMean]", self.metrics[split])

    def on_validation_epoch_end(self) -> None:
        """Logs."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Logs."""
        self._log_metrics("test")

    def _log_metrics(self, split: str) -> None:
        for name, value in self.metric_values(split).items():
            self.log(f"{split}/{name}", value, prog_bar=name == "perplexity", sync_dist=True)

    def metric_values(self, split: str) -> dict[str, float]:
        """Loss, perplexity and next-token accuracy of a split."""
        values = {name: float(metric.compute()) for name, metric in self._split_metrics(split).items()}
        return {**values, "perplexity": math.exp(min(values["loss"], 700.0))}

    def metric_names(self) -> list[str]:
        """Those of `metric_values`."""
        return ["loss", "next_token_accuracy", "perplexity"]

    def outputs(self, batch: Batch, found: Tensor) -> Outputs:
        """The logits at up to 256 labels, spread over the batch; its rows are the examples."""
        logits = self.next_token.some_logits(found)
        is_learnt = batch["labels"] != IGNORED
        places = spread_positions(len(found)).to(found.device)
        rows, labels = is_learnt.nonzero()[places, 0], batch["labels"][is_learnt][places]
        likelihoods = -functional.cross_entropy(logits.float(), labels, reduction="none")
        sums = likelihoods.new_zeros(len(batch["labels"])).index_add(0, rows, likelihoods)
        counts = torch.bincount(rows, minlength=len(sums))
        return Outputs(
            logits,
            "categorical",
            logits.argmax(dim=-1),
            margins=top_margins(logits),
            scores=sums / counts.clamp(min=1),
            weights=counts,
        )

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Continues prompts.

        Args:
            batch: From the data module's predict loader.
            batch_idx: Not used.

        Returns:
            `index`, (prompts,), the row in the file; and `completion`, a text for each prompt.
        """
        del batch_idx
        return {"index": batch["index"], "completion": self.complete(batch)}

    def complete(self, prompts: Mapping[str, Tensor]) -> list[str]:
        """Continues a batch of prompts; one after another if the architecture would read padding.

        Args:
            prompts: `input_ids` and `attention_mask`, (prompts, tokens), int64, padded on the right.

        Returns:
            The completion of each prompt.
        """
        run = partial(complete, self.transformers_model, self.tokenizer, settings=self.generation)
        lengths = prompts["attention_mask"].sum(dim=1).tolist()
        if self._reads_padding is None:
            self._reads_padding = self.next_token.reads_padding
        if len(lengths) == 1 or not self._reads_padding:
            return run(prompts)
        # Not even those of equal length together: RWKV's states of several rows are mixed up (transformers 5.24).
        names = ("input_ids", "attention_mask")
        rows = [{name: prompts[name][row : row + 1, :length] for name in names} for row, length in enumerate(lengths)]
        return [text for row in rows for text in run(row)]

    def check_lengths(self, lengths: Sequence[int], places: Sequence[str]) -> None:
        """Refuses prompts that leave no room for their completion.

        Args:
            lengths: Tokens of each prompt.
            places: What to call each in messages, such as its file and line.

        Raises:
            ConfigurationError: If one does not fit the model's positions with `generation.max_new_tokens`.
        """
        limit = position_limit(self._config)
        new = self.generation.max_new_tokens
        for length, place in zip(lengths, places, strict=True):
            if limit is not None and length + new > limit:
                msg = (
                    f"{place}: the prompt has {length} tokens, which with model.generation.max_new_tokens {new} "
                    f"exceeds the model's {limit} positions; shorten one of them."
                )
                raise ConfigurationError(msg)

    def prediction_rows(
        self, batches: Sequence[Mapping[str, Any]], inputs: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        """Each prompt and its completion."""
        rows = {}
        for batch in batches:
            for index, completion in zip(batch["index"].tolist(), batch["completion"], strict=True):
                rows[index] = {**inputs[index], "completion": completion}
        return [rows[index] for index in sorted(rows)]
