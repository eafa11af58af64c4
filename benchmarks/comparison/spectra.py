"""Time of one measurement of rank utilization on SmolLM2-135M's shapes, with either way to singular values.

Writes the `seconds` to `STEP_LOG`; for `monitor_rows`.
"""

import argparse
import json
import os
from functools import partial
from pathlib import Path

import torch
from peers.step_log import FILE
from rank_utilization_speed import measure, random_deltas, summarize, time_call

from lora_lightning.lora.delta import AdapterDelta

LAYERS, HIDDEN, KEYS, FEED_FORWARD = 30, 576, 192, 1536
SHAPES = {  # (out_features, in_features) of each kind of layer
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (KEYS, HIDDEN),
    "self_attn.v_proj": (KEYS, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
    "mlp.up_proj": (FEED_FORWARD, HIDDEN),
    "mlp.down_proj": (HIDDEN, FEED_FORWARD),
}


def measure_dense(deltas: list[AdapterDelta]) -> None:
    """Computes the monitor's numbers from an SVD of each whole update."""
    summarize(deltas, [torch.linalg.svdvals(delta.dense())[: delta.r] for delta in deltas])


def main() -> None:
    """Measures one of both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("how", choices=["factors", "dense"])
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--r", type=int, default=16)
    options = parser.parse_args()
    deltas = random_deltas(options.r, options.layers, SHAPES)
    work = {"factors": measure, "dense": measure_dense}[options.how]
    work(deltas[: len(SHAPES)])  # warm-up
    seconds = time_call(partial(work, deltas))
    Path(os.environ[FILE]).write_text(json.dumps({"seconds": seconds}), encoding="utf-8")


if __name__ == "__main__":
    main()
