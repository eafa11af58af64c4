"""Do all ways to spread training give the same weights? Prints a table and JSON.

One process with batch 32 is the reference. Two processes with batch 16 (DDP, FSDP2) see the same rows in the same
steps, and so does one process that accumulates two batches of 16 where an epoch is one step. No dropout. The figure is
||w - w_reference|| / ||w_reference|| over everything that trained, read from the checkpoints.

Options that are not its own go to `lora-lightning fit`, for every run.

Example:
    python benchmarks/strategy_equality.py --config configs/quickstart.yaml --steps 20
    python benchmarks/strategy_equality.py --config configs/quickstart.yaml --steps 20 --model.lora=null
"""

import argparse
import json
import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FSDP2 = Path(__file__).parent.parent / "configs/trainer/fsdp2.yaml"
# Processes, and what to add, by way.
WAYS: dict[str, tuple[int, list[str]]] = {
    "one process": (1, []),
    "ddp": (2, ["--trainer.strategy=ddp"]),
    "fsdp2": (2, [f"--config={FSDP2}"]),
}


def words_of(way: str, words: list[str], batch_size: int, folder: Path) -> list[str]:
    """The command line of one run, its results below the folder."""
    processes, more = WAYS[way]
    size = [f"--data.batch_size={batch_size // processes}", f"--trainer.devices={processes}"]
    place = [f"--trainer.logger.save_dir={folder / way}", "--trainer.logger.name=run"]
    return ["fit", *words, *more, *size, *place, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def run_all(rank: int, processes: int, port: int, runs: list[list[str]]) -> None:
    """What one process does: its part of every run, one after another."""
    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from lora_lightning.main import main  # noqa: PLC0415  # the server that forks has it loaded

    for words in runs:
        if status := main(words):
            raise SystemExit(status)


def start(target: Callable[..., None], processes: int, port: int, *arguments: Any) -> None:
    """Runs a function in several processes; they fork from a server that imports but once.

    Args:
        target: Takes its rank, the number of processes, the port and the arguments.
        processes: How many.
        port: Where they meet.
        arguments: The rest.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lora_lightning.cli"])
    workers = [context.Process(target=target, args=(rank, processes, port, *arguments)) for rank in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        msg = f"a run of {processes} processes failed; its output is above."
        raise SystemExit(msg)


def train(processes: int, runs: list[list[str]]) -> None:
    """Runs command lines of `lora-lightning`, one after another, in so many processes at once."""
    with free_port() as port:
        pass
    start(run_all, processes, port, runs)


@contextmanager
def free_port() -> Iterator[int]:
    """A port on this machine that nothing listens on, taken for as long as the block runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield int(taken.getsockname()[1])


def weights(folder: Path) -> dict[str, Tensor]:
    """What the only run below a folder trained, from its last checkpoint."""
    (path,) = folder.rglob("last.ckpt")
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return {name: tensor.double() for name, tensor in state.items() if tensor.ndim}


def relative_difference(found: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """The distance of two states, all tensors as one vector, relative to the reference's norm."""
    if found.keys() != reference.keys():
        msg = f"other tensors: {sorted(found.keys() ^ reference.keys())[:3]}"
        raise SystemExit(msg)
    differences = [torch.linalg.vector_norm(found[name].double() - tensor) for name, tensor in reference.items()]
    norms = [torch.linalg.vector_norm(tensor.double()) for tensor in reference.values()]
    return float(torch.stack(differences).norm() / torch.stack(norms).norm())


def compare(words: list[str], batch_size: int, folder: Path) -> dict[str, float]:
    """Trains in every way, and measures each against one process.

    Args:
        words: Options of `fit`.
        batch_size: Of all processes together.
        folder: Where the runs land.

    Returns:
        The relative difference by way; `one process` has 0.
    """
    lines = {way: words_of(way, words, batch_size, folder) for way in WAYS}
    by_processes: dict[int, list[list[str]]] = {}
    for way, (processes, _) in WAYS.items():
        by_processes.setdefault(processes, []).append(lines[way])
    for processes, runs in by_processes.items():
        train(processes, runs)
    states = {way: weights(folder / way) for way in WAYS}
    return {way: relative_difference(state, states["one process"]) for way, state in states.items()}


def main() -> None:
    """Parses the few options of its own, hands the rest to `lora-lightning fit`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    options, rest = parser.parse_known_args()
    words = [*rest, f"--trainer.max_steps={options.steps}", "--test_after_fit=false", "--model.base_dropout=0"]
    words += [] if any(word.startswith("--model.lora=") for word in rest) else ["--model.lora.lora_dropout=0"]
    with tempfile.TemporaryDirectory() as folder:
        found = compare(words, options.batch_size, Path(folder))
    print("| | relative difference of the weights |\n| --- | --- |")
    for way, difference in found.items():
        print(f"| {way} | {difference:.1e} |")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
