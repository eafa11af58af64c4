"""Strong directions that training added to the weights."""

import time
from dataclasses import asdict
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lora_lightning.analysis.intruders import (
    EPSILON,
    TOP_K,
    Intruders,
    find_intruders,
    left_singular_vectors,
)
from lora_lightning.analysis.threads import map_in_threads
from lora_lightning.callbacks.adapter_monitor import TOTAL, AdapterMonitor, Export, Measurement, describe_weights
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.delta import adapted_layers, pretrained_weight
from lora_lightning.lora.merging import merged_weight


class IntruderDimensions(AdapterMonitor):
    """Counts the intruder dimensions of each adapted layer of the exported adapter (Shuttleworth et al. 2024).

    The table `weights/intruders` has of each module their `count`; `strength`, the strongest intruder's singular value
    over the largest of W + dW; `energy`, the intruders' share of its squared norm; and `least_similarity`, which shows
    how close to an intruder a layer without any is. With `every_n_steps` the count of all modules and the strongest
    strength are curves.

    It decomposes W and W + dW of every adapted layer: about 0.3 s for 768 x 768 and twenty seconds for 4096 x 4096 on
    a CPU core. Several processes share the layers. With `every_n_steps`, W's directions are kept in memory (as many
    numbers as W has, float32) and only W + dW is decomposed again. Full fine-tuning would need a second copy of the
    model from before training, so `lora: null` is not measured.

    Args:
        every_n_steps: Optimizer steps between measurements; `null` measures only when training ends.
        top_k: How many of the strongest directions of W + dW to look at.
        epsilon: A direction is an intruder if its cosine with every direction of W is below, in (0, 1].
        log_modules: Whether loggers get a curve for each number of each module.
    """

    table = "intruder_dimensions"
    tag = "weights/intruders"
    result_metrics = ("count", "strength")

    def __init__(
        self,
        every_n_steps: int | None = None,
        top_k: int = TOP_K,
        epsilon: float = EPSILON,
        log_modules: bool = False,
    ) -> None:
        super().__init__(every_n_steps, log_modules)
        if top_k < 1:
            msg = f"IntruderDimensions.top_k is {top_k}, but it must be at least 1; 10 is usual."
            raise ConfigurationError(msg)
        if not 0 < epsilon <= 1:
            msg = f"IntruderDimensions.epsilon is {epsilon}, but it must be a cosine in (0, 1]; 0.5 is usual."
            raise ConfigurationError(msg)
        self.top_k = top_k
        self.epsilon = epsilon
        self._own: dict[str, Tensor] = {}
        self._sentence = ""

    @property
    def only_at_the_end(self) -> bool:
        """Without `every_n_steps` only the exported weights are decomposed."""
        return self.every_n_steps is None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warns if there is nothing to measure."""
        super().on_train_start(trainer, pl_module)
        self._own = {}
        if not adapted_layers(pl_module):
            rank_zero_warn("IntruderDimensions measures adapters, but model.lora is null: it reports nothing.")

    def conclude(self, trainer: Trainer, pl_module: LightningModule, export: Export | None) -> None:
        """Prints how many intruder dimensions the exported adapter has."""
        del pl_module
        if self._sentence and trainer.is_global_zero:
            print(f"intruder dimensions ({describe_weights(export)}): {self._sentence}")

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> list[Measurement]:
        """Decomposes this process's share of the layers and gathers all."""
        started = time.perf_counter()
        found: dict[str, Intruders] = {}
        for number, (name, layer) in enumerate(adapted_layers(pl_module).items()):
            weight = pretrained_weight(layer)  # collective under FSDP2, as the next
            adapted = merged_weight(name, layer, weight)
            if number % trainer.world_size == trainer.global_rank:
                found[name] = self._compare_experts(name, weight, adapted)
        parts: list[Any] = [found]
        if trainer.world_size > 1:
            parts = [None] * trainer.world_size
            torch.distributed.all_gather_object(parts, found)
        together = {name: intruders for part in parts for name, intruders in part.items()}
        if together:
            self._sentence = (
                f"{describe_intruders(together)} ({time.perf_counter() - started:.1f} s for {len(together)} layers)"
            )
        return measurements_of(together)

    def _compare_experts(self, name: str, weight: Tensor, adapted: Tensor) -> Intruders:
        if weight.dim() == 2:  # noqa: PLR2004  # a matrix
            return self._compare(name, weight, adapted)
        pairs = enumerate(zip(weight, adapted, strict=True))
        return of_all_experts([self._compare(f"{name}[{number}]", *pair) for number, pair in pairs])

    def _compare(self, name: str, weight: Tensor, adapted: Tensor) -> Intruders:
        matrices = [adapted] if name in self._own else [adapted, weight]
        (directions, values), *decomposed = map_in_threads(left_singular_vectors, matrices)
        own = decomposed[0][0].float() if decomposed else self._own[name]
        if self.every_n_steps is not None:  # or it is not needed again
            self._own[name] = own
        return find_intruders(own, directions, values, self.top_k, self.epsilon)


def of_all_experts(found: list[Intruders]) -> Intruders:
    """The intruders of a parameter that holds all experts of a layer.

    Args:
        found: Of each expert, at least one.

    Returns:
        The sum of the counts, the strongest strength, the mean of the energies, and the least similarity.
    """
    return Intruders(
        count=sum(each.count for each in found),
        strength=max(each.strength for each in found),
        energy=sum(each.energy for each in found) / len(found),
        least_similarity=min(each.least_similarity for each in found),
    )


def measurements_of(found: dict[str, Intruders]) -> list[Measurement]:
    """The numbers of each module, and of all modules together.

    Args:
        found: Intruders by module.

    Returns:
        Four a module; in `all` the sum of the counts and the strongest of the strengths. Empty without modules.
    """
    if not found:
        return []
    measurements = [
        Measurement(module, metric, float(value))
        for module, intruders in found.items()
        for metric, value in asdict(intruders).items()
    ]
    count, strength = sum(i.count for i in found.values()), max(i.strength for i in found.values())
    return [*measurements, Measurement(TOTAL, "count", float(count)), Measurement(TOTAL, "strength", strength)]


def describe_intruders(found: dict[str, Intruders]) -> str:
    """Summarizes the intruders of all layers in a sentence.

    Args:
        found: Intruders by module, at least one module.

    Returns:
        One line.
    """
    having = {module: intruders for module, intruders in found.items() if intruders.count}
    if not having:
        nearest = min(intruders.least_similarity for intruders in found.values())
        return f"none (even the least similar strong direction has a cosine of {nearest:.2f} with one of the base)"
    strongest = max(having, key=lambda module: having[module].strength)
    return (
        f"{sum(i.count for i in having.values())} in {len(having)} of {len(found)} layers, the "
        f"strongest in {strongest} with {having[strongest].strength:.0%} of its largest singular value"
    )
