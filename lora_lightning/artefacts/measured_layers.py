"""What decides the ranks of layers: singular values of a run's updates, or of the gradients before training."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lora_lightning.analysis.gradient_spectrum import gradient_spectra
from lora_lightning.analysis.rank_choices import Ranks
from lora_lightning.artefacts.exporting import unfinished_warning
from lora_lightning.artefacts.finished_run import PLAIN_TRAINER
from lora_lightning.artefacts.saved_updates import saved_updates
from lora_lightning.errors import CheckpointError, ConfigurationError, DataError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.delta import adapted_layers, adapter_factors
from lora_lightning.lora.truncation import decompose_factors
from lora_lightning.lora.variants import chosen_variants
from lora_lightning.runs.record import RunRecord
from lora_lightning.tasks import AdaptationTask
from lora_lightning.tasks.backbone_outline import backbone_without_storage
from lora_lightning.tasks.held_out_batches import Batch, on_device
from lora_lightning.tasks.hyperparameters import as_settings
from lora_lightning.tasks.optimization import OptimizationSettings
from lora_lightning.training.api import option_arguments
from lora_lightning.training.commands import prepare_command
from lora_lightning.training.fitting import TrainingRun

# Nothing is trained, logged or validated; `trainer.precision` and `trainer.accelerator` stay the user's.
KEPT = ("trainer.precision", "trainer.accelerator", "trainer.limit_val_batches")
TRAINER_OPTIONS = {name: value for name, value in PLAIN_TRAINER.items() if name not in KEPT} | {
    "resume": None,
    "trainer.min_epochs": None,
    "trainer.min_steps": None,
    "trainer.num_sanity_val_steps": 0,
}


@dataclass(frozen=True)
class MeasuredLayers:
    """The layers that get an adapter, and what their ranks are chosen by.

    Attributes:
        lora: The settings to which the ranks belong.
        sides: (in_features, out_features), by full dotted name, in the model's order; of a run in that of the names.
        spectra: Singular values, descending, float, by the same names.
        costs: Trainable adapter parameters of one rank, by the same names.
        fixed: Trainable adapter parameters that do not depend on ranks: DoRA's magnitudes.
        measured_by: What was measured, in words.
        lorafa: Whether LoRA-FA leaves A frozen; `None` for a task without `model.optimization`.
    """

    lora: LoraSettings
    sides: dict[str, tuple[int, int]]
    spectra: dict[str, Tensor]
    costs: dict[str, int]
    fixed: int
    measured_by: str
    lorafa: bool | None


def check_settings(lora: LoraSettings | None, adapter: str | None, source: str) -> LoraSettings:
    """Refuses settings in which ranks cannot be allocated.

    Args:
        lora: `model.lora`.
        adapter: `model.adapter`.
        source: The run or the config, for messages.

    Returns:
        The settings.

    Raises:
        ConfigurationError: If there are no adapters, or their ranks are not free.
    """
    if lora is None:
        msg = f"{source} has no adapters (model.lora: null), so there are no ranks to allocate; set model.lora."
        raise ConfigurationError(msg)
    if adapter is not None:
        msg = f"{source} continues the adapter {adapter}, whose ranks cannot change; leave model.adapter out."
        raise ConfigurationError(msg)
    if lora.target_parameters:
        msg = (
            f"{source} adapts experts (model.lora.target_parameters), whose ranks this command does not allocate; use "
            "target_modules alone."
        )
        raise ConfigurationError(msg)
    if lora.init_lora_weights == "orthogonal":
        msg = (
            f"{source} sets model.lora.init_lora_weights to orthogonal, which needs even ranks, but this command may "
            "choose odd ones; measure with another initialization, such as true."
        )
        raise ConfigurationError(msg)
    for variant in chosen_variants(lora):
        if variant.chooses_ranks:
            msg = f"{source} sets {variant.title}, which chooses ranks itself; leave one of the two out."
            raise ConfigurationError(msg)
    return lora


def measure_run(folder: Path) -> MeasuredLayers:
    """Reads the spectrum of a run's exported adapter; neither base nor data is needed.

    Args:
        folder: The run.

    Returns:
        Singular values of dW; of PiSSA and OLoRA twice as many as r, since they start with a part of the base.

    Raises:
        LoraLightningError: If it is not a run, has no adapter yet, or one whose ranks cannot be allocated.
    """
    record = RunRecord.load(folder)
    options = record.settings["model"]["init_args"]
    source = f"the run {folder}"
    lora = check_settings(as_settings(LoraSettings, options.get("lora")), options.get("adapter"), source)
    if record.adapter is None:
        msg = f"{source} has exported no adapter yet; train or resume it first."
        raise CheckpointError(msg)
    if warning := unfinished_warning(folder):
        warnings.warn(warning, stacklevel=2)
    updates = saved_updates(record.adapter)
    spectra = {each.module: each.scaling * decompose_factors(each.A, each.B)[1] for each in updates}
    sides = {each.module: (each.A.shape[1], each.B.shape[0]) for each in updates}
    optimization = as_settings(OptimizationSettings, options.get("optimization"))
    return _with_costs(lora, optimization, sides, spectra, f"singular values of the updates of {folder}")


def measure_gradients(
    words: Sequence[str], batches: int, largest_ranks: Callable[[MeasuredLayers], Ranks], report: Callable[[str], None]
) -> MeasuredLayers:
    """Measures the gradients of the frozen weights over the first training batches; nothing is trained.

    Args:
        words: Options of `fit`.
        batches: How many batches; fewer if an epoch has fewer.
        largest_ranks: Checks the budget, before any weights load and once the layers are there, and returns how many
            singular values are needed.
        report: Is called with a line about each step.

    Returns:
        Singular values of the summed gradients.

    Raises:
        LoraLightningError: If an option, the data or the backbone is wrong.
    """
    cli = prepare_command("fit", [*words, *option_arguments(TRAINER_OPTIONS)])
    task = cli.model
    lora = check_settings(getattr(task, "lora", None), getattr(task, "adapter", None), "the config")
    if cli.options.ckpt_path is not None:
        msg = "ckpt_path is set, but allocate measures gradients before training; leave ckpt_path out."
        raise ConfigurationError(msg)
    TrainingRun(cli).check_settings_and_data()
    largest_ranks(layers_without_weights(task, lora))
    meter = _GradientMeter(lora, batches, largest_ranks, report)
    cli.trainer.callbacks = [meter]  # type: ignore[attr-defined]  # those of a run save and validate
    cli.trainer.fit(task, cli.datamodule)
    if meter.measured is None:
        msg = "the training data has no batch to measure gradients on; give more training rows."
        raise DataError(msg)
    return meter.measured


def layers_without_weights(task: AdaptationTask, lora: LoraSettings) -> MeasuredLayers:
    """The layers that get an adapter, before any weights load.

    Args:
        task: Knows its labels; its network is not built, and is not built here.
        lora: Its settings.

    Returns:
        Sides and costs; nothing is measured yet.

    Raises:
        LoraLightningError: If a setting does not fit the architecture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the network that trains will warn again
        loaded = backbone_without_storage(task, [])
        with torch.device("meta"):
            network = task.adapt(loaded)
    return _with_costs(lora, task.optimization, _sides(network), {}, "")


def _sides(network: nn.Module) -> dict[str, tuple[int, int]]:
    factors = {name: adapter_factors(layer) for name, layer in adapted_layers(network).items()}
    return {name: (a.shape[1], b.shape[0]) for name, (a, b) in factors.items()}


class _GradientMeter(Callback):
    """Measures at the place where training would start, and ends it there."""

    def __init__(
        self,
        lora: LoraSettings,
        batches: int,
        largest_ranks: Callable[[MeasuredLayers], Ranks],
        report: Callable[[str], None],
    ) -> None:
        self.lora, self.batches, self.largest_ranks, self.report = lora, batches, largest_ranks, report
        self.measured: MeasuredLayers | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs three passes over the batches."""
        trainer.should_stop = True
        task = cast("AdaptationTask", pl_module)
        layers = adapted_layers(task.adapted_network)
        sides = _sides(task.adapted_network)
        ranks = self.largest_ranks(_with_costs(self.lora, task.optimization, sides, {}, ""))
        loader = trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        batches: list[Batch] = list(islice(loader, self.batches))
        if not batches:
            return
        self.report(f"gradients of {len(layers)} layers over {len(batches)} batches, in three passes")
        task.built_network.eval()  # without dropout all passes see the same gradients
        spectra = gradient_spectra(layers, ranks, lambda: _run_backward(trainer, task, batches))
        words = f"singular values of the gradients of {len(batches)} batches"
        self.measured = _with_costs(self.lora, task.optimization, sides, spectra, words)


def _run_backward(trainer: Trainer, task: AdaptationTask, batches: Sequence[Batch]) -> None:
    for number, batch in enumerate(batches):
        with trainer.precision_plugin.forward_context():
            loss = cast("Tensor", task.training_step(on_device(trainer, batch), number))
        loss.backward()  # type: ignore[no-untyped-call]
        task.zero_grad(set_to_none=True)


def _with_costs(
    lora: LoraSettings,
    optimization: OptimizationSettings | None,
    sides: dict[str, tuple[int, int]],
    spectra: dict[str, Tensor],
    measured_by: str,
) -> MeasuredLayers:
    lorafa = None if optimization is None else optimization.lorafa
    costs = {name: out + (0 if lorafa else inputs) for name, (inputs, out) in sides.items()}
    magnitudes = sum(out for _, out in sides.values()) if lora.use_dora else 0
    return MeasuredLayers(lora, sides, spectra, costs, magnitudes, measured_by, lorafa)
