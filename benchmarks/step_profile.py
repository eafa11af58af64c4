"""Shares of a training step on CLINC150 by kind of operation; prints JSON. `benchmarks/run.py` measures the speed.

All other options are passed to `lora-lightning fit`.

Example:
    python benchmarks/step_profile.py --data ../shared/data/clinc150 --trainer.max_steps=40 --model.base_dropout=0
"""

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import cast

from lightning.pytorch.profilers import PyTorchProfiler

from lora_lightning.cli.commands import run_command

CONFIG = Path(__file__).parent.parent / "configs/clinc150/minilm_lora.yaml"
# Kinds of operations in a step, by their names in PyTorch.
KINDS = {
    "matrix products": {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv"},
    "fused attention": {
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    },
    "activations": {"gelu", "gelu_backward", "tanh", "tanh_backward"},
    "layer norms": {"native_layer_norm", "native_layer_norm_backward"},
    "random numbers": {"random"},
    "elementwise and copies": {"add", "mul", "sub", "div", "exp", "amax", "addcmul", "copy", "fill", "sum"},
    "optimizer": {"_fused_adamw", "_foreach_norm", "_foreach_mul"},
}


def shares_of_a_step(profiler: PyTorchProfiler) -> dict[str, float]:
    """Share of the profiled time by kind of operation; everything else is mostly Python and dispatch."""
    averages = profiler.function_events.key_averages() if profiler.function_events else []  # type: ignore[no-untyped-call]
    total = sum(event.cpu_time_total for event in averages if event.key.startswith("ProfilerStep"))
    taken: Counter[str] = Counter()
    for event in averages:  # add and its in-place form add_ count as one
        taken[event.key.removeprefix("aten::").rstrip("_")] += event.self_cpu_time_total
    shares = {kind: sum(taken[name] for name in names) / total for kind, names in KINDS.items()}
    return {**shares, "everything else": 1 - sum(shares.values())}


def main() -> None:
    """Parses its own options and passes all others to `lora-lightning fit`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    options, rest = parser.parse_known_args()
    words = ["fit", "--config", str(CONFIG), "--data.data_dir", options.data, *rest]
    words += ["--trainer.logger.init_args.save_dir", tempfile.mkdtemp(), "--trainer.limit_val_batches=0"]
    words += ["--test_after_fit=false", "--trainer.profiler=PyTorchProfiler"]
    profiler = run_command(words).trainer.profiler
    print(json.dumps(shares_of_a_step(cast("PyTorchProfiler", profiler))))


if __name__ == "__main__":
    main()
