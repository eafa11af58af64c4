"""Rows of the other commands: the time of plan, merge and compress, and the plan's peak memory beside the real one."""

import sys
from functools import partial
from pathlib import Path

from comparison.row import Row, Rows, Side, logged, whole_seconds
from comparison.settings import CONFIGS, Settings, program
from comparison.trained_run import trained_run

ONE_THREAD = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # as in `plan_memory.py`
SCRIPT = Path(__file__).with_name("planned_memory.py")


def plan(settings: Settings) -> Row:
    """`plan` of the quickstart."""
    del settings
    ours = Side("ours", program("plan", "--config", CONFIGS / "quickstart.yaml"), whole_seconds)
    return Row("`plan` of the quickstart", "s", (ours,))


def merge(settings: Settings) -> Row:
    """`merge` of the CLINC150 run, with its checks."""
    words = ("merge", trained_run(settings), "--output", "{scratch}/merged")
    return Row("`merge` with its checks", "s", (Side("ours", program(*words), whole_seconds),))


def compress(settings: Settings) -> Row:
    """`compress` of the CLINC150 run, with its checks."""
    words = ("compress", trained_run(settings), "--output", "{scratch}/compressed", "--margin", 5)
    return Row("`compress` with its checks", "s", (Side("ours", program(*words), whole_seconds),))


def memory(settings: Settings, name: str) -> Row:
    """The plan's peak beside the peak of the run, both less what was resident before the weights load.

    Args:
        settings: What the command line says.
        name: Of a run in `plan_memory.py`.
    """
    del settings
    planned, measured = (
        Side(side, (sys.executable, str(SCRIPT), step, name), logged("mib"), ONE_THREAD)
        for side, step in (("plan", "predict"), ("the run", "run"))
    )
    return Row(f"peak memory by `plan` beside a run: {name}", "MiB", (planned,), (measured,))


ROWS: Rows = {
    "plan": plan,
    "merge": merge,
    "compress": compress,
    "memory_encoder": partial(memory, name="encoder, LoRA"),
    "memory_decoder": partial(memory, name="decoder, LoRA"),
}
