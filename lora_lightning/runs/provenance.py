"""The provenance of a run: versions of packages, and the git commit of the user's folder."""

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "lora-lightning",
    "torch",
    "lightning",
    "transformers",
    "peft",
    "bitsandbytes",
    "torchmetrics",
    "datasets",
    "tokenizers",
    "safetensors",
    "numpy",
)


def package_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that affect the results of a run.

    Returns:
        Versions by the names that `pip` uses. Packages that are not installed are omitted.
    """
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def git_state(folder: Path) -> dict[str, Any] | None:
    """Returns the current commit of the git repository that a folder belongs to.

    Args:
        folder: For example the working directory.

    Returns:
        `commit` (hexadecimal digits) and `changed` (whether tracked files differ from it); `None` outside a
        repository, before its first commit, or without git.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603  # fixed words
            ["git", "-C", str(folder), *words],  # noqa: S607  # whichever git the user has
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
