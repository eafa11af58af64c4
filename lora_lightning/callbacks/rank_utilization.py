"""How much of their rank the adapters use while they train, and what to do about it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from lora_lightning.analysis.rank_advice import Validation, rank_advice, rank_to_truncate_to
from lora_lightning.analysis.spectrum import common_energy_rank, rank_numbers, singular_values
from lora_lightning.backbones.model_card import auto_class_of
from lora_lightning.callbacks.adapter_monitor import (
    TOTAL,
    AdapterMonitor,
    Export,
    Measurement,
    describe_weights,
    warn_without_adapters,
)
from lora_lightning.callbacks.rank_validation import validate_rank
from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.figures.rank import spectra_figure, utilization_figure
from lora_lightning.loggers import Board
from lora_lightning.lora.delta import AdapterDelta, adapted_layers, adapter_deltas, split_layer_number
from lora_lightning.lora.variants.adalora import ranks_in_use
from lora_lightning.runs.files import write_text_atomically
from lora_lightning.runs.layout import run_folder_of
from lora_lightning.tasks import AdaptationTask

PANELS = 16  # of spectra in one picture
REPORT = "rank_utilization.json"
MEASURED = "Which rank is enough for this adapter, only `lora-lightning compress RUN --output DIR` can tell."


class RankUtilizationMonitor(AdapterMonitor):
    """Effective rank, stable rank and energy rank of each adapter's dW, and the share of r that it uses.

    Each module has `effective_rank`, `stable_rank`, `energy_rank_90`, `energy_rank_99` and `utilization` (effective
    rank / r). The curves `weights/rank/` are their means, and as `energy_rank_99` the one r at which nine of ten
    adapters keep 99 % of their energy. There is also a heat map of utilization, the spectra of a few modules over
    training, and a histogram of all singular values. When training ends it prints which r to try, with the validation
    metric of the exported adapter truncated to it, and writes that with the spectra to `rank_utilization.json` in the
    run's folder; there is no advice if the metric is not clearly better than a constant answer's. That takes two passes
    over up to 64 validation batches.

    Each expert of a mixture counts as an adapter. Numbers of a module and pictures are the means over the experts of a
    parameter; the report has every expert, as `<parameter>[<number>]`.

    Under DoRA these are the ranks of the direction's low-rank part. For r stands what the rank can be: under AdaLoRA
    the number of directions that are left, under PiSSA and OLoRA 2 r, as dW is a difference of two products.

    Args:
        every_n_steps: Optimizer steps between measurements; `null` measures at each validation.
        spectrum_modules: Modules in the picture of spectra, each the end of a dotted name; `null` shows the middle
            layer.
        log_modules: Whether loggers get a curve for each number of each module.
    """

    table = "rank_utilization"
    tag = "weights/rank"
    result_metrics = ("effective_rank", "utilization")

    def __init__(
        self,
        every_n_steps: int | None = None,
        spectrum_modules: list[str] | None = None,
        log_modules: bool = False,
    ) -> None:
        super().__init__(every_n_steps, log_modules)
        self.spectrum_modules = spectrum_modules
        self._history: dict[str, list[tuple[int, list[float]]]] = {}  # of the modules in the picture
        self._spectra: dict[str, Tensor] = {}
        self._ranks: dict[str, int] = {}
        self._adapters: dict[str, list[str]] = {}  # the adapters of each module: one, or one for each expert

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Chooses the modules of the picture, before training.

        Raises:
            ConfigurationError: If `spectrum_modules` names no adapter, or too many.
        """
        super().on_fit_start(trainer, pl_module)
        warn_without_adapters(self, pl_module)
        if modules := list(adapted_layers(pl_module)):
            shown = shown_modules(modules, self.spectrum_modules)
            self._history = {module: self._history.get(module, []) for module in shown}

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> list[Measurement]:
        """Measures every adapter, and all of them together."""
        deltas = adapter_deltas(pl_module)  # every process: shards are gathered
        if not trainer.is_global_zero or not deltas:
            return []
        lora = cast("AdaptationTask", pl_module).lora
        uses_budget = lora is not None and lora.adalora is not None
        self._ranks = ranks_in_use(pl_module) if uses_budget else {delta.name: delta.r for delta in deltas}
        self._spectra = dict(zip(self._ranks, singular_values(deltas), strict=True))
        self._adapters = adapters_of_modules(deltas)
        if self._export is None:
            for module, curves in self._history.items():
                curves.append((trainer.global_step, self._mean_spectrum(module).tolist()))
        each = {name: rank_numbers(self._spectra[name], r) for name, r in self._ranks.items()}
        numbers = {module: self._mean_numbers(names, each) for module, names in self._adapters.items()}
        numbers[TOTAL] = mean_numbers(list(each.values()), self._spectra)
        return [Measurement(module, *metric) for module, metrics in numbers.items() for metric in metrics.items()]

    def _mean_numbers(self, names: list[str], numbers: Mapping[str, dict[str, float]]) -> dict[str, float]:
        if len(names) == 1:
            return numbers[names[0]]
        return mean_numbers([numbers[name] for name in names], {name: self._spectra[name] for name in names})

    def _mean_spectrum(self, module: str) -> Tensor:
        return torch.stack([self._spectra[name] for name in self._adapters[module]]).mean(dim=0)

    def add_pictures(self, trainer: Trainer, board: Board, measurements: list[Measurement]) -> None:
        """Draws the heat map and the spectra, and adds a histogram."""
        step = trainer.global_step
        board.add_histogram(f"{self.tag}/singular_values", [*self._spectra.values()], step)
        used = {m.module: m.value for m in measurements if m.metric == "utilization" and m.module != TOTAL}
        board.add_figure(f"{self.tag}/utilization_by_layer", utilization_figure(used, step), step)
        board.add_figure(f"{self.tag}/spectra", spectra_figure(self._history), step)

    def conclude(self, trainer: Trainer, pl_module: LightningModule, export: Export | None) -> None:
        """Prints which r to try, and writes that with the spectra of the exported adapter to the run's folder."""
        task = cast("AdaptationTask", pl_module)
        if trainer.fast_dev_run or not adapted_layers(task):  # type: ignore[attr-defined]
            return
        r = rank_to_truncate_to(self._spectra, self._ranks, task.lora) if trainer.is_global_zero else None
        validation = validate_rank(trainer, task, trainer.strategy.broadcast(r))
        if not self._spectra:
            return
        advice = rank_advice(self._spectra, self._ranks, task.lora, validation)
        if max(self._ranks.values()) > 1 and auto_class_of(task.transformers_model) is not None:
            advice += f" {MEASURED}"
        print(f"rank ({describe_weights(export)}): {advice}")
        path = run_folder_of(trainer) / REPORT
        path.parent.mkdir(parents=True, exist_ok=True)
        step = export.step if export else trainer.global_step
        report = rank_report(step, advice, self._spectra, self._ranks, validation)
        write_text_atomically(path, json.dumps(report, indent=2) + "\n")

    def state_dict(self) -> dict[str, Any]:
        """What the picture of spectra needs when the run is resumed."""
        return {**super().state_dict(), "history": self._history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the picture's past up again."""
        super().load_state_dict(state_dict)
        self._history = state_dict["history"]


def adapters_of_modules(deltas: Sequence[AdapterDelta]) -> dict[str, list[str]]:
    """The adapters of each module.

    Args:
        deltas: Of all adapters.

    Returns:
        Their names by the name of the layer or parameter; several for a parameter that holds experts.
    """
    found: dict[str, list[str]] = {}
    for delta in deltas:
        found.setdefault(delta.module, []).append(delta.name)
    return found


def shown_modules(modules: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    """Chooses the modules whose spectra are drawn.

    Args:
        modules: Dotted names of all adapted modules.
        wanted: Ends of names; `None` for the layer in the middle, or for the first modules where layers have no number.

    Returns:
        1 to 16 of `modules`, in their order.

    Raises:
        ConfigurationError: If an entry of `wanted` fits none of them, or all entries fit more than 16.
    """
    if wanted is None:
        layers = sorted({layer for layer, _ in map(split_layer_number, modules) if layer is not None})
        middle = layers[len(layers) // 2] if layers else None
        return [module for module in modules if split_layer_number(module)[0] == middle][:PANELS]
    for name in wanted:
        if not any(f".{module}".endswith(f".{name}") for module in modules):
            kinds = {split_layer_number(module)[1] for module in modules}
            msg = f"RankUtilizationMonitor.spectrum_modules: there is no adapter {name!r}; {suggest_names(name, kinds)}"
            raise ConfigurationError(msg)
    ends = tuple(f".{name}" for name in wanted)
    chosen = [module for module in modules if f".{module}".endswith(ends)]
    if not 1 <= len(chosen) <= PANELS:
        msg = (
            f"RankUtilizationMonitor.spectrum_modules names {len(chosen)} adapters, but a picture shows 1 to {PANELS}; "
            "give whole names, such as encoder.layer.0.attention.self.query."
        )
        raise ConfigurationError(msg)
    return chosen


def mean_numbers(numbers: Sequence[Mapping[str, float]], spectra: Mapping[str, Tensor]) -> dict[str, float]:
    """The numbers of all adapters together.

    Args:
        numbers: Of each adapter, from `rank_numbers`; at least one.
        spectra: Singular values by module.

    Returns:
        Means over the adapters; the energy ranks instead are those of `common_energy_rank`.
    """
    means = {name: sum(each[name] for each in numbers) / len(numbers) for name in numbers[0]}
    finite = [spectrum for spectrum in spectra.values() if spectrum.isfinite().all()]
    for percent in (90, 99):
        means[f"energy_rank_{percent}"] = float(common_energy_rank(finite, percent / 100))
    return means


def rank_report(
    step: int,
    advice: str,
    spectra: Mapping[str, Tensor],
    ranks: Mapping[str, int],
    validation: Validation | None = None,
) -> dict[str, Any]:
    """The end of a run as JSON.

    Args:
        step: Optimizer steps of the weights that it is about.
        advice: From `rank_advice`.
        spectra: Singular values by module.
        ranks: As in `rank_advice`.
        validation: As in `rank_advice`.

    Returns:
        `step`, `advice`, `validation`, and by module under `adapters` its r, its numbers and its singular values;
        numbers that are not finite are `None`.
    """
    adapters: dict[str, Any] = {}
    for module, spectrum in spectra.items():
        finite = bool(torch.isfinite(spectrum).all())
        values = spectrum.tolist() if finite else None
        numbers = rank_numbers(spectrum, ranks[module]) if finite else {}
        adapters[module] = {"r": ranks[module], **numbers, "singular_values": values}
    validated = None if validation is None else asdict(validation)
    if validated is not None and not math.isfinite(validated["truncated"]):
        validated["truncated"] = None
    return {"step": step, "advice": advice, "validation": validated, "adapters": adapters}
