"""Folders that rows start from, made once for each state of the code, such as a trained run or cached tokens."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from comparison.machine import hash_of_code
from comparison.settings import Settings


def kept(settings: Settings, name: str, make: Callable[[Path], object]) -> Path:
    """Makes a folder, unless it was made to its end with this code.

    Args:
        settings: What the command line says; quick runs have folders of their own.
        name: Of the folder.
        make: Fills it; what an interrupted call left there is deleted before.

    Returns:
        The folder.
    """
    code = hash_of_code(("lora_lightning", "configs", "benchmarks/comparison", "benchmarks/peers"))
    folder = settings.work / "kept" / f"{name}_{code}"
    done = folder.with_name(f"{folder.name}.done")
    if not done.is_file():
        print(f"  {name}, which this row needs", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        make(folder)
        done.touch()
    return folder
