"""Installs each peer into an environment of its own: transformers with PEFT, and litgpt.

PyTorch, in this very build, and transformers with what it needs have the versions of this environment, so that the
peers differ in nothing else; the comparison refuses sides that differ. Other options are passed to pip.

Example:
    python benchmarks/peers/install.py --output ../peers
"""

import argparse
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

NEEDED = ("torch", "transformers", "peft", "datasets", "accelerate", "tokenizers", "safetensors", "numpy")
OPTIONAL = ("bitsandbytes", "gguf")  # for QLoRA and SmolLM2
WHEELS = "https://download.pytorch.org/whl/"  # has a folder for each build, such as `cpu` or `cu130`


def pinned(names: tuple[str, ...]) -> list[str]:
    """Requirements with the versions of this environment; packages that it lacks are left out."""
    found = []
    for name in names:
        try:
            found.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            print(f"{name} is not installed here, so the peers do not get it, either", file=sys.stderr)
    return found


def index_of(torch_version: str) -> list[str]:
    """Options of pip for the index that has a build of PyTorch, such as that of 2.13.0+cpu; none for PyPI's build."""
    build = torch_version.partition("+")[2]
    return ["--extra-index-url", WHEELS + build] if build else []


def install(folder: Path, packages: list[str], options: list[str], index: list[str]) -> bool:
    """Makes an environment.

    Args:
        folder: Of the environment.
        packages: As pip takes them.
        options: Further ones of pip.
        index: Those for the index of the build, which is asked only if pip's own sources lack it: pip looks up every
            package there, and waits for each where it cannot be reached.

    Returns:
        Whether all packages could be installed.
    """
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)  # noqa: S603
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *packages, *options]
    attempts = [command, [*command, *index]] if index else [command]
    return any(subprocess.run(each, check=False).returncode == 0 for each in attempts)  # noqa: S603


def main() -> None:
    """Installs all peers; one that cannot be installed is named, and its rows are left out later."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, type=Path, help="folder for the environments")
    options, rest = parser.parse_known_args()
    index = index_of(version("torch"))
    peers = {"transformers": pinned(NEEDED + OPTIONAL), "litgpt": [*pinned(("torch",)), "litgpt==0.5.13"]}
    failed = [name for name, packages in peers.items() if not install(options.output / name, packages, rest, index)]
    if failed:
        sys.exit(f"not installed: {', '.join(failed)}; pip's output is above.")


if __name__ == "__main__":
    main()
