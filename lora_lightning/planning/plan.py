"""Plans a training from its config: what would be trained, how large the adapter is, and how much memory it takes."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel

from lora_lightning.analysis.parameter_counts import ParameterCounts, count_by_kind
from lora_lightning.artefacts.output_folder import check_output
from lora_lightning.errors import ConfigurationError
from lora_lightning.lora.delta import adapted_layers
from lora_lightning.planning.counts import count_modules, default_rank, exported_bytes, rank_table
from lora_lightning.planning.layers import depths_to_trace, layer_lists
from lora_lightning.planning.memory import memory_row
from lora_lightning.planning.outline import build_outline
from lora_lightning.planning.precisions import Precision, precisions_of
from lora_lightning.planning.report import PLAN, write_plan
from lora_lightning.planning.results import Batch, MemoryRow, TrainingPlan
from lora_lightning.planning.settings import PlannedTraining, read_settings
from lora_lightning.planning.sizes import parse_size
from lora_lightning.tasks import CausalLanguageModelingTask
from lora_lightning.training.api import Config, config_arguments, option_arguments
from lora_lightning.training.commands import explain_errors

Device = Literal["cpu", "cuda"]
DEVICES = ("cpu", "cuda")
Precisions = Literal["all", "config", "none"]
PRECISIONS = ("all", "config", "none")


def plan_training(
    config: Config | Sequence[Config],
    overrides: Mapping[str, Any] | None = None,
    *,
    device: Device = "cpu",
    memory: str | int | None = None,
    precisions: Precisions = "all",
    num_labels: int | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
) -> TrainingPlan:
    """Plans a training before any weights are downloaded or loaded, like `lora-lightning plan`.

    Args:
        config: A YAML file for `fit`, its content as a mapping, or a sequence of them.
        overrides: Options that override the config, named as on the command line: `{"model.lora.r": 4}`.
        device: Where the training would run.
        memory: How much memory there is, such as `24GiB` or a number of bytes, for the largest batch that fits.
        precisions: For which precisions to trace peak memory: `all`, that of the `config`, or `none`, which takes a
            second.
        num_labels: Number of labels, if the data is not there.
        output: A folder to write with the plan as JSON and its pictures; `None` for none.
        overwrite: Replace a folder with another plan, once this one is done.

    Returns:
        The plan.

    Raises:
        LoraLightningError: If an option is wrong or does not fit the architecture, if the backbone's `config.json`
            cannot be found, or if the folder exists or cannot be written.
    """
    return plan_from_arguments(
        [*config_arguments(config), *option_arguments(overrides or {})],
        device=device,
        memory=memory,
        precisions=precisions,
        num_labels=num_labels,
        output=output,
        overwrite=overwrite,
    )


def plan_from_arguments(
    arguments: Sequence[str],
    *,
    device: str = "cpu",
    memory: str | int | None = None,
    precisions: str = "all",
    num_labels: int | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
) -> TrainingPlan:
    """Plans a training from the options of `fit` as on a command line; otherwise like `plan_training`."""
    if device not in DEVICES:
        msg = f"--device is {device!r}, but it must be {' or '.join(DEVICES)}."
        raise ConfigurationError(msg)
    if precisions not in PRECISIONS:
        msg = f"--precisions is {precisions!r}, but it must be {', '.join(PRECISIONS[:-1])} or {PRECISIONS[-1]}."
        raise ConfigurationError(msg)
    if precisions == "none" and memory is not None:
        msg = f"--memory is {memory}, but --precisions=none plans no memory; leave one of them out."
        raise ConfigurationError(msg)
    if overwrite and output is None:
        msg = "--overwrite replaces the folder of --output, which is not given; give --output DIR, or leave it out."
        raise ConfigurationError(msg)
    if output is not None:
        check_output(Path(output), None, overwrite=overwrite, marker=PLAN)
    limit = parse_size(memory) if isinstance(memory, str) else memory
    with explain_errors():
        training = read_settings(arguments, num_labels)
        training.task.check_settings()
        plan = _plan(training, device, limit, precisions)
    if output is not None:
        write_plan(plan, Path(output), overwrite=overwrite)
    return plan


def _plan(training: PlannedTraining, device: str, limit: int | None, precisions: str) -> TrainingPlan:
    task, lora = training.task, training.task.lora
    rows = precisions_of(task, training.options.trainer.precision)
    own = next(row for row in rows if row.is_config)
    outline = build_outline(task) if precisions == "none" else build_outline(task, own.compute_dtype(device))
    network = outline.network
    counts = sum(count_by_kind(network).values(), start=ParameterCounts())
    exported = exported_bytes(network, lora, own.bytes_per_number)
    ranks = []
    if isinstance(network, PeftModel) and lora is not None and task.adapter is None:  # whose rank is given
        ranks = rank_table(network, lora, exported, own.bytes_per_number)
    plan = TrainingPlan(
        backbone=task.backbone,
        model=type(task.transformers_model).__name__,
        device=device,
        batch=Batch(training.rows, training.evaluation_rows, training.tokens, training.evaluation_tokens),
        modules=count_modules(network),
        adapted_modules=list(adapted_layers(network)),
        trainable=counts.trained,
        total=counts.total,
        pretrained=counts.pretrained,
        adapter_bytes=exported,
        ranks=ranks,
        r=default_rank(lora) if lora is not None else None,
        memory_limit=limit,
        notes=[*training.notes, *outline.notes],
    )
    if precisions == "none":
        return plan
    memory, notes = _memory(training, [own] if precisions == "config" else rows, device, limit)
    return replace(plan, memory=memory, notes=[*plan.notes, *notes])


def _memory(
    training: PlannedTraining, precisions: Sequence[Precision], device: str, limit: int | None
) -> tuple[list[MemoryRow], list[str]]:
    """The memory in each precision, and what to say about it; the task has the outline of the config's precision."""
    task = training.task
    head_is_linear = not isinstance(task, CausalLanguageModelingTask) or task.head_is_linear
    depths = depths_to_trace(task.transformers_model, task.lora)
    layers = max((len(each) for each in layer_lists(task.transformers_model)), default=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each network would warn again
        rows = {
            precision.name: memory_row(training, precision, device, limit, head_is_linear)
            for precision in sorted(precisions, key=lambda precision: not precision.is_config)
        }
    return [rows[precision.name] for precision in precisions], _memory_notes(training, device, depths, layers)


def _memory_notes(training: PlannedTraining, device: str, depths: Sequence[int], layers: int) -> list[str]:
    notes = []
    if len(depths) > 1:
        few = " and ".join(map(str, depths))
        notes.append(f"Activations are traced with {few} layers and extrapolated to {layers}; all else is counted.")
    if device == "cuda":
        notes.append(
            "Memory on CUDA is derived from shapes, with fused attention that keeps no scores, and was not compared "
            "with a GPU: it is what PyTorch allocates for tensors, without the context of CUDA and scratch space."
        )
    else:
        notes.append(
            "Memory on a CPU is resident memory beyond what Python and the libraries take before the weights load; the "
            "overhead is that of measured runs (docs/plan.md)."
        )
    strategy, devices = str(training.options.trainer.strategy), str(training.options.trainer.devices)
    if strategy != "auto" or devices not in {"auto", "1"}:
        notes.append(
            f"Memory is that of one process without sharding (trainer.strategy is {strategy}, trainer.devices is "
            f"{devices})."
        )
    if training.callbacks:
        second = ", but for the second base model of MergeEquivalence" if training.loads_second_base else ""
        notes.append(f"What trainer.callbacks ({', '.join(training.callbacks)}) hold is not counted{second}.")
    return notes
