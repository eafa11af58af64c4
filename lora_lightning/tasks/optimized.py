"""The part of a task that makes its optimizer and clips gradients."""

from lightning import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import Optimizer

from lora_lightning.tasks.optimization import OptimizationSettings, build_optimizer, build_schedule


class OptimizedTask(LightningModule):
    """A task that trains with AdamW, fused wherever its gradients are not scaled.

    Attributes:
        optimization: Learning rate, schedule, decay.
    """

    optimization: OptimizationSettings

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over the trainable parameters, and the schedule, which advances with each optimizer step."""
        plugin = self.trainer.precision_plugin
        scales = isinstance(plugin, MixedPrecision) and plugin.scaler is not None
        optimizer = build_optimizer(self, self.optimization, scales_gradients=scales)
        schedule = build_schedule(optimizer, self.optimization, self.trainer.estimated_stepping_batches)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "train/learning_rate"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips as Lightning does, but also for a fused optimizer in `bf16-mixed`.

        Lightning refuses that in all mixed precision, since a fused optimizer may divide by the gradients' scale
        itself; in bfloat16 they have none.

        Args:
            optimizer: Whose gradients to clip.
            gradient_clip_val: The trainer's; `None` or 0 to not clip.
            gradient_clip_algorithm: The trainer's: `norm`, the default, or `value`.
        """
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None:
            algorithm = GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            Precision.clip_gradients(plugin, optimizer, gradient_clip_val or 0.0, algorithm)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
