"""Perplexity of SmolLM2-135M on WikiText-2 before and after LoRA, at several context lengths; prints JSON and a table.

Every context length trains on the same number of tokens and is scored on the same first tokens of the test split; each
token is predicted from the preceding tokens of its block. "Before" is the same model with its adapters disabled.
Finished context lengths are not repeated. All other options are passed to `lora-lightning fit`.

Example:
    python benchmarks/wikitext2_perplexity.py --data ../shared/data/text/wikitext-2-raw --trainer.precision bf16-mixed
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from typing import Any, cast

from peft import PeftModel

from lora_lightning.training.commands import prepare_command
from lora_lightning.training.fitting import TrainingRun

ROOT = Path(__file__).resolve().parent.parent
RUNS = ROOT / "lightning_logs" / "wikitext2-perplexity"
TOKENS_PER_STEP = 1024
TEST_TOKENS = 32768


def score(run: TrainingRun) -> float:
    """Perplexity on the first tokens of the test split."""
    run.trainer.test(run.task, run.datamodule, verbose=False)
    return float(run.trainer.callback_metrics["test/perplexity"])


def measure(data: Path, context: int, steps: int, rest: list[str], result: Path) -> None:
    """Trains with one context length and scores with and without adapters."""
    rows = TOKENS_PER_STEP // context
    words = ["--config", str(ROOT / "configs/causal_lm/smollm2_offline_wikitext2_lora.yaml")]
    words += ["--data.data_dir", str(data), "--data.context_length", str(context)]
    words += ["--data.batch_size", str(rows), "--data.eval_batch_size", str(rows), "--trainer.max_steps", str(steps)]
    words += ["--trainer.accumulate_grad_batches", "1", "--trainer.limit_val_batches", "0"]
    words += ["--trainer.limit_test_batches", str(TEST_TOKENS // TOKENS_PER_STEP), "--test_after_fit", "false"]
    words += ["--trainer.logger.save_dir", str(RUNS), "--trainer.logger.name", f"context-{context}"]
    since = time.perf_counter()
    run = TrainingRun(prepare_command("fit", [*words, *rest]))
    run.execute()
    seconds = time.perf_counter() - since
    after = score(run)
    with cast("PeftModel", run.task.built_network).disable_adapter():
        before = score(run)
    values = {"before": before, "after": after, "steps": steps, "tokens": steps * TOKENS_PER_STEP, "seconds": seconds}
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text(json.dumps(values))


def main() -> None:
    """Measures the missing context lengths and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="folder with wiki.train.raw")
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--steps", type=int, default=200, help=f"training steps of {TOKENS_PER_STEP} tokens")
    options, rest = parser.parse_known_args()
    report: dict[str, Any] = {"test_tokens": TEST_TOKENS, "options": rest, "contexts": {}}
    for context in options.contexts:
        result = RUNS / f"context-{context}-steps-{options.steps}.json"
        if not result.exists():  # in its own process, which frees all memory at the end
            arguments = (options.data.resolve(), context, options.steps, rest, result)
            process = multiprocessing.get_context("fork").Process(target=measure, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)
        report["contexts"][context] = json.loads(result.read_text())
    print(json.dumps(report, indent=2))
    print("| context length | before | after | tokens trained on |\n| --- | --- | --- | --- |")
    for context, row in report["contexts"].items():
        print(f"| {context} | {row['before']:.2f} | {row['after']:.2f} | {row['tokens']:,} |")


if __name__ == "__main__":
    main()
