"""Fuzzes the program with changed configs and changed data files; prints a Markdown table for docs/reliability.md.

Each case is `lora-lightning` on one changed input, in a fork of its own with a limit of time and memory. It must refuse
the input in one clear sentence with exit status 2, or run. A run is real but for two things: training ends after one
optimizer step, and where further processes would start it ends before them. What failed goes to standard error in full.

Example:
    python benchmarks/fuzz.py --configs 1000 --data 1000
"""

import argparse
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

import torch

from tests.conftest import TinyBackbone
from tests.fuzzing.configs import config_cases
from tests.fuzzing.outcome import FAILED, LATE, RAN, REFUSED, Case, Outcome, outcome_of
from tests.test_configs import CONFIGS
from tests.tiny_models import save_tiny_backbone

SECONDS = 120
BYTES = 16 * 2**30


def isolated(case: Case, folder: Path) -> Outcome:
    """Runs a case in a fork, so that neither a crash nor a global setting reaches the next."""
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_report, args=(sending, case, folder))
    process.start()
    sending.close()
    outcome = Outcome(FAILED, f"no end within {SECONDS} s")
    if receiving.poll(SECONDS):
        try:
            outcome = receiving.recv()
        except EOFError:
            process.join()
            outcome = Outcome(FAILED, f"the process died, exit code {process.exitcode}")
    process.kill()
    process.join()
    return outcome


def _report(sending: Connection, case: Case, folder: Path) -> None:
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    sending.send(outcome_of(case.words, folder))


def all_config_cases(folder: Path, backbones: TinyBackbone, count: int, seed: int) -> Iterator[Case]:
    """About `count` cases, the same number of each shipped config."""
    paths = sorted(CONFIGS.rglob("*.yaml"))
    for number, path in enumerate(paths):
        yield from config_cases(path, folder / f"config{number}", backbones, -(-count // len(paths)), seed)


def fuzz(cases: Iterable[Case], folder: Path) -> dict[str, Counter[str]]:
    """Runs cases and counts how they ended, by source; tells what failed as it goes."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        outcome = isolated(case, folder)
        counts[case.source.partition("/")[0]][outcome.kind] += 1
        if outcome.kind in {FAILED, LATE} or VERBOSE:
            print(f"{case.source}: {case.mutation}\n  {' '.join(case.words)}\n  {outcome.kind}: {outcome.message[-1500:]}", file=sys.stderr, flush=True)
    return counts


VERBOSE = False


def main() -> None:
    """Fuzzes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=int, default=1000, help="changed configs, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="tell how every case ended, not just the bad ones")
    options = parser.parse_args()
    global VERBOSE
    VERBOSE = options.verbose
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbones = cache(lambda family: save_tiny_backbone(family, folder / "backbones" / family))
        counts = fuzz(all_config_cases(folder, backbones, options.configs, options.seed), folder)
    kinds = (REFUSED, LATE, RAN, FAILED)
    print(f"| input | cases | {' | '.join(kinds)} |\n| --- |{' --- |' * 5}")
    for source, found in counts.items():
        print(f"| {source} | {found.total()} | {' | '.join(str(found[kind]) for kind in kinds)} |")


if __name__ == "__main__":
    main()
