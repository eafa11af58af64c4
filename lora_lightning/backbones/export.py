"""Write a trained model so that plain transformers and plain PEFT load it."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_lightning.backbones.quantization import quantization_of

# Not in config.json, where it would say that the backbone's own weights are quantised already.
QUANTIZATION = "quantization_config.json"


def export_model(
    network: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    extra_files: Mapping[str, Any],
) -> None:
    """Writes an adapter as a PEFT folder, a fully fine-tuned model as a transformers folder.

    The folder holds safetensors, the tokenizer and a `config.json` with the label names; for an adapter also
    `adapter_config.json`, and on a quantised base `quantization_config.json`, which makes it again. It is written
    beside its place and then moved, so a crash leaves the old one, at worst as `.<name>.old`.

    Args:
        network: A `PeftModel` or a `PreTrainedModel`.
        tokenizer: Its tokenizer; `None` where it reads no text.
        folder: Where to; replaced if it exists.
        extra_files: Values to write as JSON, by file name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.????????"):  # by a run that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        if isinstance(network, PeftModel):
            # save_embedding_layers="auto" would ask the hub for the base's vocabulary.
            network.save_pretrained(str(scratch), save_embedding_layers=False)
            network.config.save_pretrained(str(scratch))
            if (quantization := quantization_of(network.get_base_model())) is not None:
                extra_files = {QUANTIZATION: quantization.to_dict(), **extra_files}
        elif isinstance(network, PreTrainedModel):
            network.save_pretrained(str(scratch))
        (scratch / "README.md").unlink(missing_ok=True)  # PEFT's blank form of a model card
        if tokenizer is not None:
            tokenizer.save_pretrained(str(scratch))
        for name, value in extra_files.items():
            (scratch / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        scratch.chmod(0o755)  # mkdtemp and safetensors make private files; an adapter is there to be shared
        for path in scratch.rglob("*"):  # a tokenizer with several chat templates keeps them in a folder
            path.chmod(0o755 if path.is_dir() else 0o644)
        _swap(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _swap(new: Path, place: Path) -> None:
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    try:
        new.rename(place)
    except BaseException:
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
