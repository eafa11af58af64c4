"""How large the adapters and their gradients are while they train."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lora_lightning.analysis.norms import (
    base_norm,
    delta_norms,
    gradient_norm,
    layer_norms,
    moments,
    root_sum_square,
    total_norms,
)
from lora_lightning.callbacks.adapter_monitor import TOTAL, AdapterMonitor, Export, Measurement, warn_without_adapters
from lora_lightning.compat.peft import LoraLayer
from lora_lightning.figures.layers import layer_map_figure
from lora_lightning.loggers import Board
from lora_lightning.lora.delta import (
    AdapterDelta,
    adapted_layers,
    adapter_factors,
    full_tensor,
    layer_deltas,
    pretrained_weight,
)

AB = ((0, "A"), (1, "B"))  # the factors' places in a pair, and their names


@dataclass
class Gradients:
    """Gradient norms of the factors, by layer, as one optimizer step found them.

    Attributes:
        step: Optimizer steps including this one.
        norms: (A's, B's) by layer, scalars on the layer's device; `None` for a factor without one, as LoRA-FA's A.
    """

    step: int
    norms: dict[str, tuple[Tensor | None, Tensor | None]]


class AdapterNormMonitor(AdapterMonitor):
    """Norms of A, B and dW, dW against the frozen weight, entries of A and B, and gradients; by layer and in total.

    Each module has `A_norm`, `A_mean`, `A_std`, the same of B, `delta_norm` and `relative_delta_norm` (||dW|| / ||W||),
    and `A_gradient_norm` and `B_gradient_norm` of the last optimizer step: unscaled, summed over accumulated batches,
    before clipping; with `every_n_steps` only of the steps that are measured. The curves `weights/norms/` take all
    layers as one matrix. Norms are Frobenius norms. There is also a heat map of `relative_delta_norm`, and histograms
    of the entries of A and B.

    Args:
        every_n_steps: Optimizer steps between measurements; `null` measures at each validation.
        log_modules: Whether loggers get a curve for each number of each module.
    """

    table = "adapter_norms"
    tag = "weights/norms"
    result_metrics = ("relative_delta_norm",)

    def __init__(self, every_n_steps: int | None = None, log_modules: bool = False) -> None:
        super().__init__(every_n_steps, log_modules)
        self._layers: dict[str, LoraLayer] = {}
        self._base_norms: dict[str, float] = {}  # the weights are frozen
        self._gradients: Gradients | None = None
        self._entries: dict[str, list[Tensor]] = {}  # of all factors A and B, for the histograms of this measurement

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the layers and measures their frozen weights once, or warns that there are none."""
        super().on_fit_start(trainer, pl_module)
        warn_without_adapters(self, pl_module)
        self._layers, self._gradients = adapted_layers(pl_module), None
        self._base_norms = {name: base_norm(pretrained_weight(layer)) for name, layer in self._layers.items()}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Keeps the gradients' norms; Lightning has unscaled them here and not clipped them yet."""
        del pl_module, optimizer
        step = trainer.global_step + 1
        if self.every_n_steps is not None and step % self.every_n_steps:
            return
        norms = {}
        for name, layer in self._layers.items():
            a, b = (gradient_norm(factor) for factor in adapter_factors(layer))
            norms[name] = (a, b)
        self._gradients = Gradients(step, norms)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> list[Measurement]:
        """Measures every layer, and all of them together."""
        del pl_module
        if not self._layers:
            return []
        # Every process takes part so far: under FSDP2 shards are gathered.
        deltas = [delta for name, layer in self._layers.items() for delta in layer_deltas(name, layer)]
        factors = {
            name: [full_tensor(factor) for factor in adapter_factors(layer)] for name, layer in self._layers.items()
        }
        if not trainer.is_global_zero:
            return []
        self._entries = {factor: [pair[number] for pair in factors.values()] for number, factor in AB}
        a, b = ({name: moments(pair[number]) for name, pair in factors.items()} for number, _ in AB)
        update = self._update_norms(deltas)
        numbers = {name: layer_norms(a[name], b[name], update[name], self._base_norms[name]) for name in update}
        numbers[TOTAL] = total_norms(a, b, update, self._base_norms)
        found = [Measurement(name, *metric) for name, metrics in numbers.items() for metric in metrics.items()]
        return found + self._gradient_measurements(trainer.global_step)

    def _update_norms(self, deltas: Sequence[AdapterDelta]) -> dict[str, float]:
        """||dW|| of each layer; that of all its experts together."""
        norms: dict[str, list[float]] = {name: [] for name in self._layers}
        for delta, norm in zip(deltas, delta_norms(deltas), strict=True):
            norms[delta.module].append(norm)
        return {name: root_sum_square(each) for name, each in norms.items()}

    def _gradient_measurements(self, step: int) -> list[Measurement]:
        if self._gradients is None or self._gradients.step != step:
            return []
        found = []
        for number, factor in AB:
            found_here = {name: pair[number] for name, pair in self._gradients.norms.items()}
            norms = {name: float(norm) for name, norm in found_here.items() if norm is not None}
            if not norms:
                continue
            norms[TOTAL] = root_sum_square(norms.values())
            found += [Measurement(name, f"{factor}_gradient_norm", value) for name, value in norms.items()]
        return found

    def record(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measures, publishes, and releases the factors."""
        super().record(trainer, pl_module)
        self._entries = {}

    def record_export(self, trainer: Trainer, pl_module: LightningModule, export: Export) -> None:
        """Measures the exported factors, which have no gradient."""
        self._gradients = None
        super().record_export(trainer, pl_module, export)
        self._entries = {}

    def add_pictures(self, trainer: Trainer, board: Board, measurements: list[Measurement]) -> None:
        """Adds histograms of the entries, and draws the heat map."""
        step, metric = trainer.global_step, "relative_delta_norm"
        for factor, entries in self._entries.items():
            board.add_histogram(f"{self.tag}/{factor}", entries, step)
        shares = {m.module: 100 * m.value for m in measurements if m.metric == metric and m.module != TOTAL}
        figure = layer_map_figure(shares, f"step {step}: size of the update, ||dW|| in % of ||W||")
        board.add_figure(f"{self.tag}/{metric}_by_layer", figure, step)
