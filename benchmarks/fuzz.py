"""Fuzzes the program with modified configs, data and model files, and with odd meanings; prints the tables of the docs.

They are in docs/reliability.md. Each case runs `lora-lightning` on one modified input, in a forked process with limits
on time and memory. It must either run, or refuse the input in one clear sentence with exit status 2; well-formed input
with an odd meaning must also give the right result. A run is real with two exceptions: training ends after one
optimizer step, and it ends before it would start further processes. Failures are printed in full to standard error.

Example:
    python benchmarks/fuzz.py --configs 1000 --data 1000
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub, which reads it once

import torch

from tests.conftest import TinyBackbone
from tests.fuzzing.configs import config_cases
from tests.fuzzing.data_files import FORMATS, data_cases
from tests.fuzzing.meanings import chat_cases, damage_cases, label_cases, validation_cases, vocabulary_cases
from tests.fuzzing.model_files import backbone_cases, checkpoint_cases, prediction_cases
from tests.fuzzing.outcome import FAILED, LATE, RAN, REFUSED, Case, Outcome, outcome_of
from tests.test_configs import CONFIGS, OF_FIT
from tests.tiny_models import save_tiny_backbone

SECONDS = 120
BYTES = 16 * 2**30


def run_in_fork(case: Case) -> Outcome:
    """Runs a case in a forked process, so that neither a crash nor a global setting affects the next case."""
    receiving, sending = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_report, args=(sending, case))
    process.start()
    sending.close()
    outcome = Outcome(FAILED, f"did not end within {SECONDS} s")
    if receiving.poll(SECONDS):
        try:
            outcome = receiving.recv()
        except EOFError:
            process.join()
            outcome = Outcome(FAILED, f"the process died, exit code {process.exitcode}")
    process.kill()
    process.join()
    return outcome


def _report(sending: Connection, case: Case) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    sending.send(outcome_of(case))


def all_config_cases(folder: Path, backbones: TinyBackbone, count: int, seed: int) -> Iterator[Case]:
    """About `count` cases, the same number for each config in the repository."""
    paths = list(OF_FIT)
    for number, path in enumerate(paths):
        yield from config_cases(path, folder / f"config{number}", backbones, -(-count // len(paths)), seed)


def all_data_cases(folder: Path, backbones: TinyBackbone, count: int, seed: int) -> Iterator[Case]:
    """About `count` cases, the same number for each kind of data, divided among its formats."""
    kinds = Counter(name.partition("/")[0] for name in FORMATS)
    for number, name in enumerate(FORMATS):
        share = -(-count // (len(kinds) * kinds[name.partition("/")[0]]))
        yield from data_cases(name, folder / f"format{number}", backbones, share, seed)


def all_model_cases(folder: Path, backbones: TinyBackbone, count: int, seed: int) -> Iterator[Case]:
    """About `count` cases, the same number for each kind of file."""
    for kind, cases in {"b": backbone_cases, "c": checkpoint_cases, "p": prediction_cases}.items():
        yield from cases(folder / kind, backbones, -(-count // 3), seed)


def all_meaning_cases(folder: Path, backbones: TinyBackbone, count: int, seed: int) -> Iterator[Case]:
    """About `count` cases, the same number for each kind of odd meaning."""
    kinds = (chat_cases, label_cases, vocabulary_cases, damage_cases, validation_cases)
    for number, cases in enumerate(kinds):
        yield from cases(folder / f"kind{number}", backbones, -(-count // len(kinds)), seed)


def warm_up(folder: Path, backbones: TinyBackbone) -> None:
    """Runs unmodified configs in this process: they must succeed, and forks then share the imported modules."""
    for name in ("callbacks/all_monitors.yaml", "squad_v2/minilm_lora.yaml", "causal_lm/gpt2_instructions_lora.yaml"):
        for case in config_cases(CONFIGS / name, folder / name, backbones, 1, change=False):
            if (outcome := outcome_of(case)).kind != RAN:
                msg = f"{name} does not run unmodified: {outcome.message}"
                raise SystemExit(msg)


def fuzz(cases: Iterable[Case], printed: Collection[str]) -> dict[str, Counter[str]]:
    """Runs cases and counts the outcomes by the first part of the source; prints outcomes of some kinds in full."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for case in cases:
        outcome = run_in_fork(case)
        counts[case.source.partition("/")[0]][outcome.kind] += 1
        if outcome.kind in printed:
            lines = (f"{case.source}: {case.mutation}", " ".join(case.words), f"{outcome.kind}: {outcome.message}")
            print("\n  ".join(lines), file=sys.stderr, flush=True)
    return counts


def print_table(counts: Mapping[str, Counter[str]]) -> None:
    """Prints one row per source, and their sum."""
    kinds = (REFUSED, LATE, RAN, FAILED)
    print(f"| input | cases | {' | '.join(kinds)} |\n| --- |{' --- |' * 5}")
    for source, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"| {source} | {found.total()} | {' | '.join(str(found[kind]) for kind in kinds)} |", flush=True)


def main() -> None:
    """Fuzzes and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", type=int, default=1000, help="minimum number of modified configs; 0 for none")
    parser.add_argument("--data", type=int, default=1000, help="minimum number of modified data files; 0 for none")
    parser.add_argument("--models", type=int, default=300, help="minimum number of modified model files; 0 for none")
    parser.add_argument("--meanings", type=int, default=300, help="minimum number of odd meanings; 0 for none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verbose", action="store_true", help="print every case, not only failures and late refusals")
    options = parser.parse_args()
    printed = (REFUSED, LATE, RAN, FAILED) if options.verbose else (LATE, FAILED)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backbones = cache(lambda family: save_tiny_backbone(family, folder / "backbones" / family))
        warm_up(folder, backbones)
        for title, cases, count in (
            ("Configs", all_config_cases, options.configs),
            ("Data", all_data_cases, options.data),
            ("Models and input files of `predict`", all_model_cases, options.models),
            ("Well-formed input with an odd meaning", all_meaning_cases, options.meanings),
        ):
            if count:
                print(f"\n{title}\n")
                print_table(fuzz(cases(folder / title, backbones, count, options.seed), printed))


if __name__ == "__main__":
    main()
