"""Run `lora-lightning` in several processes at once, without importing everything again for each run."""

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_lightning import RunRecord

LIBC: Any = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before a fork, after which nothing may be


def free_port() -> int:
    """A port of this machine that is currently free."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def end_with_parent() -> None:
    """Has Linux kill this process when the one that started it ends, however that happens; as a `preexec_fn`, too."""
    if sys.platform == "linux":
        LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def join_training(rank: int, processes: int, port: int) -> None:
    """Sets up this process as one of several that train together with one thread each, like Lightning's launcher.

    Args:
        rank: Rank of this process.
        processes: Number of processes.
        port: Port of the process group.
    """
    end_with_parent()
    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def run_commands(rank: int, processes: int, port: int, runs: Sequence[Sequence[str]]) -> None:
    """Runs commands one after another as one of several processes.

    Args:
        rank: Rank of this process.
        processes: Number of processes.
        port: Port of the process group.
        runs: Arguments of each `lora-lightning` command.

    Raises:
        SystemExit: With the exit status of the first command that fails.
    """
    join_training(rank, processes, port)
    from lora_lightning.cli.main import main  # noqa: PLC0415  # the fork server has already imported it

    for words in runs:
        if status := main(words):
            raise SystemExit(status)


def start_processes(target: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Runs a function in several processes and waits for them; they are forked from a server that imports once.

    Args:
        target: Called with its rank, the number of processes, a free port, and the arguments.
        processes: Number of processes.
        arguments: Further arguments of the function.

    Raises:
        SystemExit: If a process fails.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lora_lightning.cli.commands"])
    port = free_port()
    workers = [context.Process(target=target, args=(rank, processes, port, *arguments)) for rank in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        msg = f"a run of {processes} processes failed; its output is above."
        raise SystemExit(msg)


def run_in_processes(processes: int, runs: Sequence[Sequence[str]]) -> None:
    """Runs `lora-lightning` commands one after another, each in several processes at once.

    Args:
        processes: Number of processes.
        runs: Arguments of each command.

    Raises:
        SystemExit: If a command fails.
    """
    start_processes(run_commands, processes, runs)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a finished run, which need not be repeated."""
    return (folder / "config.yaml").is_file() and RunRecord.load(folder).state == "finished"
