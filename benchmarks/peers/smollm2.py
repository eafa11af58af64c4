"""SmolLM2-135M and its training data as the transformers peers use them."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

IGNORED = -100  # label of a token that is not learnt


def parse_arguments(description: str | None) -> argparse.Namespace:
    """Reads the options of a peer that trains a language model."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, type=Path, help="folder with the GGUF file")
    parser.add_argument("--text", type=Path, help="text to pack into rows; or")
    parser.add_argument("--instructions", type=Path, help="JSON list of records, of which the responses are learnt")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--qlora", action="store_true", help="the base in 4 bits, of a folder with safetensors")
    parser.add_argument("--flat", action="store_true", help="texts one after another, in place of padded ones")
    return parser.parse_args()


def load_model(options: argparse.Namespace) -> tuple[Any, Any]:
    """Loads the model with a PEFT adapter on all linear layers.

    Args:
        options: Of the command line; the folder has one GGUF file, or safetensors for a base in 4 bits.

    Returns:
        The model in float32, unless its base has 4 bits, and its tokenizer.
    """
    torch.manual_seed(0)
    model, tokenizer = _quantized(options) if options.qlora else load_base(options.model)
    model.config.use_cache = False
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear")
    return get_peft_model(model, lora), tokenizer


def load_base(folder: Path) -> tuple[Any, Any]:
    """Loads the model of the one GGUF file of a folder in float32, and its tokenizer."""
    (file,) = (path.name for path in folder.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    _forget_quantization(model)
    return model, tokenizer


def _quantized(options: argparse.Namespace) -> tuple[Any, Any]:
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if options.bf16 else torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, quantization_config=config)
    # Without gradient checkpointing, which ours does not use either.
    prepared = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)  # type: ignore[no-untyped-call]
    return prepared, AutoTokenizer.from_pretrained(options.model)


def _forget_quantization(model: Any) -> None:
    """A GGUF file's weights are plain float32 once loaded, but Trainer refuses what transformers calls quantized."""
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        model.__dict__.pop(name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def training_rows(options: argparse.Namespace, tokenizer: Any) -> Dataset:
    """The rows with `input_ids`, `attention_mask` and `labels`."""
    return (
        _packed(options.text, tokenizer, options.context)
        if options.text
        else _responses(options.instructions, tokenizer, options.context)
    )


def _packed(text: Path, tokenizer: Any, context: int) -> Dataset:
    ids = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    rows = [ids[start : start + context] for start in range(0, len(ids) - context + 1, context)]
    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * context] * len(rows), "labels": rows})


def _responses(file: Path, tokenizer: Any, context: int) -> Dataset:
    columns: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for record in json.loads(file.read_text(encoding="utf-8")):
        question = "\n\n".join(filter(None, [record["instruction"], record["input"]]))
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": record["output"]}]
        text = tokenizer.apply_chat_template(chat, tokenize=False)
        prompt = tokenizer.apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:context]
        start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if not record["output"] or start >= len(ids):
            continue
        columns["input_ids"].append(ids)
        columns["attention_mask"].append([1] * len(ids))
        columns["labels"].append([IGNORED] * start + ids[start:])
    return Dataset.from_dict(columns)
