"""Time of a whole measurement of rank utilization in a 7B Llama, against SVDs of the dense updates; prints JSON.

All linear layers carry an adapter of r = 64: 224 of them. The dense side is one SVD (float32, singular values alone) of
each shape, times the number of layers of that shape.

Example:
    python benchmarks/rank_utilization_speed.py
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from lora_lightning.analysis.spectrum import common_energy_rank, rank_numbers, singular_values
from lora_lightning.lora.delta import AdapterDelta

LAYERS, HIDDEN, FEED_FORWARD = 32, 4096, 11008
SHAPES = {  # (out_features, in_features) of each kind
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
    "mlp.up_proj": (FEED_FORWARD, HIDDEN),
    "mlp.down_proj": (HIDDEN, FEED_FORWARD),
}


def random_deltas(r: int) -> list[AdapterDelta]:
    """An update for every linear layer."""
    return [
        AdapterDelta(f"model.layers.{layer}.{kind}", torch.randn(r, inputs), torch.randn(outputs, r), 2.0)
        for layer in range(LAYERS)
        for kind, (outputs, inputs) in SHAPES.items()
    ]


def measure(deltas: list[AdapterDelta]) -> None:
    """What RankUtilizationMonitor computes."""
    spectra = singular_values(deltas)
    for delta, spectrum in zip(deltas, spectra, strict=True):
        rank_numbers(spectrum, delta.r)
    common_energy_rank(spectra, 0.99)


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measures both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--r", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    deltas = random_deltas(options.r)
    measure(deltas[: len(SHAPES)])  # warms up
    ours = [seconds(lambda: measure(deltas)) for _ in range(options.rounds)]
    updates = {tuple(sorted(SHAPES[kind])): deltas[number].dense() for number, kind in enumerate(SHAPES)}
    dense = {shape: seconds(partial(torch.linalg.svdvals, update)) for shape, update in updates.items()}
    extrapolated = LAYERS * sum(dense[tuple(sorted(shape))] for shape in SHAPES.values())  # a transpose takes as long
    report = {
        "adapters": len(deltas),
        "r": options.r,
        "threads": options.threads,
        "seconds": statistics.median(ours),
        "seconds_of_each_round": ours,
        "dense_svd_seconds": {" x ".join(map(str, shape)): value for shape, value in dense.items()},
        "dense_svd_seconds_extrapolated": extrapolated,
        "ratio": extrapolated / statistics.median(ours),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
