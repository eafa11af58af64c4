"""Installs each peer into an environment of its own: transformers with PEFT, and litgpt.

PyTorch and transformers have the versions of this environment, so that the peers differ in nothing else. Other options
are passed to pip, such as an index that has PyTorch's CPU build.

Example:
    python benchmarks/peers/install.py --output ../peers --extra-index-url https://download.pytorch.org/whl/cpu
"""

import argparse
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

SAME = ("torch", "transformers", "peft", "bitsandbytes", "datasets", "accelerate", "gguf")
PEERS: dict[str, list[str]] = {  # by folder
    "transformers": [f"{name}=={version(name).partition('+')[0]}" for name in SAME],
    "litgpt": [f"torch=={version('torch').partition('+')[0]}", "litgpt==0.5.13"],
}


def install(folder: Path, packages: list[str], options: list[str]) -> bool:
    """Makes an environment.

    Args:
        folder: Of the environment.
        packages: As pip takes them.
        options: Further ones of pip.

    Returns:
        Whether all packages could be installed.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)  # noqa: S603
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages, *options]
    return subprocess.run(command, check=False).returncode == 0  # noqa: S603


def main() -> None:
    """Installs all peers; one that cannot be installed is named, and its rows are left out later."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder for the environments")
    options, rest = parser.parse_known_args()
    failed = [name for name, packages in PEERS.items() if not install(options.output / name, packages, rest)]
    if failed:
        sys.exit(f"not installed: {', '.join(failed)}; pip's output is above.")


if __name__ == "__main__":
    main()
