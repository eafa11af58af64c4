"""Merges an adapter into its base, proves that the written folder is the adapter model, or writes nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

from lora_lightning.artefacts.adapter_folder import open_adapter_folder
from lora_lightning.artefacts.finished_run import open_run
from lora_lightning.artefacts.merge_job import MergeJob
from lora_lightning.artefacts.opened import OpenedAdapter
from lora_lightning.artefacts.output_folder import check_not_read, check_output
from lora_lightning.artefacts.results import DtypeName, MergeResult
from lora_lightning.backbones.adapter_config import ADAPTER_CONFIG
from lora_lightning.backbones.base_model_id import check_hub_id
from lora_lightning.backbones.source import resolve_backbone
from lora_lightning.errors import CheckpointError, ConfigurationError, suggest_names
from lora_lightning.lora.merging import MergeTarget
from lora_lightning.runs.layout import CONFIG
from lora_lightning.training.api import Config, Options, config_arguments, option_arguments
from lora_lightning.training.commands import explain_errors

QUANTIZED_TARGETS = ("original", "dequantized", "requantized")


def merge(
    source: str | Path,
    output: str | Path,
    *,
    target: MergeTarget | None = None,
    dtype: DtypeName = "float32",
    base_model_id: str | None = None,
    config: Config | Sequence[Config] = (),
    overrides: Options | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
) -> MergeResult:
    """Merges the adapter of a run or of a PEFT folder into a plain transformers folder, like `lora-lightning merge`.

    The folder is loaded again and compared with the adapter model on validation data, here and in a fresh process with
    transformers alone, before it gets its name.

    Args:
        source: A run folder, whose best checkpoint is merged, or a PEFT adapter folder.
        output: The folder to write.
        target: For a quantized base: `dequantized` (default), `original` or `requantized`.
        dtype: Of the weights.
        base_model_id: The base model's id on the hub, for the model card, if it was loaded from a folder; `None` for
            that which the run was given.
        config: A YAML file with the `data` to compare on, or its content; a run has its own.
        overrides: Options of the data, named as on the command line: `{"data.data_dir": "DIR"}`, or pairs of them.
        overwrite: Replace an existing model folder, once the new one has passed.
        report: Is called with a line about each step; `None` for silence.

    Returns:
        What was written and measured.

    Raises:
        LoraLightningError: If an option, the adapter, its base or the data is wrong, or if the disk is full.
        VerificationError: If the merged model is not the adapter model, the adapter changes nothing, or a head is
            missing. Nothing is written then.
    """
    source, output, report = Path(source), Path(output), report or _ignore
    check_choices(target, dtype, base_model_id)
    open_source = _opener(source)
    check_output(output, source, overwrite=overwrite)
    with explain_errors():
        report(f"loading {source}")
        opened = open_source(source, [*config_arguments(config), *option_arguments(overrides or {})])
        check_not_read(output, Path(resolve_backbone(opened.backbone)))
        return MergeJob(opened, output, target, dtype, base_model_id, report, overwrite=overwrite).run()


def _ignore(line: str) -> None:
    del line


def check_choices(target: str | None, dtype: str, base_model_id: str | None) -> None:
    """Refuses values that no merge can use.

    Args:
        target: As in `merge`.
        dtype: As in `merge`.
        base_model_id: As in `merge`.

    Raises:
        ConfigurationError: If one of them is unknown.
    """
    for name, value, allowed in (("target", target, QUANTIZED_TARGETS), ("dtype", dtype, get_args(DtypeName))):
        if value is not None and value not in allowed:
            msg = f"--{name} is {value!r}; {suggest_names(str(value), allowed)}"
            raise ConfigurationError(msg)
    if base_model_id is not None:
        check_hub_id(base_model_id)


def _opener(source: Path) -> Callable[[Path, Sequence[str]], OpenedAdapter]:
    if (source / CONFIG).is_file():
        return open_run
    if (source / ADAPTER_CONFIG).is_file():
        return open_adapter_folder
    problem = "is not a run or adapter folder" if source.exists() else "does not exist"
    msg = (
        f"{source} {problem}; give a run such as lightning_logs/quickstart/version_0 (it has a {CONFIG}), or a PEFT "
        f"adapter (it has an {ADAPTER_CONFIG})."
    )
    raise CheckpointError(msg)
