"""transformers.Trainer with PEFT on CLINC150. What no option changes is transformers' default, as a user leaves it."""

import time
from typing import Any

from transformers import AutoTokenizer, DataCollatorWithPadding, TrainerCallback

from peers.clinc150 import BATCH_SIZE, OUT_OF_SCOPE, cached_split, in_scope_accuracy, parse_arguments
from peers.minilm import load_classifier, training_arguments
from peers.step_log import StepLog
from peers.trainer_clock import ClockedTrainer

STEPS_BETWEEN_VALIDATIONS = 236  # half an epoch


class StopAtQuality(TrainerCallback):
    """Stops the training at a validation that reaches a quality, and notes when.

    Args:
        quality: Least in-scope accuracy, in [0, 1].
        log: Gets the time.
    """

    def __init__(self, quality: float, log: StepLog) -> None:
        self.quality, self.log = quality, log

    def on_evaluate(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Decides after a validation."""
        del args, state
        if more["metrics"]["eval_in_scope_accuracy"] >= self.quality:
            self.log.more["reached"] = time.time()
            control.should_training_stop = True


def main() -> None:
    """Trains."""
    options = parse_arguments(__doc__)
    words: dict[str, Any] = {}
    if options.quality is not None:
        words |= {"eval_strategy": "steps", "eval_steps": STEPS_BETWEEN_VALIDATIONS, "per_device_eval_batch_size": 64}
        words |= {"eval_steps": min(STEPS_BETWEEN_VALIDATIONS, options.steps)} if options.steps > 0 else {}
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    train, names = cached_split(options.cache, options.data, tokenizer, "train")
    outside, log = names.index(OUT_OF_SCOPE), StepLog()
    trainer = ClockedTrainer(
        log,
        model=load_classifier(options, len(names)),
        args=training_arguments(options, BATCH_SIZE, **words),
        train_dataset=train,
        eval_dataset=cached_split(options.cache, options.data, tokenizer, "val")[0]
        if options.quality is not None
        else None,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=lambda found: {
            "in_scope_accuracy": in_scope_accuracy(found.predictions, found.label_ids, outside)
        },
    )
    if options.quality is not None:
        trainer.add_callback(StopAtQuality(options.quality, log))
    trainer.train()
    log.write()


if __name__ == "__main__":
    main()
