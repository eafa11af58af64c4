"""all-MiniLM-L6-v2, or another encoder, as the transformers peers train it: their options, the model, and Trainer's."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    TrainingArguments,
)


def make_parser(description: str | None, data: str) -> argparse.ArgumentParser:
    """The options that all peers with an encoder have.

    Args:
        description: Of the peer.
        data: What its `--data` is.

    Returns:
        The parser, to which a peer may add its own.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", required=True, help="folder of the encoder")
    parser.add_argument("--data", required=True, type=Path, help=data)
    parser.add_argument("--steps", type=int, default=-1, help="training steps; one epoch if not given")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--group", action="store_true", help="batches of texts of similar length")
    parser.add_argument("--dropout", type=float, default=0.1, help="of the base model")
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--targets", default="query,value", help="names of modules, or all-linear")
    parser.add_argument("--pooler", action="store_true", help="also train the pooler")
    parser.add_argument("--qlora", action="store_true", help="the base in 4 bits")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--schedule", default="cosine")
    parser.add_argument("--warmup", type=float, default=0.0, help="share of the steps in which the rate grows")
    parser.add_argument("--weight-decay", type=float, default=0.0)
    parser.add_argument("--label-smoothing", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")
    return parser


def load_classifier(options: argparse.Namespace, labels: int) -> Any:
    """Loads the encoder with a new head and a PEFT adapter.

    Args:
        options: From `make_parser`.
        labels: Their number.

    Returns:
        The model.
    """
    base = _load(AutoModelForSequenceClassification, options, head="classifier", num_labels=labels)
    return _adapt(base, options, "SEQ_CLS", "classifier")


def load_reader(options: argparse.Namespace) -> Any:
    """Loads the encoder with a new head that finds answers, and a PEFT adapter.

    Args:
        options: From `make_parser`.

    Returns:
        The model.
    """
    base = _load(AutoModelForQuestionAnswering, options, head="qa_outputs")
    return _adapt(base, options, "QUESTION_ANS", "qa_outputs")


def _load(auto_class: Any, options: argparse.Namespace, head: str, **more: Any) -> Any:
    torch.manual_seed(options.seed)
    more |= dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), options.dropout)
    if not options.qlora:
        return auto_class.from_pretrained(options.model, **more)
    more["quantization_config"] = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16 if options.bf16 else torch.float32,
        llm_int8_skip_modules=[head],
    )
    base = auto_class.from_pretrained(options.model, dtype=torch.float32, **more)
    # Without gradient checkpointing, which ours does not use either.
    return prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)  # type: ignore[no-untyped-call]


def _adapt(base: Any, options: argparse.Namespace, task: str, head: str) -> Any:
    targets = options.targets if options.targets == "all-linear" else options.targets.split(",")
    lora = LoraConfig(task_type=task, r=options.r, lora_alpha=2 * options.r, lora_dropout=0.05, target_modules=targets)
    if options.pooler:  # all linear layers include it, and PEFT would give it an adapter, too
        lora.modules_to_save, lora.exclude_modules = [head, "pooler"], ["pooler.dense"]
    return get_peft_model(base, lora)


def training_arguments(options: argparse.Namespace, batch_size: int, **more: Any) -> TrainingArguments:
    """What Trainer gets; the rest is transformers' default, as a user leaves it.

    Args:
        options: From `make_parser`.
        batch_size: Rows of a step.
        more: Further arguments.

    Returns:
        The arguments.
    """
    if options.group:
        more["train_sampling_strategy"] = "group_by_length"
    return TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=batch_size,
        learning_rate=options.learning_rate,
        num_train_epochs=options.epochs,
        max_steps=options.steps,
        lr_scheduler_type=options.schedule,
        warmup_steps=options.warmup,
        weight_decay=options.weight_decay,
        label_smoothing_factor=options.label_smoothing,
        seed=options.seed,
        disable_tqdm=options.no_progress,
        report_to=[],
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        bf16=options.bf16,
        **more,
    )
