"""Write a trained model so that plain transformers and plain PEFT load it."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_lightning.backbones.end_tokens import generation_config
from lora_lightning.compat.transformers import quantization_config
from lora_lightning.lora.parameter_names import ADAPTER
from lora_lightning.lora.plain_lora import as_plain_lora

# Not in config.json, where it would say that the backbone's own weights are quantised already.
QUANTIZATION = "quantization_config.json"


def export_model(
    network: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    extra_files: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes an adapter as a PEFT folder, a model without adapters as a transformers folder.

    The folder holds safetensors, the tokenizer and a `config.json` with the label names; for a language model
    `generation_config.json`, which names every token that ends a response; for an adapter also
    `adapter_config.json`, always of plain LoRA (or DoRA) on the pretrained base, and on a quantised base
    `quantization_config.json`, which makes it again. It is written beside its place and then moved, so a crash leaves
    the old one, at worst as `.<name>.old`.

    Args:
        network: A `PeftModel` or a `PreTrainedModel`.
        tokenizer: Its tokenizer; `None` where it reads no text.
        folder: Where to; replaced if it exists.
        extra_files: Values to write as JSON, by file name.
        state: Of a sharded network the whole tensors of what trains, by name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f".{folder.name}.????????"):  # by a run that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        if isinstance(network, PeftModel):
            # save_embedding_layers="auto" would ask the hub for the base's vocabulary.
            with as_plain_lora(network) as plain:
                network.save_pretrained(str(scratch), save_embedding_layers=False, state_dict=plain or state)
                _put_in_order(scratch / "adapter_config.json", network.peft_config[ADAPTER])
            network.config.save_pretrained(str(scratch))
            if (quantization := quantization_config(network.get_base_model())) is not None:
                extra_files = {QUANTIZATION: quantization.to_dict(), **extra_files}
        elif isinstance(network, PreTrainedModel):
            network.save_pretrained(str(scratch), state_dict=None if state is None else dict(state))
        _save_generation_config(network, tokenizer, scratch)
        (scratch / "README.md").unlink(missing_ok=True)  # PEFT's blank form of a model card
        if tokenizer is not None:
            if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
                backend.no_truncation()  # of the last texts, if this process tokenised any
                backend.no_padding()
            tokenizer.save_pretrained(str(scratch))
        for name, value in extra_files.items():
            (scratch / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        scratch.chmod(0o755)  # mkdtemp and safetensors make private files; an adapter is there to be shared
        for path in scratch.rglob("*"):  # a tokenizer with several chat templates keeps them in a folder
            path.chmod(0o755 if path.is_dir() else 0o644)
        _swap(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _save_generation_config(network: nn.Module, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Says where generation stops, since a chat template may close a turn with other tokens than the base model's."""
    model = network.get_base_model() if isinstance(network, PeftModel) else network
    if tokenizer is not None and isinstance(model, PreTrainedModel) and model.can_generate():
        generation_config(model, tokenizer).to_json_file(folder / "generation_config.json")


def _put_in_order(path: Path, saved: PeftConfig) -> None:
    """PEFT sorts patterns, of which the first wins, and keeps targets in a set, whose order differs by process."""
    config = json.loads(path.read_text(encoding="utf-8"))  # sorted by PEFT
    config["target_modules"].sort()
    for name in ("rank_pattern", "alpha_pattern"):
        config[name] = getattr(saved, name)
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


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
