"""What every task shares: the adapted backbone, its training steps and its optimizer."""

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any, cast

import torch
import transformers
from lightning import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.trainer.states import TrainerFn
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PretrainedConfig, PreTrainedModel

from lora_lightning.backbones import LoadedBackbone, load_original_weights, load_tokenizer
from lora_lightning.backbones.plain_base import load_plain_base
from lora_lightning.backbones.quantization import Quantization
from lora_lightning.compat.lightning import trainer_of
from lora_lightning.compat.torch import HookedConversion, convert_tensors
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.combinations import check_combinations, check_lora_and_quantization
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.quantized import keep_4bit_weights_in_order, keep_8bit_scales_beside_weights
from lora_lightning.lora.sharding import is_sharded, shard_model
from lora_lightning.lora.variants import chosen_variants
from lora_lightning.tasks.compiled_layers import compile_layers
from lora_lightning.tasks.continuing import ContinuingTask
from lora_lightning.tasks.gradient_checkpointing import enable_gradient_checkpointing
from lora_lightning.tasks.hyperparameters import as_settings
from lora_lightning.tasks.optimization import OptimizationSettings
from lora_lightning.tasks.optimized import OptimizedTask
from lora_lightning.tasks.quantized_training import quantization_for
from lora_lightning.tasks.step_weighting import StepWeighting
from lora_lightning.tasks.trainer_checks import check_trainer_fits
from lora_lightning.tasks.training_facts import training_facts

MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
EVALUATED = "evaluated"  # what `test_step` returns: the result of `evaluate`, for callbacks


class AdaptationTask(HookedConversion, OptimizedTask, ContinuingTask):
    """Base of the tasks: a pretrained model, with adapters or trained in full, and how it trains.

    The model is built in `configure_model`, so making a task loads no weights. A checkpoint holds the trainable
    parameters and the task's own buffers, not the frozen base.

    Args:
        backbone: A hub id, a local folder, or `package://<installed package>/<folder>`.
        lora: Settings of the adapter; `null` for full fine-tuning.
        quantization: Loads the frozen backbone in 4 or 8 bits; `null` for float32.
        optimization: Learning rate, schedule, decay.
        base_dropout: Probability for every dropout of the pretrained model; `null` leaves it unchanged.
        gradient_checkpointing: Store only the input of each layer, and recompute the rest in the backward pass.
        torch_compile: Compile the layers of the pretrained model for training.
        freeze_backbone: With `lora: null`, train only the head and other modules that the pretrained checkpoint lacks.
        adapter: An existing PEFT adapter to continue, a folder or a hub id; it decides all of `lora` but the dropout.
    """

    def __init__(
        self,
        backbone: str,
        # The same defaults as the tasks': without them the parser takes null for a task's own default.
        lora: LoraSettings | None = LoraSettings(),  # noqa: B008  # never changed
        quantization: QuantizationSettings | None = None,
        optimization: OptimizationSettings = OptimizationSettings(),  # noqa: B008
        base_dropout: float | None = None,
        gradient_checkpointing: bool = False,
        torch_compile: bool = False,
        freeze_backbone: bool = False,
        adapter: str | None = None,
    ) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict()
        if base_dropout is not None and not 0 <= base_dropout < 1:
            msg = f"model.base_dropout is {base_dropout}, but it must be a probability in [0, 1), or null."
            raise ConfigurationError(msg)
        self.backbone = backbone
        self.lora = as_settings(LoraSettings, lora)
        self.quantization = as_settings(QuantizationSettings, quantization)
        check_lora_and_quantization(self.lora, self.quantization)
        self.optimization = as_settings(OptimizationSettings, optimization) or OptimizationSettings()
        self.base_dropout = base_dropout
        self.gradient_checkpointing = gradient_checkpointing
        self.torch_compile = torch_compile
        self.freeze_backbone = freeze_backbone
        if freeze_backbone and self.lora is not None:
            msg = "model.freeze_backbone trains the head alone, but model.lora asks for adapters; write `lora: null`."
            raise ConfigurationError(msg)
        if adapter is not None and self.lora is None:
            msg = "model.adapter continues an adapter, but model.lora is null; leave model.lora out."
            raise ConfigurationError(msg)
        self.adapter = adapter
        check_combinations(self.lora, self.optimization)
        self.variants = chosen_variants(self.lora, self.optimization)
        self._step_weighting = StepWeighting()

    def configure_model(self) -> None:
        """Builds the model when a trainer (or `load_from_checkpoint`) needs it, and shards it if the strategy does."""
        trains = self.is_fitting
        if trains:
            for variant in self.variants:
                variant.check_schedule(lambda: self.trainer.estimated_stepping_batches)
        if self.network is None:
            self.network = self._build_with_starts()
        keep_4bit_weights_in_order(self.network)
        if trains:
            facts = training_facts(self, self.trainer, resumes=self.resumes)
            for variant in self.variants:
                variant.before_training(self.adapted_network, facts)
            self.resumes = True  # a second call of `Trainer.fit` continues with this model
        self.freeze_parameters_of_variants()
        if self.device_mesh is not None and not is_sharded(self.network):
            shard_model(self.transformers_model, self.device_mesh["data_parallel"])
            # Only one process has drawn what is new; from here on all draw the same, as without sharding.
            torch.set_rng_state(self.trainer.strategy.broadcast(torch.get_rng_state()))
        if trains and self.torch_compile:
            compile_layers(self.transformers_model)

    def _build_with_starts(self) -> nn.Module:
        starts_from_adapter = self.starts_from_adapter and not self.adapter_is_gone()
        if starts_from_adapter:
            self.check_adapter()
        network = self.build_network()
        if starts_from_adapter:
            self.check_adapter_is_loaded()
        model = cast("PreTrainedModel", network.get_base_model() if isinstance(network, PeftModel) else network)
        # A trainer that only evaluates loads a checkpoint, which holds the adapters.
        if not self.resumes and ((trainer := trainer_of(self)) is None or trainer.state.fn == TrainerFn.FITTING):
            originals = partial(load_original_weights, model, self.backbone)
            for variant in self.variants:
                variant.start_from_base(cast("PeftModel", network), originals)
        if self.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        return network

    @property
    def model_class(self) -> Any:
        """Transformers' `AutoModelFor...` with the task's head; `None` for a task that makes its base itself."""
        return None if self.auto_class is None else getattr(transformers, self.auto_class)

    @cached_property
    def pad_token_id(self) -> int:
        """The id of the token that pads rows, which the model has to know."""
        return int(cast("int", load_tokenizer(self.backbone).pad_token_id))

    def load_config(self) -> PretrainedConfig:
        """The architecture of the backbone, with the task's settings; reads no weights.

        Raises:
            BackboneError: If it cannot be found, or has no such head.
        """
        raise NotImplementedError

    def adapt(self, loaded: LoadedBackbone) -> nn.Module:
        """Attaches the adapters to a backbone, and prepares it for training.

        Args:
            loaded: With the task's head, changed in place; may be on the meta device.

        Returns:
            The network, in training mode.
        """
        raise NotImplementedError

    def load_plain_base(self) -> PreTrainedModel:
        """The pretrained model once more, without adapters, quantized as this one is; a new head in it is random.

        Raises:
            BackboneError: If it cannot be found any more.
        """
        return load_plain_base(self.transformers_model, self.backbone, self.quantization_on_device())

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Lets variants add to the gradients, which are unscaled and not clipped yet.

        Args:
            optimizer: Not used.
        """
        del optimizer
        for variant in self.variants:
            for tag, value in variant.before_step(self.built_network).items():
                self.log(tag, value)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Steps, then lets variants change the adapters while the gradients are still there.

        Args:
            epoch: Passed on.
            batch_idx: Passed on.
            optimizer: Passed on.
            optimizer_closure: Passed on.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        for variant in self.variants:
            variant.after_step(self.adapted_network, self.trainer.global_step + 1)

    @property
    def may_be_best(self) -> bool:
        """Whether the adapters have the shape that they will end with, so that the model may be exported as it is."""
        return all(variant.is_settled(self.adapted_network, self.trainer.global_step) for variant in self.variants)

    def check_trainer(self, trainer: Trainer) -> None:
        """Refuses a trainer that the backbone's settings, or a variant of LoRA, cannot work with, before weights load.

        Args:
            trainer: Its device, strategy and precision matter.

        Raises:
            ConfigurationError: If one of them does not work with quantized or compiled layers, or a variant of LoRA.
        """
        check_trainer_fits(trainer, self.lora, self.quantization, self.optimization, compiles=self.torch_compile)

    def quantization_on_device(self) -> Quantization | None:
        """How to quantize on the trainer's device; without a trainer on the CPU.

        Lightning moves a model only after `configure_model`. Here each process quantizes on its own device right away,
        so that the full model never has to fit into host memory. Raises what `check_trainer` raises.
        """
        if self.quantization is None or self.lora is None:
            return None
        return quantization_for(trainer_of(self), self.quantization, self.lora)

    def model_inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """The part of a batch that the transformers model takes.

        Args:
            batch: From any of the data module's loaders.

        Returns:
            Arguments of its `forward`.
        """
        return {name: batch[name] for name in MODEL_INPUTS if name in batch}

    def hidden_states(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """The outputs of the embeddings and of each layer, by a pass through the full model, as FSDP2 needs it.

        Args:
            batch: From any of the data module's loaders.

        Returns:
            One more than the model has layers, each (rows, tokens, features), the backbone's floating dtype; fewer
            tokens where a layer pools them, as in Funnel; of an encoder-decoder first those of the encoder.
        """
        output = self.built_network(**self.model_inputs(batch), output_hidden_states=True)
        if "encoder_hidden_states" in output:
            return (*output.encoder_hidden_states, *output.decoder_hidden_states[1:])
        return cast("tuple[Tensor, ...]", output.hidden_states)

    def scale_summed_loss(self, loss: Tensor, examples: float, batch_idx: int) -> Tensor:
        """Scales a batch's loss for the backward pass, so that all examples of an optimizer step have the same weight.

        Args:
            loss: Of a batch, summed over its examples (rows, or labels of a language model), floating scalar.
            examples: How many examples the batch has; if they have weights, the sum of these.
            batch_idx: Number of the batch in its epoch.

        Returns:
            What `training_step` returns; `on_after_backward` divides the gradients.
        """
        return self._step_weighting.add_batch(loss, examples, batch_idx, self.trainer)

    def on_after_backward(self) -> None:
        """Once a step is complete, turns the gradient of a sum into that of a mean, and logs the mean loss.

        `train/loss` is of all examples of the step: of every process, and of every accumulated batch.
        """
        if (loss := self._step_weighting.divide_gradients(self.parameters(), self.trainer)) is not None:
            self.log("train/loss", loss, prog_bar=True)

    def convert_tensors(self, convert: Callable[[Tensor], Tensor], *, recurse: bool) -> None:
        """Moves and converts the network; metrics and thresholds only move, and stay exact in half precision."""

        def move(tensor: Tensor) -> Tensor:
            result = convert(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        for name, child in self.named_children() if recurse else ():
            convert_tensors(child, convert if name == "network" else move)
        super().convert_tensors(move, recurse=False)
        keep_8bit_scales_beside_weights(self)
