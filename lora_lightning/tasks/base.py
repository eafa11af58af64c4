"""What every task shares: the adapted backbone, its optimizer, and the save contract."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from peft import PeftModel
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from lora_lightning.analysis.outputs import Outputs
from lora_lightning.backbones import load_original_weights
from lora_lightning.backbones.quantization import Quantization, compute_dtype_on
from lora_lightning.compat.lightning import trainer_of
from lora_lightning.compat.torch import HookedConversion, convert_tensors
from lora_lightning.errors import CheckpointError, ConfigurationError
from lora_lightning.lora.combinations import check_lora_and_quantization, check_sharded
from lora_lightning.lora.config import LoraSettings, QuantizationSettings
from lora_lightning.lora.delta import adapted_layers
from lora_lightning.lora.injection import freeze_A
from lora_lightning.lora.quantized import keep_4bit_weights_in_order, keep_8bit_scales_beside_weights
from lora_lightning.lora.sharding import is_sharded, shard_model
from lora_lightning.lora.variants.adalora import (
    add_orthogonality_gradient,
    allocate_ranks,
    budget_state,
    check_budget,
    load_budget_state,
    ranks_are_settled,
    start_budget,
)
from lora_lightning.lora.variants.eva import follow_saved_ranks
from lora_lightning.lora.variants.initial_factors import follow_initial_factors, initial_factor_names
from lora_lightning.lora.variants.loftq import start_from_quantization_error
from lora_lightning.metrics.label_space import LabelSpace
from lora_lightning.runs.checkpoint import check_state, keep_what_trains
from lora_lightning.runs.settings import to_plain
from lora_lightning.tasks.hyperparameters import as_settings, hyperparameter_conflicts
from lora_lightning.tasks.optimization import (
    OptimizationSettings,
    build_optimizer,
    build_schedule,
    check_optimizer_variants,
)
from lora_lightning.tasks.start_from_data import start_from_data

BUDGET = "adalora"  # of a checkpoint
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class AdaptationTask(HookedConversion, LightningModule):
    """Base of the tasks: a pretrained model, adapters on it (or all of it), and how they train.

    The model is built in `configure_model`, so making a task loads no weights. A checkpoint holds the trained
    parameters and the task's own buffers, not the frozen base.

    Args:
        backbone: A hub id, a local folder, or `package://<installed package>/<folder>`.
        lora: The adapter; `null` trains the whole backbone.
        quantization: Keeps the frozen backbone in 4 or 8 bits; `null` for float32.
        optimization: Learning rate, schedule, decay.
        base_dropout: Probability for every dropout of the pretrained model; `null` leaves what it came with.
        gradient_checkpointing: Keep only what goes into each layer and compute the rest again in the backward pass:
            much less memory for long texts, about a third more time.
        freeze_backbone: With `lora: null`, train the head alone, and whatever else the pretrained checkpoint lacked.
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
        freeze_backbone: bool = False,
    ) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict()
        if base_dropout is not None and not 0 <= base_dropout < 1:
            msg = f"model.base_dropout is {base_dropout}, but a probability in [0, 1) or null is needed."
            raise ConfigurationError(msg)
        self.backbone = backbone
        self.lora = as_settings(LoraSettings, lora)
        self.quantization = as_settings(QuantizationSettings, quantization)
        check_lora_and_quantization(self.lora, self.quantization)
        self.optimization = as_settings(OptimizationSettings, optimization) or OptimizationSettings()
        self.base_dropout = base_dropout
        self.gradient_checkpointing = gradient_checkpointing
        self.freeze_backbone = freeze_backbone
        if freeze_backbone and self.lora is not None:
            msg = "model.freeze_backbone trains the head alone, but model.lora asks for adapters; write `lora: null`."
            raise ConfigurationError(msg)
        check_optimizer_variants(self.optimization, self.lora)
        self.network: nn.Module | None = None
        # Whoever resumes a run says so before it starts: EVA has looked at the data before the checkpoint was written.
        self.resumes = False
        self._examples_of_step = 0  # of this process, so far
        self._ends_step = False

    def save_task_hyperparameters(self, **hyperparameters: Any) -> None:
        """Keeps what the task was made with in every checkpoint, as plain values that load without pickle.

        Args:
            hyperparameters: The arguments of `__init__`, by name.
        """
        self.save_hyperparameters({name: to_plain(value) for name, value in hyperparameters.items()})

    @abstractmethod
    def build_network(self) -> nn.Module:
        """Loads the backbone and attaches the adapters; called once, by `configure_model`."""

    @abstractmethod
    def evaluate(self, batch: dict[str, Tensor]) -> Any:
        """The one pass over a batch that its metrics and its outputs are made of.

        Args:
            batch: From the training or an evaluation loader.

        Returns:
            What `add_to_metrics` and `outputs` take.
        """

    @abstractmethod
    def add_to_metrics(self, split: str, batch: dict[str, Tensor], found: Any) -> None:
        """Adds a batch to the metrics of a split.

        Args:
            split: Such as `val`.
            batch: The batch.
            found: What `evaluate` said about it.
        """

    @abstractmethod
    def outputs(self, batch: dict[str, Tensor], found: Any) -> Outputs:
        """What the model says about a batch, to compare two states of it.

        Args:
            batch: The batch.
            found: What `evaluate` said about it.

        Returns:
            Without padding and without positions that have no label.
        """

    @abstractmethod
    def metric_values(self, split: str) -> dict[str, float]:
        """The metrics of what `add_to_metrics` was given since their last reset; collective.

        Args:
            split: Such as `val`.

        Returns:
            Numbers by name, without the split's prefix.
        """

    @abstractmethod
    def metric_names(self) -> list[str]:
        """The names that `metric_values` may have; which of them it has, also depends on the rows of a split."""

    def adopt_labels(self, space: LabelSpace) -> None:
        """Takes the labels from elsewhere, before the model is built; tasks without labels ignore them."""

    def check_data(self, datamodule: Any) -> None:
        """Refuses a data module that has nothing for this task, before the data is read.

        Args:
            datamodule: Of any kind.

        Raises:
            ConfigurationError: If it does not fit.
        """

    def check_settings(self) -> None:
        """Finds settings that do not fit the backbone's architecture, before any weights load."""

    @abstractmethod
    def prediction_rows(self, batches: Sequence[Mapping[str, Any]], inputs: Sequence[Any]) -> list[dict[str, Any]]:
        """Makes predictions readable.

        Args:
            batches: What `predict_step` returned for one split, from every process, in any order.
            inputs: The data module's `prediction_inputs` of the split, by a batch's `index`.

        Returns:
            One row for each prediction, in the order of the input.
        """

    def export_files(self) -> dict[str, Any]:
        """What to write beside exported weights, as JSON, by file name."""
        return {}

    def configure_model(self) -> None:
        """Builds the model when a trainer (or `load_from_checkpoint`) needs it; where the strategy does, shards it."""
        trainer = trainer_of(self)
        fits = trainer is not None and trainer.state.fn == TrainerFn.FITTING
        budget = self.lora.adalora if self.lora is not None else None
        steps = check_budget(budget, self.trainer.estimated_stepping_batches) if fits and budget else 0
        if self.network is None:
            network = self.build_network()
            model = cast("PreTrainedModel", network.get_base_model() if isinstance(network, PeftModel) else network)
            starts = self._may_train and not self.resumes
            if self.lora is not None and self.lora.init_lora_weights == "loftq" and starts:
                originals = load_original_weights(model, self.backbone, adapted_layers(network))
                start_from_quantization_error(network, originals)
            if self.gradient_checkpointing:
                enable_gradient_checkpointing(model)
            self.network = network
        keep_4bit_weights_in_order(self.network)
        if steps:
            start_budget(self.adapted_network, steps)
        if fits and not self.resumes:
            start_from_data(self)
            self.resumes = True  # a second call of `Trainer.fit` goes on with this model
        if self.optimization.lorafa:
            freeze_A(self.network)
        if self.device_mesh is not None and not is_sharded(self.network):
            shard_model(self.transformers_model, self.device_mesh["data_parallel"])
            # Only one process has drawn what is new; from here on all draw the same, as without sharding.
            torch.set_rng_state(self.trainer.strategy.broadcast(torch.get_rng_state()))

    @property
    def loads_values(self) -> bool:
        """Whether this process reads the backbone's weights; where they are sharded, the main one hands them out."""
        return self.device_mesh is None or self.trainer.is_global_zero

    @property
    def adapted_network(self) -> PeftModel:
        """The model, adapters in place."""
        return cast("PeftModel", self.built_network)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Adds AdaLoRA's orthogonality to what is minimised; gradients are unscaled and not clipped yet.

        Args:
            optimizer: Not used.
        """
        del optimizer
        if self.lora is not None and self.lora.adalora is not None:
            value = add_orthogonality_gradient(self.built_network, self.lora.adalora.orth_reg_weight)
            self.log("train/orthogonality", value)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Steps, then lets AdaLoRA choose its ranks while the gradients are still there.

        Args:
            epoch: Passed on.
            batch_idx: Passed on.
            optimizer: Passed on.
            optimizer_closure: Passed on.
        """
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if self.lora is not None and self.lora.adalora is not None:
            allocate_ranks(self.adapted_network, self.trainer.global_step + 1)

    @property
    def may_be_best(self) -> bool:
        """Whether the model as it is may be handed over: under AdaLoRA only once its ranks are what it ends with."""
        uses_budget = self.lora is not None and self.lora.adalora is not None
        return not uses_budget or ranks_are_settled(self.adapted_network, self.trainer.global_step)

    @property
    def _may_train(self) -> bool:
        """Whether weights may be needed that no checkpoint holds; a trainer that only evaluates has one."""
        trainer = trainer_of(self)
        return trainer is None or trainer.state.fn == TrainerFn.FITTING

    def check_trainer(self, trainer: Trainer) -> None:
        """Finds what a quantised or sharded backbone cannot do, before any weights load.

        Args:
            trainer: Whose device, strategy and precision count.

        Raises:
            ConfigurationError: If bitsandbytes' layers, or a variant of LoRA, do not work with one of them.
        """
        if self.lora is not None and isinstance(trainer.strategy, ModelParallelStrategy):
            check_sharded(self.lora, self.optimization.lorafa)
        if self.quantization is None:
            return
        if type(trainer.strategy) not in {SingleDeviceStrategy, DDPStrategy}:
            msg = (
                f"model.quantization does not work with trainer.strategy {type(trainer.strategy).__name__}, which "
                "shards weights that bitsandbytes keeps whole; set it to auto or ddp, or write `quantization: null`."
            )
            raise ConfigurationError(msg)
        compute_dtype_on(self.quantization, trainer.strategy.root_device, str(trainer.precision))

    def quantization_on_device(self) -> Quantization | None:
        """How to quantise for the trainer's device and precision; without a trainer for the CPU.

        Lightning moves a model only after `configure_model`. Here each process quantises on its own device at once: the
        whole model never has to fit into host memory.

        Raises:
            ConfigurationError: As `check_trainer`.
        """
        if self.quantization is None or self.lora is None:
            return None
        device, precision = torch.device("cpu"), "32-true"
        if (trainer := trainer_of(self)) is not None:
            self.check_trainer(trainer)
            device, precision = trainer.strategy.root_device, str(trainer.precision)
        dtype = compute_dtype_on(self.quantization, device, precision)
        return Quantization(self.quantization, self.lora, device, dtype)

    @property
    def built_network(self) -> nn.Module:
        """The model, once it is built.

        Raises:
            ConfigurationError: If `configure_model` has not run yet.
        """
        if self.network is None:
            msg = "the model is not built yet; call configure_model() first, as a Trainer does."
            raise ConfigurationError(msg)
        return self.network

    @property
    def transformers_model(self) -> PreTrainedModel:
        """The transformers model, adapters in place."""
        network = self.built_network
        return cast("PreTrainedModel", network.get_base_model() if isinstance(network, PeftModel) else network)

    def model_inputs(self, batch: Mapping[str, Tensor]) -> dict[str, Any]:
        """What the transformers model takes of a batch.

        Args:
            batch: From any of the data module's loaders.

        Returns:
            Arguments of its `forward`.
        """
        return {name: batch[name] for name in MODEL_INPUTS if name in batch}

    def hidden_states(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """What the embeddings and each layer say; through the whole model, as FSDP2 needs it.

        Args:
            batch: From any of the data module's loaders.

        Returns:
            One more than the model has layers, each (rows, tokens, features), the backbone's floating dtype.
        """
        output = self.built_network(**self.model_inputs(batch), output_hidden_states=True)
        return cast("tuple[Tensor, ...]", output.hidden_states)

    def scale_summed_loss(self, loss: Tensor, examples: int, batch_idx: int) -> Tensor:
        """What `training_step` returns, so that every example of an optimizer step counts the same.

        A mean of the batches' means would weigh an example in a small batch more than one in a large batch, and the
        batches of several processes, or those that are accumulated, are not all of one size.

        Args:
            loss: Of a batch, summed over its examples (rows, or labels of a language model), floating scalar.
            examples: How many these are.
            batch_idx: Number of the batch in its epoch.

        Returns:
            The loss to go back from; `on_after_backward` divides the gradients.
        """
        accumulated = self.trainer.accumulate_grad_batches
        self._examples_of_step += examples
        is_last = self.trainer.is_last_batch or batch_idx + 1 >= self.trainer.num_training_batches
        self._ends_step = is_last or (batch_idx + 1) % accumulated == 0
        return loss * accumulated  # Lightning divides by it

    def on_after_backward(self) -> None:
        """Turns the gradient of a sum into that of a mean over all examples of the step, when it is complete."""
        if not self._ends_step:
            return
        examples = float(self._examples_of_step)
        if self.trainer.world_size > 1:  # one process has nothing to wait for
            own = torch.tensor(examples, device=self.device)
            examples = float(self.trainer.strategy.reduce(own, reduce_op="sum"))
        self._examples_of_step = 0
        for parameter in self.parameters():
            if parameter.grad is not None:  # the processes' mean of their sums so far
                parameter.grad.mul_(self.trainer.world_size / examples)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over what trains, and the schedule, stepped once an optimizer step."""
        mixed_precision = isinstance(self.trainer.precision_plugin, MixedPrecision)
        optimizer = build_optimizer(self, self.optimization, mixed_precision=mixed_precision)
        schedule = build_schedule(optimizer, self.optimization, self.trainer.estimated_stepping_batches)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "train/learning_rate"},
        }

    def convert_tensors(self, convert: Callable[[Tensor], Tensor], *, recurse: bool) -> None:
        """Moves and converts the network; metrics and thresholds only move, and stay exact in half precision."""

        def move(tensor: Tensor) -> Tensor:
            result = convert(tensor)
            return result if result.dtype == tensor.dtype else tensor.to(result.device)

        for name, child in self.named_children() if recurse else ():
            convert_tensors(child, convert if name == "network" else move)
        super().convert_tensors(move, recurse=False)
        keep_8bit_scales_beside_weights(self)

    def saved_names(self) -> list[str]:
        """Names of what a checkpoint must hold: what trains, all of each adapter, and the task's own buffers."""
        names = [name for name, parameter in self.named_parameters() if parameter.requires_grad or ".lora_" in name]
        own_buffers = [name for name, _ in self.named_buffers(recurse=False)]
        return names + initial_factor_names(self) + own_buffers

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leaves the frozen base out, and proves that nothing trained is left out with it."""
        checkpoint["state_dict"] = keep_what_trains(checkpoint["state_dict"], self.saved_names())
        if self.lora is not None and self.lora.adalora is not None:
            checkpoint[BUDGET] = budget_state(self.adapted_network)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another backbone or adapter before its tensors are read."""
        found = hyperparameter_conflicts(
            checkpoint.get("hyper_parameters", {}), dict(self.hparams), structural_only=True
        )
        if found:
            msg = f"the checkpoint was made with another model: {'; '.join(found)}."
            raise CheckpointError(msg)
        if BUDGET in checkpoint and self.network is not None:
            load_budget_state(self.adapted_network, checkpoint[BUDGET])

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads what trains and proves that all of it is there; the frozen base stays.

        Args:
            state_dict: What `on_save_checkpoint` left.
            strict: Ignored: the check is always strict for what trains.
            assign: As in `torch.nn.Module.load_state_dict`.

        Returns:
            torch's own report; its missing keys are the frozen base.

        Raises:
            CheckpointError: If a trained tensor is missing, unknown or of another shape.
        """
        del strict
        self.resumes = True
        if self.lora is not None and self.lora.init_lora_weights == "eva":
            prefix = "network."
            state = {name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)}
            follow_saved_ranks(self.adapted_network, state)
            if self.optimization.lorafa:
                freeze_A(self.built_network)  # of new layers too
        own = self.state_dict()
        check_state(state_dict, {name: own[name] for name in self.saved_names()}, "the checkpoint")
        follow_initial_factors(self, state_dict)
        return super().load_state_dict(state_dict, strict=False, assign=assign)


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Switches gradient checkpointing on, without reentrance.

    transformers also lets the embeddings' output require a gradient, as a frozen base under adapters needs.

    Args:
        model: A transformers model, adapters in place; changed in place.

    Raises:
        ConfigurationError: If its architecture has no gradient checkpointing.
    """
    try:
        cast("PreTrainedModel", model).activation_checkpointing_enable()
    except ValueError as error:
        msg = f"model.gradient_checkpointing is true, but {type(model).__name__} has none; set it to false."
        raise ConfigurationError(msg) from error
