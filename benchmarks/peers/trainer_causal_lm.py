"""transformers.Trainer with PEFT on SmolLM2-135M: packed text, or instructions of which the responses are learnt."""

import tempfile

import torch
from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, TrainingArguments

from peers.smollm2 import load_model, parse_arguments, training_rows
from peers.step_log import StepLog
from peers.trainer_clock import ClockedTrainer


def main() -> None:
    """Trains."""
    options, log = parse_arguments(__doc__), StepLog()
    arguments = TrainingArguments(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=options.batch_size,
        learning_rate=5e-4,
        max_steps=options.steps,
        lr_scheduler_type="cosine",
        warmup_steps=0.06,
        weight_decay=0.01,
        disable_tqdm=True,
        report_to=[],
        save_strategy="no",
        use_cpu=not torch.cuda.is_available(),
        bf16=options.bf16,
        train_sampling_strategy="group_by_length" if options.instructions and not options.flat else "random",
    )
    model, tokenizer = load_model(options)
    rows = training_rows(options, tokenizer)
    collate = DataCollatorWithFlattening() if options.flat else DataCollatorForSeq2Seq(tokenizer)
    ClockedTrainer(log, model=model, args=arguments, train_dataset=rows, data_collator=collate).train()
    log.write()


if __name__ == "__main__":
    main()
