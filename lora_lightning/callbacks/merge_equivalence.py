"""Prove on held-out batches that merging the adapters does not change what the model says."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, cast

import torch
from lightning import LightningModule, Trainer
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from lora_lightning.analysis.merge_verdict import Verdict, judge
from lora_lightning.analysis.outputs import OutputComparison, OutputDifference
from lora_lightning.backbones import load_config, load_original_weights
from lora_lightning.callbacks.adapter_monitor import TOTAL, AdapterMonitor, Measurement
from lora_lightning.callbacks.validation_batches import (
    Batch,
    Observation,
    held_out_batches,
    observe,
    precision,
    undisturbed,
)
from lora_lightning.errors import ConfigurationError, VerificationError
from lora_lightning.lora.delta import adapted_layers
from lora_lightning.lora.merging import merge_targets, merged_adapters, quantization_errors, without_adapters
from lora_lightning.lora.quantized import quantized_bits
from lora_lightning.tasks import AdaptationTask


class MergeEquivalence(AdapterMonitor):
    """Compares the adapted model with the merged one, at the end of training; the model is left bit for bit as it was.

    Logged for each merge target below `verification/all/<target>/`: `max_logit_difference`, `mean_logit_difference`,
    `kl_divergence` (nats), `flipped_share` of decisions, the change of the loss and of the monitored metric, and
    `seconds_per_batch`, which `verification/all/adapted/` has of the unmerged model. `verification/all/adapter/` is the
    same comparison of the adapted model with its base: how much the adapter does at all. On a quantised base each layer
    has `quantization_error` and `requantization_error`, relative to ||dW||, and a sentence recommends a target.

    It fails where the merge that must be exact (`base`, or `dequantized` on a quantised base) moves a logit by more
    than the tolerance, or says the same as the base without adapters: the adapter changes nothing.

    Memory: the outputs of the batches twice on the host, and what `lora.merging.merged` says.

    Args:
        batches: Of the first validation loader, spread over it evenly; each process has its own.
        at_validation: Compare at each validation too; a failure then ends training.
        tolerance: Largest difference of two logits, relative to the largest logit (or to 1, if that is larger); `null`
            chooses by the least exact dtype of the computation.
        on_failure: `raise` an error once training has ended and everything is saved, or `warn`.
        original_backbone: Hub id, folder or `package://` name of the 16- or 32-bit model that a quantised base was made
            from, to try the target `original`; it is loaded into host memory.
    """

    table = "merge_equivalence"
    tag = "verification"

    def __init__(
        self,
        batches: int = 4,
        at_validation: bool = False,
        tolerance: float | None = None,
        on_failure: Literal["raise", "warn"] = "raise",
        original_backbone: str | None = None,
    ) -> None:
        super().__init__()
        if batches < 1:
            msg = f"MergeEquivalence.batches is {batches}, but at least 1 is needed."
            raise ConfigurationError(msg)
        if tolerance is not None and not tolerance > 0:
            msg = f"MergeEquivalence.tolerance is {tolerance}, but it must be above 0, such as 1e-4, or null."
            raise ConfigurationError(msg)
        self.batches = batches
        self.at_validation = at_validation
        self.tolerance = tolerance
        self.on_failure = on_failure
        self.original_backbone = original_backbone
        self.verdict: Verdict | None = None
        self._saved_verdict: Verdict | None = None
        self._news = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks for the original backbone before training, not when it is over."""
        del trainer, pl_module
        if stage == "fit" and self.original_backbone is not None:
            load_config(self.original_backbone)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses an original backbone that would say nothing.

        Raises:
            ConfigurationError: If the base is not quantised.
        """
        super().on_fit_start(trainer, pl_module)
        if self.original_backbone is not None and not any(map(_bits, adapted_layers(pl_module).values())):
            msg = (
                f"MergeEquivalence.original_backbone is {self.original_backbone}, but no adapted layer is quantised: "
                "the base is the original. Set it to null."
            )
            raise ConfigurationError(msg)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the verdict up again where the run goes on from the step that it is about."""
        super().on_train_start(trainer, pl_module)
        if self._saved_verdict is not None and 0 < self._measured_at == trainer.global_step:
            self._decide(trainer, self._saved_verdict)

    def state_dict(self) -> dict[str, Any]:
        """The step that was measured last, and the verdict."""
        return {**super().state_dict(), "verdict": self.verdict and asdict(self.verdict)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps both until training starts."""
        super().load_state_dict(state_dict)
        saved = state_dict.get("verdict")
        self._saved_verdict = None if saved is None else Verdict(**saved)

    @property
    def only_at_the_end(self) -> bool:
        """Unless it compares at each validation, only the exported weights are compared."""
        return not self.at_validation

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what came out, now that every checkpoint is written.

        Raises:
            VerificationError: If merging failed, unless `on_failure` is `warn`.
        """
        del pl_module
        failure = self.verdict.failure if self.verdict else None
        a_try = trainer.fast_dev_run  # type: ignore[attr-defined]  # one step of warm-up may have learnt nothing
        if failure and self.on_failure == "raise" and not a_try:
            raise VerificationError(failure)
        if trainer.is_global_zero and self._news:
            print(f"merge check FAILED: {failure}" if failure else f"merge check: {self._news}")

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> list[Measurement]:
        """Compares now."""
        task = cast("AdaptationTask", pl_module)
        batches = held_out_batches(trainer, self.batches)
        if reason := why_not(trainer, task, batches):
            self._news = f"nothing was compared, {reason}."
            return []
        with undisturbed(task):
            originals = self._originals(task)
            adapted = observe(trainer, task, batches)
            with without_adapters(task):
                base = observe(trainer, task, batches, with_metrics=False)
            adapter = compare(trainer, adapted, base)
            measurements = [*_rows("adapter", adapter), _seconds("adapted", adapted)]
            differences: dict[str, OutputDifference] = {}
            from_base: dict[str, OutputDifference] = {}
            for target in merge_targets(task, originals):
                with merged_adapters(task, target, originals):
                    found = observe(trainer, task, batches)
                differences[target] = compare(trainer, adapted, found)
                from_base[target] = compare(trainer, base, found)
                measurements += [*_rows(target, differences[target]), _seconds(target, found)]
                measurements += metric_changes(trainer, target, adapted.metrics, found.metrics)
            measurements += layer_errors(task, originals)
            with precision(trainer):
                self._decide(trainer, judge(task, differences, from_base, adapter, self.tolerance))
        return measurements

    def _decide(self, trainer: Trainer, verdict: Verdict) -> None:
        self.verdict, self._news = verdict, verdict.sentence
        if verdict.failure and self.on_failure == "raise":
            trainer.should_stop = True

    def _originals(self, task: AdaptationTask) -> dict[str, Tensor] | None:
        layers = adapted_layers(task)
        if self.original_backbone is None or not any(_bits(layer) for layer in layers.values()):
            return None
        model = cast("PeftModel", task.built_network).get_base_model()
        return load_original_weights(cast("PreTrainedModel", model), self.original_backbone, layers)


def why_not(trainer: Trainer, task: AdaptationTask, batches: list[Batch]) -> str | None:
    """Why there is nothing to compare, as the end of a sentence; `None` where there is. Collective."""
    fewest = trainer.strategy.reduce(torch.tensor(len(batches), device=task.device), reduce_op="min")
    if not adapted_layers(task):
        return "because model.lora is null and there is no adapter to merge"
    return None if int(fewest) else "because a process has no validation batches"


def compare(trainer: Trainer, first: Observation, second: Observation) -> OutputDifference:
    """How far two states are apart, over the batches of all processes; collective."""
    comparison = OutputComparison()
    for left, right in zip(first.outputs, second.outputs, strict=True):
        comparison.update(left, right)
    if trainer.world_size > 1:
        device = trainer.strategy.root_device
        comparison.sums = trainer.strategy.reduce(comparison.sums.to(device), reduce_op="sum").cpu()
        comparison.maxima = trainer.strategy.reduce(comparison.maxima.to(device), reduce_op="max").cpu()
    return comparison.result()


def metric_changes(
    trainer: Trainer, target: str, before: Mapping[str, float], after: Mapping[str, float]
) -> list[Measurement]:
    """The change of the loss and of the metric that decides which checkpoint is best."""
    monitors = [str(getattr(callback, "monitor", "")) for callback in trainer.checkpoint_callbacks]
    names = dict.fromkeys(["loss", *(monitor.partition("/")[2] for monitor in monitors)])
    return [
        Measurement(TOTAL, f"{target}/change_of_{name}", after[name] - before[name])
        for name in names
        if name in before and name in after
    ]


def layer_errors(task: AdaptationTask, originals: Mapping[str, Tensor] | None) -> list[Measurement]:
    """The errors of quantising each layer, relative to what it learnt."""
    return [
        Measurement(name, metric, value)
        for name, layer in adapted_layers(task).items()
        if _bits(layer)
        for metric, value in quantization_errors(name, layer, (originals or {}).get(name)).items()
    ]


def _bits(layer: Any) -> int | None:
    return quantized_bits(cast("nn.Module", layer.get_base_layer()))


def _rows(of: str, difference: OutputDifference) -> list[Measurement]:
    names = ("max_logit_difference", "mean_logit_difference", "kl_divergence", "flipped_share")
    values = asdict(difference)
    return [Measurement(TOTAL, f"{of}/{name}", values[name]) for name in names]


def _seconds(of: str, observation: Observation) -> Measurement:
    return Measurement(TOTAL, f"{of}/seconds_per_batch", observation.seconds)
