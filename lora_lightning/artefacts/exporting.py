"""Writes the adapter of a run into a folder of its own, which names the base model by an id on the hub."""

import shutil
import warnings
from pathlib import Path

from lora_lightning.artefacts.output_folder import ADAPTER, check_not_read, check_output, new_folder
from lora_lightning.backbones.adapter_config import ADAPTER_CONFIG, read_adapter_config, read_json_file
from lora_lightning.backbones.base_identity import BaseIdentity
from lora_lightning.backbones.base_model_id import NamedBase, check_hub_id, name_base, write_base_name
from lora_lightning.backbones.saved_base import BASE_MODEL
from lora_lightning.errors import CheckpointError, ConfigurationError
from lora_lightning.runs.checkpoint import read_checkpoint
from lora_lightning.runs.layout import ADAPTER_FOLDER, CONFIG
from lora_lightning.runs.record import RunRecord


def export_adapter(
    source: str | Path,
    output: str | Path,
    *,
    base_model_id: str,
    allow_other_base: bool = False,
    overwrite: bool = False,
) -> NamedBase:
    """Copies an exported adapter into a folder that other machines can load, like `lora-lightning export`.

    Args:
        source: A run folder, or its `adapter`.
        output: The folder to write.
        base_model_id: The base model's id on the hub, which the copy names in place of a folder of this machine.
        allow_other_base: Whether the weights of that id may be known to differ.
        overwrite: Replace an existing adapter folder.

    Returns:
        The name, and whether its weights are known to be those that the adapter was trained on.

    Raises:
        LoraLightningError: If there is no adapter, the id cannot be one, its weights are known to differ, or the folder
            cannot be written.
    """
    source, output = Path(source), Path(output)
    check_hub_id(base_model_id)
    folder = source / ADAPTER_FOLDER if (source / ADAPTER_FOLDER / ADAPTER_CONFIG).is_file() else source
    if not (folder / ADAPTER_CONFIG).is_file():
        msg = f"{source} has no adapter; give a run such as lightning_logs/quickstart/version_0, or a PEFT folder."
        raise CheckpointError(msg)
    check_output(output, source, overwrite=overwrite, marker=ADAPTER)
    check_not_read(output, folder)
    trained_on = str(read_json_file(folder / ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    config = read_adapter_config(folder, backbone=trained_on)  # not compared: it need not be here any more
    if config.revision is not None:
        msg = f"{folder} was trained on revision {config.revision!r} of {trained_on}, which an id alone does not name."
        raise ConfigurationError(msg)
    base = name_base(
        base_model_id, BaseIdentity.from_saved(config.file(f"{BASE_MODEL}.json")), allowed=allow_other_base
    )
    if warning := unfinished_warning(folder.parent) if folder.name == ADAPTER_FOLDER else "":
        warnings.warn(warning, stacklevel=2)
    with new_folder(output, overwrite=overwrite, marker=ADAPTER) as draft:
        _copy_files(folder, draft)
        write_base_name(draft, base)
    return base


def unfinished_warning(run: Path) -> str:
    """Says that a run has not finished, and of which step its exported adapter is.

    Args:
        run: A run folder, or another one.

    Returns:
        A sentence; empty if it has finished, or if this is no run.
    """
    if not (run / CONFIG).is_file() or (record := RunRecord.load(run)).trainable_parameters:
        return ""
    exported, last = _step(record.checkpoint), _step(record.last_checkpoint)
    best = "the best so far" if record.best_checkpoint else "its last one"
    since = f", while the run has reached step {last}" if last not in (None, exported) else ""
    of_step = "" if exported is None else f": the adapter is that of step {exported}, {best}{since}"
    remedy = f"`lora-lightning fit --config {run / CONFIG} --resume auto` resumes it."
    if record.state == "running":
        remedy = "start this command again once it has."
    return f"the run {run} is {record.state}, so its training has not finished{of_step}; {remedy}"


def _step(checkpoint: Path | None) -> int | None:
    """The optimizer step of a checkpoint; `None` without one, or if it is damaged, as the adapter need not be."""
    try:
        return None if checkpoint is None else read_checkpoint(checkpoint).get("global_step")
    except CheckpointError:
        return None


def _copy_files(folder: Path, draft: Path) -> None:
    """Copies a folder without hidden files and without the checkpoints of other programs."""
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if any(part.startswith((".", "checkpoint-")) for part in place.parts):
            continue
        if path.is_dir():
            (draft / place).mkdir()
            continue
        try:
            source = path.open("rb")
        except OSError as error:
            msg = f"{path} cannot be read ({(error.strerror or str(error)).lower()})."
            raise CheckpointError(msg) from error
        with source, (draft / place).open("wb") as copy:
            shutil.copyfileobj(source, copy)
