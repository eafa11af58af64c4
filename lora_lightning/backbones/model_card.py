"""The README.md of an exported folder: the lines with which plain transformers and plain PEFT load it."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

from huggingface_hub import try_to_load_from_cache
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from lora_lightning.backbones.loading import renamed_weights, uses_token_types
from lora_lightning.backbones.source import gguf_file_of
from lora_lightning.metrics.label_space import MULTI_LABEL, REGRESSION

CLASSIFIER = "AutoModelForSequenceClassification"
QUESTION_ANSWERER = "AutoModelForQuestionAnswering"
LANGUAGE_MODEL = "AutoModelForCausalLM"
# transformers' table of model classes, and the Hugging Face Hub's name of the task.
AUTO_CLASSES = {
    CLASSIFIER: (modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "text-classification"),
    QUESTION_ANSWERER: (modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES, "question-answering"),
    LANGUAGE_MODEL: (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "text-generation"),
}
TRAINED_WITH = "Trained with lora-lightning."
SPAN_OUTPUTS = 2  # start and end of an answer

QUANTIZED = """\
import json

import torch
from transformers import BitsAndBytesConfig, {auto_class}, AutoTokenizer{silencer}

{silence}folder = "."  # this folder, or its path
with open(f"{{folder}}/quantization_config.json") as file:
    quantization = BitsAndBytesConfig.from_dict(json.load(file))
"""
PLAIN = """\
from transformers import {auto_class}, AutoTokenizer{silencer}

{silence}folder = "."  # this folder, its path, or its name on the Hugging Face Hub
"""
SILENCE = """\
logging.set_verbosity_error()  # transformers would call the head, which is in this folder, newly initialized
"""
LOAD = """\
model = {auto_class}.from_pretrained({arguments})
tokenizer = AutoTokenizer.from_pretrained(folder)
"""
STOPPING = """
from transformers import GenerationConfig

model.generation_config = GenerationConfig.from_pretrained(folder)  # of the chat template, not of the base model
"""
NOTES = {
    CLASSIFIER: """\
The labels must be passed: transformers and PEFT load the configuration of the base model, and neither reads labels
from an adapter folder. Without them the head does not fit, or its classes are called LABEL_0, LABEL_1
([peft#1486](https://github.com/huggingface/peft/issues/1486)). `AutoPeftModelForSequenceClassification` takes the same
arguments. `AutoConfig.from_pretrained(folder, subfolder="config")` is the base model's configuration with the labels.

`pipeline("text-classification", model=model, tokenizer=tokenizer)` works. `pipeline("text-classification", FOLDER)`
needs a merged model in the folder: load with `AutoPeftModelForSequenceClassification`, call `merge_and_unload()`, and
save the result and the tokenizer with `save_pretrained`, or as below.
""",
    QUESTION_ANSWERER: """\
`{peft_class}.from_pretrained({arguments})` works as well; transformers 5 has no pipeline for this task any more.
`question_answering.json` holds the threshold above which a question is left unanswered.
""",
    LANGUAGE_MODEL: """\
`AutoPeftModelForCausalLM.from_pretrained({arguments})` and
`pipeline("text-generation", model=model, tokenizer=tokenizer)` work as well.
""",
}
MERGING_NOTE = """\
`lora-lightning merge FOLDER --output merged` writes a model that loads without PEFT, and checks that its outputs are
the same.
"""
PIPELINE_NOTE = """\
So does `pipeline("text-generation", folder, tokenizer=folder)`, which stops where the base model stops.
"""
SEGMENTS_NOTE = """\
Use `AutoPeftModel` and not `AutoPeftModelForQuestionAnswering`: the latter drops `token_type_ids` (PEFT 0.21.2), which
this base model needs to tell the question from the context.
"""


def model_card(
    model: PreTrainedModel,
    *,
    is_adapter: bool,
    files: Collection[str] = (),
    continued_from: Mapping[str, str | None] | None = None,
) -> str | None:
    """Writes how to load an exported folder.

    Args:
        model: The transformers model, with or without adapters in place.
        is_adapter: Whether the folder holds a PEFT adapter; otherwise a complete transformers model.
        files: Names of the folder's files, of which quantization_config.json and generation_config.json are loaded too.
        continued_from: The run's `continued_from`, if training continued an existing adapter.

    Returns:
        Markdown with the front matter of a model card; `None` for a model that no auto class loads.
    """
    auto_class = auto_class_of(model)
    if auto_class is None:
        return None
    arguments = ["folder", *(f"{name}={value!r}" for name, value in _arguments(model, auto_class, is_adapter).items())]
    is_quantized = "quantization_config.json" in files
    if is_quantized:
        arguments += ["quantization_config=quantization", "dtype=torch.float32"]
    words = {"auto_class": auto_class, "arguments": ", ".join(arguments), "peft_class": "AutoPeftModel"}
    has_head = is_adapter and auto_class != LANGUAGE_MODEL
    words |= {"silencer": ", logging" if has_head else "", "silence": SILENCE if has_head else ""}
    token_types = uses_token_types(model.config)
    if auto_class == QUESTION_ANSWERER and not token_types:
        words["peft_class"] = "AutoPeftModelForQuestionAnswering"
    code = (QUANTIZED if is_quantized else PLAIN) + LOAD
    code += STOPPING if is_adapter and "generation_config.json" in files else ""
    parts = [_front_matter(model, auto_class, is_adapter)]
    parts += [_origin(continued_from)] if continued_from else []
    parts += [f"```python\n{code}```\n".format(**words)]
    if is_adapter:
        parts.append(NOTES[auto_class].format(**words))
        parts += [PIPELINE_NOTE] if auto_class == LANGUAGE_MODEL and arguments == ["folder"] else []
        parts += [SEGMENTS_NOTE] if auto_class == QUESTION_ANSWERER and token_types else []
        parts.append(MERGING_NOTE)
    return "\n".join(parts)


def auto_class_of(model: PreTrainedModel) -> str | None:
    """The auto class that builds a model of this class.

    Args:
        model: Any transformers model.

    Returns:
        Such as `AutoModelForCausalLM`; `None` if there is none.
    """
    names = {cls.__name__ for cls in type(model).__mro__}  # FSDP2 puts a class of its own before the model's
    own = getattr(model.config, "auto_map", None) or {}
    for auto_class, (table, _) in AUTO_CLASSES.items():
        if own.get(auto_class, "").rpartition(".")[2] in names or table.get(model.config.model_type) in names:
            return auto_class
    return None


def _arguments(model: PreTrainedModel, auto_class: str, is_adapter: bool) -> dict[str, Any]:
    """What `from_pretrained` needs beside the folder, because the base model's own files do not say it."""
    config = model.config
    arguments: dict[str, Any] = {}
    if is_adapter:
        base = _saved_settings(str(config.name_or_path or ""))
        if auto_class == CLASSIFIER:
            arguments |= _label_arguments(config, base)
        elif auto_class == QUESTION_ANSWERER:
            arguments |= _span_arguments(model, base)
        if config.name_or_path and (gguf_file := gguf_file_of(config.name_or_path)) is not None:
            arguments["gguf_file"] = gguf_file
    if any(cls.__module__.startswith("transformers_modules.") for cls in type(model).__mro__):
        arguments["trust_remote_code"] = True
    return arguments


def _label_arguments(config: PretrainedConfig, base: dict[str, Any]) -> dict[str, Any]:
    names = cast("dict[int, str]", config.id2label)
    arguments = {"num_labels": len(names), "id2label": names, "label2id": {name: i for i, name in names.items()}}
    if config.problem_type in {MULTI_LABEL, REGRESSION}:  # pipelines assume one label
        arguments["problem_type"] = config.problem_type
    if base.get("pad_token_id") is None and config.pad_token_id is not None:
        arguments["pad_token_id"] = config.pad_token_id
    return arguments


def _span_arguments(model: PreTrainedModel, base: dict[str, Any]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if len(base.get("id2label") or range(base.get("num_labels", SPAN_OUTPUTS))) != SPAN_OUTPUTS:  # a classifier's
        arguments["num_labels"] = SPAN_OUTPUTS
    if (renamed := renamed_weights(model)) is not None:
        arguments["key_mapping"] = renamed
    return arguments


def _origin(continued_from: Mapping[str, str | None]) -> str:
    """Names the adapter that training continued; a local path means nothing to others."""
    name, commit = continued_from.get("adapter"), continued_from.get("commit")
    origin = f"[{name}](https://huggingface.co/{name}) (commit {commit})" if commit else "in a local folder"
    return f"Training continued the adapter {origin}; the SHA-256 of its weights is {continued_from.get('weights')}.\n"


def _saved_settings(base: str) -> dict[str, Any]:
    """The base model's own config.json, from its folder or the hub's cache, without network; empty if there is none."""
    if not base:
        return {}
    folder = Path(base).expanduser()
    path = folder / "config.json" if folder.is_dir() else try_to_load_from_cache(base, "config.json")
    if not isinstance(path, str | Path) or not Path(path).is_file():
        return {}
    settings: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return settings


def _front_matter(model: PreTrainedModel, auto_class: str, is_adapter: bool) -> str:
    """The Hub refuses a model card that names a local folder as the base model (transformers#33922)."""
    base = str(model.config.name_or_path)
    is_local = not base or Path(base).expanduser().is_dir()
    lines = ["---", f"library_name: {'peft' if is_adapter else 'transformers'}"]
    lines += [] if is_local else [f"base_model: {base}"]
    lines += [f"pipeline_tag: {AUTO_CLASSES[auto_class][1]}", *(["tags:", "- lora"] if is_adapter else []), "---"]
    name = _folder_name(Path(base)) if is_local else base
    title = f"LoRA adapter for {name}" if is_adapter else f"{name}, fine-tuned"
    return "\n".join([*lines, "", f"# {title}", "", TRAINED_WITH, ""])


def _folder_name(base: Path) -> str:
    """Packages hold their weights in a folder that is called `model`."""
    return base.parent.name if base.name == "model" else base.name
