"""Rows of how the time of a step grows, each a point: with r, adapted modules, tokens of a text, and model size.

One thing differs from a step of MiniLM with r = 8 on all linear layers and 32 texts of 64 tokens. All texts of a row
have the same length, so that nobody's batches need padding, and the base has no dropout.
"""

import json
import random
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from comparison.kept import kept
from comparison.row import Row, Rows, Side, milliseconds_a_step, whole_seconds
from comparison.settings import CONFIGS, ENCODER, Settings, package_folder, program
from comparison.training_rows import CLOCK, LOGS, OUR_RECIPE, PEERS_RECIPE, QUICK_STEPS, QUIET, TRAINING_ONLY
from comparison.turns import run_side

STEPS, BATCH_SIZE = 12, 32
VALIDATION_SHARE = 0.1  # of our texts; all texts take as long, so that it doesn't matter which ones are trained on
WORDS = ("time", "people", "year", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state")
ATTENTION = ("query", "key", "value", "attention.output.dense")
LINEAR = ("query", "key", "value", "intermediate.dense", "output.dense")  # the last one is in the attention, too


@dataclass(frozen=True)
class Point:
    """What a step is made of.

    Attributes:
        title: What differs from the others.
        r: Of every adapter.
        modules: Adapted ones, by the ends of their names.
        tokens: Of each text, with the two marks around it.
        layers: Of a random BERT in place of MiniLM; `None` for MiniLM.
        hidden: Its width, a multiple of 64.
    """

    title: str
    r: int = 8
    modules: tuple[str, ...] = LINEAR
    tokens: int = 64
    layers: int | None = None
    hidden: int = 384


POINTS = {
    **{f"r_{r}": Point(f"r = {r}", r=r) for r in (4, 16, 64)},
    "modules_6": Point("6 adapted modules", modules=("query",)),
    "modules_24": Point("24 adapted modules", modules=ATTENTION),
    "modules_36": Point("36 adapted modules"),
    **{f"tokens_{tokens}": Point(f"texts of {tokens} tokens", tokens=tokens) for tokens in (16, 64, 256)},
    **{
        f"size_{layers}x{hidden}": Point(f"a random BERT of {layers} x {hidden}", layers=layers, hidden=hidden)
        for layers, hidden in ((3, 192), (6, 384), (12, 768))
    },
}


def growth(settings: Settings, name: str) -> Row:
    """The time of a step beside the peer's.

    Args:
        settings: What the command line says.
        name: One of `POINTS`.
    """
    point, steps = POINTS[name], QUICK_STEPS if settings.quick else STEPS
    model, file = base_of(settings, point), texts_of(settings, point.tokens)
    lora = {"r": point.r, "lora_alpha": 2 * point.r, "lora_dropout": 0.05, "target_modules": point.modules}
    lora |= {"modules_to_save": None}  # the config trains the pooler, too
    words = ["fit", "--config", CONFIGS / "text_classification/minilm_lora.yaml", f"--data.train_file={file}"]
    words += [f"--model.init_args.lora={json.dumps(lora)}", f"--model.backbone={model}", "--model.base_dropout=0"]
    words += [f"--data.max_length={point.tokens}", f"--data.validation_share={VALIDATION_SHARE}"]
    words += [f"--trainer.max_steps={steps}", LOGS, "--trainer.precision=32-true", *TRAINING_ONLY, QUIET, CLOCK]
    words += [f"--model.init_args.optimization={json.dumps(OUR_RECIPE)}"]
    more = ["--model", model, "--data", file, "--max-length", point.tokens, "--steps", steps, "--dropout", 0]
    more += ["--r", point.r, "--targets", ",".join(point.modules), "--no-progress", *PEERS_RECIPE]
    ours = Side("ours", program(*words), milliseconds_a_step)
    peer = Side("Trainer + PEFT", settings.module("transformers", "trainer_texts", *more), milliseconds_a_step)
    return Row(f"growth: a step with {point.title}, no dropout of the base", "ms", (ours,), (peer,))


def base_of(settings: Settings, point: Point) -> Path:
    """The folder of the model; a random one is made once, with MiniLM's tokenizer.

    Args:
        settings: What the command line says.
        point: Says which one.
    """
    encoder = package_folder(ENCODER) / "model"
    if point.layers is None:
        return encoder

    def make(folder: Path) -> None:
        words = (str(encoder), str(folder), str(point.layers), str(point.hidden))
        command = (sys.executable, "-m", "comparison.random_encoder", *words)
        run_side(Side("a random encoder", command, whole_seconds))

    return kept(settings, f"random_{point.layers}x{point.hidden}", make)


def texts_of(settings: Settings, tokens: int) -> Path:
    """Writes texts of words that are one token each, with two labels in turn.

    Args:
        settings: What the command line says.
        tokens: Of each text, with the two marks around it.

    Returns:
        A TSV file with the columns `text` and `label`; enough rows for all steps beside those that ours holds out.
    """
    drawn, rows = random.Random(0), round(BATCH_SIZE * (STEPS + 1) / (1 - VALIDATION_SHARE))  # noqa: S311
    texts = (" ".join(drawn.choices(WORDS, k=tokens - 2)) for _ in range(rows))
    lines = ["text\tlabel", *(f"{text}\t{'no' if row % 2 else 'yes'}" for row, text in enumerate(texts))]
    file = settings.work / f"texts_of_{tokens}.tsv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


ROWS: Rows = {f"growth_{name}": partial(growth, name=name) for name in POINTS}
