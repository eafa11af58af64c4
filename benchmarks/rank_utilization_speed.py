"""Time of one measurement of rank utilization for a 7B Llama, compared with SVDs of the dense updates; prints JSON.

All 224 linear layers have an adapter with r = 64. The time of the dense SVDs is extrapolated: one SVD (float32,
singular values only) of each shape, times the number of layers with that shape.

Example:
    python benchmarks/rank_utilization_speed.py
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lora_lightning.analysis.spectrum import common_energy_rank, rank_numbers, singular_values
from lora_lightning.lora.delta import AdapterDelta

LAYERS, HIDDEN, FEED_FORWARD = 32, 4096, 11008
SHAPES = {  # (out_features, in_features) of each kind of layer
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (FEED_FORWARD, HIDDEN),
    "mlp.up_proj": (FEED_FORWARD, HIDDEN),
    "mlp.down_proj": (HIDDEN, FEED_FORWARD),
}


def random_deltas(r: int, layers: int = LAYERS, shapes: Mapping[str, tuple[int, int]] = SHAPES) -> list[AdapterDelta]:
    """A random update for every linear layer.

    Args:
        r: Of all of them.
        layers: Number of transformer layers.
        shapes: (out_features, in_features) of each kind of linear layer.
    """
    return [
        AdapterDelta(f"model.layers.{layer}.{kind}", torch.randn(r, inputs), torch.randn(outputs, r), 2.0)
        for layer in range(layers)
        for kind, (outputs, inputs) in shapes.items()
    ]


def measure(deltas: list[AdapterDelta]) -> None:
    """Computes what RankUtilizationMonitor computes."""
    summarize(deltas, singular_values(deltas))


def summarize(deltas: list[AdapterDelta], spectra: list[Tensor]) -> None:
    """Computes the monitor's numbers from the singular values of each update, (at least r,), descending."""
    for delta, spectrum in zip(deltas, spectra, strict=True):
        rank_numbers(spectrum, delta.r)
    common_energy_rank(spectra, 0.99)


def time_call(work: Callable[[], Any]) -> float:
    """Wall time of a call, in seconds."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measures both and prints the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--r", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    deltas = random_deltas(options.r)
    measure(deltas[: len(SHAPES)])  # warm-up
    ours = [time_call(lambda: measure(deltas)) for _ in range(options.rounds)]
    updates = {tuple(sorted(SHAPES[kind])): deltas[number].dense() for number, kind in enumerate(SHAPES)}
    dense = {shape: time_call(partial(torch.linalg.svdvals, update)) for shape, update in updates.items()}
    extrapolated = LAYERS * sum(
        dense[tuple(sorted(shape))] for shape in SHAPES.values()
    )  # the SVD of the transposed matrix takes as long
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
