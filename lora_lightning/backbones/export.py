"""Write a trained model so that plain transformers and plain PEFT load it."""

import json
import os.path
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lora_lightning.backbones.base_model_id import NamedBase, write_base_name
from lora_lightning.backbones.end_tokens import generation_config
from lora_lightning.backbones.model_card import model_card
from lora_lightning.compat.transformers import quantization_config
from lora_lightning.lora.parameter_names import ADAPTER
from lora_lightning.lora.plain_lora import as_plain_lora
from lora_lightning.runs.files import atomic_folder

CONFIG_FOLDER = "config"  # of an adapter folder; holds the base model's config.json with our settings
# Not in config.json, where it would say that the base model's own weights are quantized already.
QUANTIZATION = "quantization_config.json"
GENERATION = "generation_config.json"


def export_model(
    network: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    folder: Path,
    extra_files: Mapping[str, Any],
    state: Mapping[str, Tensor] | None = None,
    continued_from: Mapping[str, str | None] | None = None,
    base: NamedBase | None = None,
) -> None:
    """Writes an adapter as a PEFT folder, a model without adapters as a transformers folder.

    Both hold safetensors, the tokenizer and a README.md that says how to load them. A PEFT folder has
    `adapter_config.json`, always of plain LoRA (or DoRA) on the pretrained base; the base's configuration with the
    labels in `config/`, because transformers takes a folder with a `config.json` for a complete model and does not look
    for an adapter; and on a quantized base `quantization_config.json`, which quantizes it in the same way. A language
    model's folder has `generation_config.json`, which names every token that ends a response. The folder is written
    by `atomic_folder`, so a crash leaves the previous export.

    Args:
        network: A `PeftModel` or a `PreTrainedModel`.
        tokenizer: Its tokenizer; `None` for a model that reads no text.
        folder: Where to write; replaced if it exists.
        extra_files: Values to write as JSON, by file name.
        state: The full tensors of a sharded network's trainable parameters, by name.
        continued_from: The run's `continued_from`, for the model card.
        base: The base model's id on the hub, in place of where it is on this machine.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as draft:
        _write_model(network, draft, state)
        _write_generation_config(network, tokenizer, draft)
        _write_model_card(network, draft, continued_from)
        if tokenizer is not None:
            _write_tokenizer(tokenizer, draft)
        for name, value in extra_files.items():
            _write_json(draft / name, value)
        if base is not None:
            write_base_name(draft, base)
        for path in draft.rglob("*"):  # safetensors makes private files; an adapter is there to be shared
            path.chmod(0o755 if path.is_dir() else 0o644)


def _write_model(network: nn.Module, folder: Path, state: Mapping[str, Tensor] | None) -> None:
    if isinstance(network, PeftModel):
        # save_embedding_layers="auto" would ask the hub for the base's vocabulary.
        with as_plain_lora(network) as plain:
            network.save_pretrained(str(folder), save_embedding_layers=False, state_dict=plain or state)
            _make_adapter_config_portable(folder / "adapter_config.json", network.peft_config[ADAPTER])
        network.config.save_pretrained(str(folder / CONFIG_FOLDER))
        if (quantization := quantization_config(network.get_base_model())) is not None:
            _write_json(folder / QUANTIZATION, quantization.to_dict())
    elif isinstance(network, PreTrainedModel):
        network.save_pretrained(str(folder), state_dict=None if state is None else dict(state))


def _write_generation_config(network: nn.Module, tokenizer: PreTrainedTokenizerBase | None, folder: Path) -> None:
    """Says where generation stops, since a chat template may close a turn with other tokens than the base model's."""
    model = network.get_base_model() if isinstance(network, PeftModel) else network
    if tokenizer is not None and isinstance(model, PreTrainedModel) and model.can_generate():
        generation_config(model, tokenizer).to_json_file(folder / GENERATION)


def _write_model_card(network: nn.Module, folder: Path, continued_from: Mapping[str, str | None] | None) -> None:
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's blank form of a model card
    is_adapter = isinstance(network, PeftModel)
    model = cast("PeftModel", network).get_base_model() if is_adapter else network
    if isinstance(model, PreTrainedModel):
        files = {name for name in (QUANTIZATION, GENERATION) if (folder / name).is_file()}
        card = model_card(model, is_adapter=is_adapter, files=files, continued_from=continued_from)
        if card is not None:
            (folder / "README.md").write_text(card, encoding="utf-8")


def _write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    if (backend := getattr(tokenizer, "backend_tokenizer", None)) is not None:
        backend.no_truncation()  # of the last texts, if this process tokenized any
        backend.no_padding()
    tokenizer.save_pretrained(str(folder))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _make_adapter_config_portable(path: Path, saved: PeftConfig) -> None:
    """Makes PEFT's file the same in every process, and its base findable from every working directory.

    PEFT sorts patterns, of which the first wins, and keeps targets in a set, whose order differs by process.
    """
    config = json.loads(path.read_text(encoding="utf-8"))  # sorted by PEFT
    for name in ("target_modules", "target_parameters"):
        config[name] = config[name] and sorted(config[name])
    for name in ("rank_pattern", "alpha_pattern"):
        config[name] = getattr(saved, name)
    base = config["base_model_name_or_path"]
    if base and Path(base).is_dir():
        config["base_model_name_or_path"] = os.path.abspath(base)  # noqa: PTH100  # resolve() would follow links
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")
