"""Prove on held-out batches that the exported adapter, merged, gives the outputs of the best checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal, cast

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from lora_lightning.analysis.merge_verdict import Verdict, default_tolerance
from lora_lightning.backbones import load_config, load_original_weights
from lora_lightning.callbacks.adapter_monitor import TOTAL, AdapterMonitor, Export, Measurement, describe_weights
from lora_lightning.callbacks.exported_model import find_weight_fault, open_export
from lora_lightning.callbacks.merge_comparison import MergeComparison
from lora_lightning.errors import BackboneError, ConfigurationError, VerificationError
from lora_lightning.loggers import Table, boards_of
from lora_lightning.lora.delta import adapted_layers
from lora_lightning.lora.merging import merge_targets, merged_adapters, quantization_errors
from lora_lightning.lora.quantized import quantized_bits
from lora_lightning.lora.sharding import is_sharded
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.held_out_batches import (
    Batch,
    held_out_batches,
    isolated_evaluation,
    network_replaced,
    validation_precision,
)


class MergeEquivalence(AdapterMonitor):
    """Compares the best checkpoint with its exported adapter, loaded again and merged, and with merges in memory.

    When training ends, the base is loaded once more, the exported folder is opened and merged by plain PEFT, and its
    weights and outputs are compared with those of the best checkpoint. On a quantized base, where PEFT would round the
    sum again, the adapter stays beside the base. The model in training is left bit for bit as it was.

    The table `verification` has for each merge target (`exported` is the folder) `max_logit_difference`,
    `mean_logit_difference`, `kl_divergence` (nats), `flipped_share` of decisions, `recovery_ratio` of the adapter's
    gain in log-likelihood with its 95 % interval, the change of the loss and of the monitored metric, and
    `seconds_per_batch`, which `adapted` has of the unmerged model. `adapter` is the same comparison of the adapted
    model with its base: the size of the adapter's effect. On a quantized base each layer has `quantization_error` and
    `requantization_error`, relative to ||dW||, and a sentence recommends a target. With `at_validation` these are
    curves, `verification/<target>/...`.

    It fails if the exported folder, or the merge that must be exact (`base`, or `dequantized` on a quantized base),
    changes more than the rounding of intact merges of this model does, or has the outputs of the base without adapters.

    Memory: one more base, first in host memory; the outputs of the batches a few times on the host; and what
    `lora.merging.merged_adapters` needs. Of a model that is sharded over processes the folder is not opened.

    Args:
        batches: Of the first validation loader, spread over it evenly; each process has its own.
        at_validation: Compare merges in memory at each validation too; a failure then ends training.
        tolerance: Largest difference of two logits, relative to the largest logit (or to 1, if larger), whatever
            rounding does; `null` leaves it to the intact merges, and without an exported folder to the dtype.
        on_failure: `raise` an error once training has ended and everything is saved, or `warn`.
        original_backbone: Hub id, folder or `package://` name of the 16- or 32-bit model that a quantized base was made
            from, to try the target `original`; it is loaded into host memory.
    """

    table = "merge_equivalence"
    tag = "verification"
    result_metrics = ("exported/max_logit_difference", "exported/flipped_share")

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
            msg = f"MergeEquivalence.batches is {batches}, but it must be at least 1."
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
        self._export_news = ""
        self._subject = ""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Looks for the original backbone before training, not when it is over."""
        del trainer, pl_module
        if stage == "fit" and self.original_backbone is not None:
            load_config(self.original_backbone)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses an original backbone that would change nothing.

        Raises:
            ConfigurationError: If the base is not quantized.
        """
        super().on_fit_start(trainer, pl_module)
        if self.original_backbone is not None and not any(map(_bits, adapted_layers(pl_module).values())):
            msg = (
                f"MergeEquivalence.original_backbone is {self.original_backbone}, but no adapted layer is quantized: "
                "the base is the original. Set it to null."
            )
            raise ConfigurationError(msg)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restores the verdict if the run resumes from the step that it is about."""
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
        """Prints the verdict, now that every checkpoint is written.

        Raises:
            VerificationError: If merging failed, unless `on_failure` is `warn`.
        """
        del pl_module
        failure = self.verdict.failure if self.verdict else None
        said = f"merge check{self._subject}" + (f" FAILED: {failure}" if failure else f": {self._news}")
        for board in boards_of(trainer) if self._news else []:
            board.add_text("merge_check", said, trainer.global_step)
        a_try = trainer.fast_dev_run  # type: ignore[attr-defined]  # one step of warm-up may change nothing
        if failure and self.on_failure == "raise" and not a_try:
            raise VerificationError(failure)
        if trainer.is_global_zero and self._news:
            print(said)

    def as_table(self, measurements: list[Measurement]) -> Table:
        """A row per merge target, and on a quantized base per layer."""
        rows = []
        for measured in measurements:
            target, _, metric = measured.metric.partition("/")
            rows.append(measured if measured.module != TOTAL else Measurement(target, metric, measured.value))
        return super().as_table(rows)

    def conclude(self, trainer: Trainer, pl_module: LightningModule, export: Export | None) -> None:
        """Notes what the verdict is about."""
        del trainer, pl_module
        self._subject = f" ({describe_weights(export)})"

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> list[Measurement]:
        """Compares the weights that the model has now, and the exported folder if there is one by now."""
        task = cast("AdaptationTask", pl_module)
        batches = held_out_batches(trainer, self.batches)
        if reason := reason_not_to_compare(trainer, task, batches):
            self._news = f"nothing was compared, {reason}."
            return []
        with isolated_evaluation(task):
            comparison = MergeComparison(trainer, task, batches)
            measurements = comparison.of_the_adapter()
            originals = self._originals(task)
            weight_fault = self._compare_export(comparison)
            for target in merge_targets(task, originals):
                with merged_adapters(task, target, originals):
                    comparison.add(target)
            measurements += comparison.measurements + layer_errors(task, originals)
            with validation_precision(trainer):
                tolerance = default_tolerance(task)
            self._decide(trainer, comparison.verdict(tolerance, self.tolerance, weight_fault))
        return measurements

    def _compare_export(self, comparison: MergeComparison) -> str | None:
        """Opens the exported folder and compares it; what is wrong with its weights, if anything."""
        trainer, task, self._export_news = comparison.trainer, comparison.task, ""
        if self._export is None:
            return None
        folder, network, fault = self._export.folder, None, None
        skipped = "no process holds all of a sharded model" if is_sharded(task.built_network) else None
        if skipped is None:
            try:
                network = open_export(trainer, task, folder)
            except BackboneError as error:
                skipped = str(error)
            except Exception as error:  # noqa: BLE001  # PEFT raises many kinds; the folder does not load
                fault = f"plain PEFT cannot load it ({type(error).__name__}: {str(error).partition(chr(10))[0]})"
        opened = trainer.strategy.reduce(torch.tensor(network is not None, device=task.device).int(), reduce_op="min")
        if network is not None and int(opened):  # on every process, or on none
            fault = find_weight_fault(task, network)
            with network_replaced(task, network):
                comparison.add("exported")
        fault, skipped = trainer.strategy.broadcast((fault, skipped))
        if skipped is not None:
            self._export_news = f" {folder} was not opened: {skipped.removesuffix('.')}."
        elif fault is None and not int(opened):
            self._export_news = f" {folder} was not compared: not every process can read it."
        return fault

    def _decide(self, trainer: Trainer, verdict: Verdict) -> None:
        self.verdict, self._news = verdict, verdict.sentence + self._export_news
        if verdict.failure and self.on_failure == "raise":
            trainer.should_stop = True

    def _originals(self, task: AdaptationTask) -> dict[str, Tensor] | None:
        layers = adapted_layers(task)
        if self.original_backbone is None or not any(_bits(layer) for layer in layers.values()):
            return None
        return load_original_weights(task.transformers_model, self.original_backbone, layers)


def reason_not_to_compare(trainer: Trainer, task: AdaptationTask, batches: list[Batch]) -> str | None:
    """Why there is nothing to compare, as the end of a sentence; `None` if there is something. Collective."""
    fewest = trainer.strategy.reduce(torch.tensor(len(batches), device=task.device), reduce_op="min")
    if not adapted_layers(task):
        return "because model.lora is null and there is no adapter to merge"
    return None if int(fewest) else "because a process has no validation batches"


def layer_errors(task: AdaptationTask, originals: Mapping[str, Tensor] | None) -> list[Measurement]:
    """The errors of quantizing each layer, relative to its update."""
    return [
        Measurement(name, metric, value)
        for name, layer in adapted_layers(task).items()
        if _bits(layer)
        for metric, value in quantization_errors(name, layer, (originals or {}).get(name)).items()
    ]


def _bits(layer: Any) -> int | None:
    return quantized_bits(cast("nn.Module", layer.get_base_layer()))
