"""Files around a model, changed at random: backbone folders, checkpoints, and what `predict` reads."""

import io
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.conftest import TinyBackbone
from tests.fuzzing.data_files import FORMATS, Mutation, changed, changed_tree, command
from tests.fuzzing.outcome import RAN, Case, outcome_of

BACKBONE_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
TO_PREDICT = {
    "CLINC150 JSON": ("queries.txt", b"w1 w2\nw3 w4 \xc3\xa9\n"),
    "SQuAD JSON": ("dev-v2.0.json", None),  # of the data itself
    "plain text/.jsonl": ("prompts.jsonl", b'{"prompt": "w1 w2"}\n{"prompt": "w3"}\n'),
}


def backbone_cases(folder: Path, tiny_backbone: TinyBackbone, count: int, seed: int = 0) -> Iterator[Case]:
    """Changes one file of a backbone's folder in many ways.

    Args:
        folder: For the files.
        tiny_backbone: Tiny weights of an architecture.
        count: How many cases.
        seed: Of the choices; the same seed gives the same cases.

    Yields:
        `fit` on each changed folder.
    """
    kind = FORMATS["CLINC150 JSON"]
    options, _ = kind.save(folder / "data")
    for number in range(count):
        random = _random("backbone", number, seed)
        here = Path(shutil.copytree(tiny_backbone("bert"), folder / str(number)))
        file = here / BACKBONE_FILES[number % len(BACKBONE_FILES)]
        mutation, content = changed(file.read_bytes(), file.suffix, random)
        file.write_bytes(content)
        words = (*command(kind, tiny_backbone, folder), *options, f"--model.backbone={here}")
        yield Case("backbone folder", f"{file.name}: {mutation}", words, folder / "data")


def checkpoint_cases(folder: Path, tiny_backbone: TinyBackbone, count: int, seed: int = 0) -> Iterator[Case]:
    """Changes a checkpoint in many ways.

    Args:
        folder: For the files.
        tiny_backbone: Tiny weights of an architecture.
        count: How many cases.
        seed: Of the choices; the same seed gives the same cases.

    Yields:
        `validate` on each changed checkpoint, and every other time `fit`, which goes on from it.
    """
    run = trained_run("CLINC150 JSON", folder, tiny_backbone)
    original = (run / "checkpoints/last.ckpt").read_bytes()
    for number in range(count):
        random = _random("checkpoint", number, seed)
        mutation, content = _changed_checkpoint(original, random)
        path = folder / f"{number}.ckpt"
        path.write_bytes(content)
        stage = ("validate", "fit")[number % 2]
        more = ["--trainer.max_epochs=9", "--trainer.logger.save_dir=again"] if stage == "fit" else []
        words = (stage, f"--config={run / 'config.yaml'}", f"--ckpt_path={path}", *more)
        yield Case("checkpoint", f"{stage}: {mutation}", words, folder / "data")


def prediction_cases(folder: Path, tiny_backbone: TinyBackbone, count: int, seed: int = 0) -> Iterator[Case]:
    """Changes what `predict` reads in many ways: queries, SQuAD's questions, prompts.

    Args:
        folder: For the files.
        tiny_backbone: Tiny weights of an architecture.
        count: How many cases.
        seed: Of the choices; the same seed gives the same cases.

    Yields:
        `predict` on each changed file.
    """
    for name, (file, content) in TO_PREDICT.items():
        place = folder / name.partition(" ")[0]
        run = trained_run(name, place, tiny_backbone)
        right = content or (place / "data" / file).read_bytes()
        for number in range(-(-count // len(TO_PREDICT))):
            mutation, changed_content = changed(right, Path(file).suffix, _random(name, number, seed))
            path = place / f"{number}-{file}"
            path.write_bytes(changed_content)
            words = ["predict", f"--config={run / 'config.yaml'}", f"--ckpt_path={run / 'checkpoints/last.ckpt'}"]
            ending = ".json" if name == "SQuAD JSON" else ".csv"
            words += [f"--data.predict_file={path}", f"--predictions.file={place}/answers{ending}"]
            yield Case("file to predict", f"{file}: {mutation}", tuple(words), place / "data")


def _random(name: str, number: int, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), number])


def trained_run(name: str, folder: Path, tiny_backbone: TinyBackbone) -> Path:
    """The folder of a finished run of one step."""
    options, _ = FORMATS[name].save(folder / "data")
    words = (*command(FORMATS[name], tiny_backbone, folder), *options, "--trainer.logger.name=run")
    outcome = outcome_of(Case(name, "unchanged", words, folder / "data"))
    if outcome.kind != RAN:
        msg = f"{name} does not run as it is: {outcome.message}"
        raise AssertionError(msg)
    return folder / "data" / "logs" / "run" / "version_0"


def _changed_checkpoint(content: bytes, random: np.random.Generator) -> Mutation:
    """Changes bytes of the file, or one value or tensor in it."""
    if random.random() < 0.4:
        return changed(content, ".ckpt", random)
    checkpoint: dict[str, Any] = torch.load(io.BytesIO(content), weights_only=True)
    mutation = changed_tree(checkpoint, random)
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    return mutation, buffer.getvalue()
