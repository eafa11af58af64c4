"""What the machine is, and what others did with it during a measurement."""

import hashlib
import os
import platform
import re
import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

STAT = Path("/proc/stat")
QUIET_CPUS, QUIET_STEAL, QUIET_SECOND = 0.1, 0.02, 0.25  # of others; a measurement with more is loud
SECONDS_BETWEEN_SAMPLES = 1.0
REPOSITORY = Path(__file__).parents[2]
SUFFIXES = {".py", ".yaml", ".json"}  # of code
PACKAGES = ("torch", "transformers", "peft", "lightning", "lora-lightning")


@dataclass(frozen=True)
class CpuTimes:
    """Time of all CPUs together since the system started, in ticks of 1 / `SC_CLK_TCK` seconds.

    Attributes:
        busy: Running programs or the kernel.
        idle: Idle, or waiting for a disk.
        steal: Wanted, but used by other virtual machines.
        cpus: Their number.
    """

    busy: int
    idle: int
    steal: int
    cpus: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.busy + self.idle + self.steal


@dataclass(frozen=True)
class Load:
    """What others did during a measurement.

    Attributes:
        foreign_cpus: CPUs that other processes of this system used, on average.
        steal_share: Share of the time of all CPUs that other virtual machines took, in [0, 1].
        worst_steal_share: The same in the worst second.
    """

    foreign_cpus: float
    steal_share: float
    worst_steal_share: float


def is_quiet(load: Mapping[str, float] | None) -> bool:
    """Whether others took next to nothing, on average and in the worst second; unknown where the system says nothing.

    Args:
        load: The fields of `Load`.
    """
    return load is None or (
        load["foreign_cpus"] <= QUIET_CPUS
        and load["steal_share"] <= QUIET_STEAL
        and load["worst_steal_share"] <= QUIET_SECOND
    )


def parse_stat(text: str) -> CpuTimes:
    """Reads the times of all CPUs.

    Args:
        text: Of `/proc/stat`: a line of all CPUs, then one a CPU. The columns are user, nice, system, idle, iowait,
            irq, softirq, steal, guest and guest_nice; the last two are part of the first two (proc(5)).

    Returns:
        The times.
    """
    user, nice, system, idle, iowait, irq, softirq, steal = map(int, text.split("\n", 1)[0].split()[1:9])
    cpus = len(re.findall(r"^cpu\d", text, re.MULTILINE))
    return CpuTimes(user + nice + system + irq + softirq, idle + iowait, steal, cpus)


def load_of(samples: Sequence[CpuTimes], own_cpu_seconds: float, ticks_per_second: int) -> Load:
    """Computes the load of others.

    Args:
        samples: In the order of time, at least two.
        own_cpu_seconds: CPU time of what was measured, between the first and the last sample.
        ticks_per_second: The unit of the samples.

    Returns:
        The load.
    """
    first, last = samples[0], samples[-1]
    total = max(1, last.total - first.total)
    foreign = last.busy - first.busy - own_cpu_seconds * ticks_per_second
    seconds_share = [
        (after.steal - before.steal) / max(1, after.total - before.total) for before, after in pairwise(samples)
    ]
    return Load(max(0.0, last.cpus * foreign / total), (last.steal - first.steal) / total, max(seconds_share))


class LoadSampler:
    """Context manager that reads `/proc/stat` every second while something is measured; only Linux has it."""

    def __init__(self) -> None:
        self.samples: list[CpuTimes] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        """Starts."""
        self._read()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Stops."""
        self._stop.set()
        self._thread.join()
        self._read()

    def load(self, own_cpu_seconds: float) -> Load | None:
        """The load of others while the context was open; `None` if the system does not say.

        Args:
            own_cpu_seconds: CPU time of what was measured.
        """
        ticks = os.sysconf("SC_CLK_TCK")
        return load_of(self.samples, own_cpu_seconds, ticks) if len(self.samples) > 1 else None

    def _sample(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN_SAMPLES):
            self._read()

    def _read(self) -> None:
        if STAT.is_file():
            self.samples.append(parse_stat(STAT.read_text(encoding="ascii")))


def describe_machine() -> dict[str, Any]:
    """Names processor, cores, memory, GPU, threads, versions and the state of the code."""
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]),
        "threads": os.environ.get("OMP_NUM_THREADS", "as PyTorch chooses"),
        "python": platform.python_version(),
        "commit": _output(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]),
        "versions": {name: _version(name) for name in PACKAGES},
        "code": hash_of_code(("lora_lightning", "configs")),
        "scripts": hash_of_code(("benchmarks/comparison", "benchmarks/peers")),
    }


@cache
def hash_of_code(folders: tuple[str, ...]) -> str:
    """Names the content of the code, so that only numbers of the same code are continued, whatever the commit is.

    Args:
        folders: Below this repository.
    """
    found = hashlib.sha256()
    for file in sorted(_code_files(REPOSITORY / folder for folder in folders)):
        found.update(f"{file.relative_to(REPOSITORY)}\n".encode() + file.read_bytes())
    return found.hexdigest()[:12]


def _code_files(folders: Iterable[Path]) -> Iterator[Path]:
    for folder in folders:
        yield from (file for file in folder.rglob("*") if file.suffix in SUFFIXES and file.is_file())


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1] if found else platform.processor()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _output(command: list[str]) -> str:
    """What a program prints; empty if it is not there or fails."""
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError):
        return ""
