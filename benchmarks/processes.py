"""Runs `lora-lightning` in several processes at once, without the imports of a fresh interpreter for each run."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import torch


def free_port() -> int:
    """A port of this machine that nothing listens on at the moment."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def become(rank: int, processes: int, port: int) -> None:
    """Makes this process one of several that train together with one thread each, as Lightning does when it launches.

    Args:
        rank: Its number.
        processes: How many there are.
        port: Where they meet.
    """
    torch.set_num_threads(1)
    if processes > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(processes)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def run_all(rank: int, processes: int, port: int, runs: Sequence[Sequence[str]]) -> None:
    """What one process does: its part of every run, one after another.

    Args:
        rank: Its number.
        processes: How many there are.
        port: Where they meet.
        runs: Words of `lora-lightning` commands.

    Raises:
        SystemExit: With a run's status, if it is not 0.
    """
    become(rank, processes, port)
    from lora_lightning.cli.main import main  # noqa: PLC0415  # the server that forks has it loaded

    for words in runs:
        if status := main(words):
            raise SystemExit(status)


def start(target: Callable[..., None], processes: int, *arguments: Any) -> None:
    """Runs a function in several processes, and waits; they fork from a server that imports but once.

    Args:
        target: Takes its rank, the number of processes, a free port, and the arguments.
        processes: How many.
        arguments: The rest.

    Raises:
        SystemExit: If one of them fails.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lora_lightning.cli.lightning_cli"])
    port = free_port()
    workers = [context.Process(target=target, args=(rank, processes, port, *arguments)) for rank in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        msg = f"a run of {processes} processes failed; its output is above."
        raise SystemExit(msg)


def train(processes: int, runs: Sequence[Sequence[str]]) -> None:
    """Runs `lora-lightning` commands, one after another, in so many processes at once.

    Args:
        processes: How many.
        runs: Words of commands.

    Raises:
        SystemExit: If one fails.
    """
    start(run_all, processes, runs)
