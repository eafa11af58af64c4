"""Rows of training: CLINC150 on MiniLM, language modeling on SmolLM2, quality in bf16, and the time to a quality.

Both sides train the same parameters with the same optimizer, schedule and gradient clipping, so that their losses can
be compared. Operations are those of the plain algorithm on real tokens: each weight of a linear layer takes part in two
products, forward and backward to the inputs, with 2 operations each; nothing needs a gradient of the embeddings, so
that query, key and value of the first layer have the forward product only. Adapters, attention and elementwise work are
not counted.
"""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from comparison.kept import kept
from comparison.row import (
    Limit,
    Row,
    Rows,
    Side,
    logged,
    logged_percent,
    samples_per_second,
    seconds_to_quality,
    seconds_to_quality_at_least,
    tokens_per_second,
    whole_seconds,
)
from comparison.settings import CONFIGS, DECODER, ENCODER, Settings, package_folder, program
from comparison.turns import run_side

CLOCK = "--trainer.callbacks+=comparison.step_clock.StepClock"
QUIET = "--trainer.enable_progress_bar=false"
TRAINING_ONLY = ("--trainer.limit_val_batches=0", "--test_after_fit=false")
LOGS = "--trainer.logger.init_args.save_dir={scratch}"
PASSES = 4  # operations a weight and token: two products
MINILM_OPERATIONS = PASSES * 6 * (4 * 384**2 + 2 * 384 * 1536) - 2 * 3 * 384**2  # a token
SMOLLM2_LAYERS = 30 * (2 * 576**2 + 2 * 576 * 192 + 3 * 576 * 1536)
SMOLLM2_OPERATIONS = PASSES * (SMOLLM2_LAYERS + 49152 * 576) - 2 * (576**2 + 2 * 576 * 192)
OUR_RECIPE = {"learning_rate": 2e-3, "schedule": "cosine", "warmup_share": 0.06, "weight_decay": 0.01}
PEERS_RECIPE = ("--learning-rate", 2e-3, "--schedule", "cosine", "--warmup", 0.06, "--weight-decay", 0.01)
LANGUAGE_RATE = 5e-4
TYPES = {"float32": "32-true", "bf16": "bf16-mixed"}  # and Lightning's names
QUALITY = 0.94
SEEDS = 5  # of the time to a quality
QUICK_STEPS = 3
STEPS, MEGABATCH = 16, 50  # of a language model; transformers sorts the texts of 50 batches, the longest first
PEERS = {  # by script
    "trainer_clinc150": "Trainer + PEFT",
    "trainer_texts": "Trainer + PEFT",
    "trainer_squad": "Trainer + PEFT",
    "bare_clinc150": "bare loop + PEFT",
}


def products(precision: str, operations: int, goal: float | None) -> Limit:
    """Dense products as the limit.

    Args:
        precision: `float32` or `bf16`.
        operations: Of a token.
        goal: Wanted share.
    """
    name = precision.replace("bf16", "bfloat16")
    side = Side(f"dense products in {name}, GFLOP/s", limit_command(name), logged("rate"))
    return Limit(side, lambda outcome: operations * tokens_per_second(outcome) / 1e9, goal)


def limit_command(what: str) -> tuple[str, ...]:
    """Measures a limit of the machine."""
    return (sys.executable, "-m", "comparison.machine_limits", what)


def machine_limits(settings: Settings) -> Row:
    """What the machine can do, with nothing else running."""
    del settings
    names = {
        "float32": "dense products in float32, GFLOP/s",
        "bfloat16": "dense products in bfloat16, GFLOP/s",
        "copies": "copies in memory, GB/s",
    }
    limits = tuple(Side(name, limit_command(what), logged("rate")) for what, name in names.items())
    return Row("limits of the machine", "10^9/s", limits)


def our_encoder(settings: Settings, config: str, precision: str, dropout: float, *words: object) -> Side:
    """`fit` on MiniLM, one epoch, with r = 8 on query and value.

    Args:
        settings: What the command line says.
        config: Below `configs`.
        precision: `float32` or `bf16`.
        dropout: Of the base.
        words: Further options, such as those of the data.
    """
    lora = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": "attention-qv"}
    lora |= {"modules_to_save": None}  # some configs train the pooler, too
    command = ["fit", "--config", CONFIGS / config, f"--model.init_args.lora={json.dumps(lora)}", *words]
    command += [f"--model.base_dropout={dropout}", f"--model.init_args.optimization={json.dumps(OUR_RECIPE)}"]
    command += [f"--trainer.max_steps={QUICK_STEPS}" if settings.quick else "--trainer.max_epochs=1", LOGS]
    command += [f"--trainer.precision={TYPES[precision]}", *TRAINING_ONLY, CLOCK]
    return Side(f"ours, {precision}", program(*command), samples_per_second)


def peer_encoder(settings: Settings, script: str, precision: str, *words: object) -> Side:
    """A peer on MiniLM, one epoch.

    Args:
        settings: What the command line says.
        script: One of `PEERS`.
        precision: `float32` or `bf16`.
        words: Further options of the script, such as its data.
    """
    more = ["--model", package_folder(ENCODER) / "model", *PEERS_RECIPE, *words]
    more += ["--steps", QUICK_STEPS] * settings.quick + ["--bf16"] * (precision == "bf16")
    command = settings.module("transformers", script, *more)
    return Side(f"{PEERS[script]}, {precision}", command, samples_per_second)


def our_classifier(settings: Settings, precision: str, dropout: float) -> Side:
    """`fit` on CLINC150."""
    words = (f"--data.data_dir={settings.data_folder('clinc150')}", "--model.label_smoothing=0")
    return our_encoder(settings, "clinc150/minilm_lora.yaml", precision, dropout, *words)


def peer_classifier(settings: Settings, script: str, precision: str, *words: str) -> Side:
    """A peer on CLINC150.

    Args:
        settings: What the command line says.
        script: `trainer_clinc150` or `bare_clinc150`.
        precision: `float32` or `bf16`.
        words: Further options of the script.
    """
    return peer_encoder(settings, script, precision, "--data", settings.data_folder("clinc150"), *words)


# How the peer is used: its options, the dropout of the base on both sides, and the goal.
USES: dict[str, tuple[str, tuple[str, ...], float, float]] = {
    "as_left": ("as a user leaves it", (), 0.1, 2.5),
    "grouped": ("grouped by length, with dropout", ("--group", "--no-progress"), 0.1, 1.6),
    "tuned": ("grouped by length, no dropout of the base", ("--group", "--no-progress", "--dropout", "0"), 0.0, 1.5),
}


def clinc150(settings: Settings, use: str, precision: str, script: str = "trainer_clinc150") -> Row:
    """Training on CLINC150 against a peer.

    Args:
        settings: What the command line says.
        use: One of `USES`.
        precision: Of both sides.
        script: The peer's.
    """
    how, words, dropout, goal = USES[use]
    ours = as_used(our_classifier(settings, precision, dropout), use)
    peer = peer_classifier(settings, script, precision, *words)
    limit = products(precision, MINILM_OPERATIONS, 0.7 if precision == "float32" else None)
    is_trainer = script == "trainer_clinc150"
    title = f"CLINC150 in {precision}, peer {how}"
    return Row(title, "samples/s", (ours,), (peer,), goal if is_trainer else None, limit, same_loss=is_trainer)


def as_used(side: Side, use: str) -> Side:
    """Our side with a progress bar where the peer has one."""
    return side if use == "as_left" else with_words(side, QUIET)


def with_words(side: Side, *words: object) -> Side:
    """The same command with further options."""
    return replace(side, command=(*side.command, *map(str, words)))


def clinc150_best(settings: Settings) -> Row:
    """The best precision of each side; the peer is tuned."""
    _, words, dropout, _ = USES["tuned"]
    ours = tuple(as_used(our_classifier(settings, precision, dropout), "tuned") for precision in TYPES)
    peers = tuple(peer_classifier(settings, "trainer_clinc150", precision, *words) for precision in TYPES)
    return Row("CLINC150, best precision of each side, peer tuned", "samples/s", ours, peers, 2.0)


def our_language_model(settings: Settings, precision: str, steps: int, rows: int, *words: object) -> Side:
    """`fit` on SmolLM2, some steps of 1,024 tokens, with r = 8 on all linear layers.

    Args:
        settings: What the command line says.
        precision: `float32` or `bf16`.
        steps: Unless the run is quick.
        rows: Of a step.
        words: The config and the data.
    """
    lora = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
    recipe = {**OUR_RECIPE, "learning_rate": LANGUAGE_RATE}
    command = ["fit", *words, f"--model.init_args.lora={json.dumps(lora)}", f"--data.context_length={1024 // rows}"]
    command += [f"--data.batch_size={rows}", "--trainer.accumulate_grad_batches=1", "--trainer.callbacks=null", LOGS]
    command += [
        f"--model.init_args.optimization={json.dumps(recipe)}",
        QUIET,
        f"--trainer.precision={TYPES[precision]}",
    ]
    command += [f"--trainer.max_steps={language_steps(settings, steps)}"]
    return Side(f"ours, {precision}", program(*command, *TRAINING_ONLY, CLOCK), tokens_per_second)


def peer_language_model(settings: Settings, script: str, precision: str, steps: int, *words: object) -> Side:
    """A peer on the same rows; `litgpt_causal_lm` makes its own.

    Args:
        settings: What the command line says.
        script: `trainer_causal_lm`, `bare_causal_lm` or `litgpt_causal_lm`.
        precision: `float32` or `bf16`.
        steps: Unless the run is quick.
        words: The data.
    """
    more = ["--steps", language_steps(settings, steps), *["--bf16"] * (precision == "bf16")]
    if script == "litgpt_causal_lm":
        return Side(f"litgpt, {precision}", settings.module("litgpt", script, *more), tokens_per_second)
    more += ["--model", package_folder(DECODER), *words]
    name = {"trainer_causal_lm": "Trainer + PEFT", "bare_causal_lm": "bare loop + PEFT"}[script]
    return Side(f"{name}, {precision}", settings.module("transformers", script, *more), tokens_per_second)


def language_steps(settings: Settings, steps: int) -> int:
    """Training steps of a language model."""
    return 2 if settings.quick else steps


def packed_text(settings: Settings, precision: str, script: str = "trainer_causal_lm") -> Row:
    """Packed WikiText-2 against a peer."""
    folder = settings.data_folder("text/wikitext-2-raw")
    config = str(CONFIGS / "causal_lm/smollm2_offline_wikitext2_lora.yaml")
    ours = our_language_model(settings, precision, STEPS, 4, "--config", config, f"--data.data_dir={folder}")
    peer = peer_language_model(settings, script, precision, STEPS, "--text", folder / "wiki.train.raw")
    goal, share = {"float32": (1.25, 0.8), "bf16": (1.6, 0.65)}[precision]
    limit = products(precision, SMOLLM2_OPERATIONS, share)
    title = f"packed text on SmolLM2-135M in {precision}"
    if script == "trainer_causal_lm":
        return Row(title, "tokens/s", (ours,), (peer,), goal, limit)
    is_same = script != "litgpt_causal_lm"  # which has random weights
    return Row(title, "tokens/s", (ours,), (peer,), None, limit, same_model=is_same, same_loss=False)


def quantized_text(settings: Settings, precision: str) -> Row:
    """Packed WikiText-2 with the base in NF4, which both sides multiply in the precision of the row."""
    folder = settings.data_folder("text/wikitext-2-raw")
    base = plain_decoder(settings)
    config = str(CONFIGS / "causal_lm/smollm2_offline_wikitext2_lora.yaml")
    data = ("--config", config, f"--data.data_dir={folder}", f"--model.backbone={base}")
    ours = our_language_model(settings, precision, STEPS, 4, *data, quantization(precision))
    words = ("--text", folder / "wiki.train.raw", "--qlora", "--model", base)  # in place of the package's
    peer = peer_language_model(settings, "trainer_causal_lm", precision, STEPS, *words)
    title = f"packed text on SmolLM2-135M with a 4-bit base multiplied in {precision}"
    return Row(title, "tokens/s", (ours,), (peer,))


def quantization(precision: str) -> str:
    """Our option for a base in NF4 that is multiplied in a precision."""
    settings = {"bits": 4, "type": "nf4", "compute_dtype": precision.replace("bf16", "bfloat16")}
    return f"--model.quantization={json.dumps(settings)}"


def plain_decoder(settings: Settings) -> Path:
    """SmolLM2 as safetensors, since transformers quantizes no GGUF file; made once."""

    def make(folder: Path) -> None:
        words = ("-m", "comparison.plain_decoder", str(package_folder(DECODER)), str(folder))
        run_side(Side("a copy of SmolLM2", (sys.executable, *words), whole_seconds))

    return kept(settings, "decoder", make)


def responses_only(settings: Settings, precision: str, *, flat: bool = False) -> Row:
    """Instructions of which the responses are learnt; both sides have about 1,000 tokens a step.

    Args:
        settings: What the command line says.
        precision: Of both sides.
        flat: Whether the peer has texts in random order one after another, without padding; or padded and grouped.
    """
    file = settings.data_folder("text/alpaca") / "alpaca_data.json"
    config = str(CONFIGS / "causal_lm/smollm2_offline_instructions_lora.yaml")
    words: tuple[object, ...] = ("--config", config, f"--data.train_file={file}")
    ours = our_language_model(settings, precision, MEGABATCH, 2, *words)
    words = ("--instructions", file, "--context", 512, "--batch-size", 4)  # texts of 248 tokens on average
    peer = peer_language_model(settings, "trainer_causal_lm", precision, MEGABATCH, *words, *["--flat"] * flat)
    how = "without padding" if flat else "grouped by length"
    title = f"instructions, responses only, on SmolLM2-135M in {precision}, peer {how}"
    return Row(title, "tokens/s", (ours,), (peer,), None if flat else 1.5)


def classifier_quality(settings: Settings) -> Row:
    """In-scope accuracy on CLINC150's validation split after 3 epochs, all linear layers; a seed a turn."""
    words: list[Any] = ["fit", "--config", CONFIGS / "clinc150/minilm_lora.yaml", LOGS, QUIET, CLOCK]
    words += [
        f"--data.data_dir={settings.data_folder('clinc150')}",
        "--test_after_fit=false",
        "--seed_everything={seed}",
    ]
    words += (
        ["--trainer.max_steps=3", "--trainer.val_check_interval=3"] if settings.quick else ["--trainer.max_epochs=3"]
    )
    bf16, float32 = (
        Side(precision, program(*words, f"--trainer.precision={TYPES[precision]}"), logged_percent("in_scope_accuracy"))
        for precision in ("bf16", "float32")
    )
    title = "quality: in-scope accuracy on CLINC150 in bf16 beside float32, 3 epochs"
    return Row(title, "% right", (bf16,), (float32,), fewest_turns=3)


def language_quality(settings: Settings) -> Row:
    """Validation loss of SmolLM2 on WikiText-2 after some steps; a seed a turn."""
    folder, steps = settings.data_folder("text/wikitext-2-raw"), language_steps(settings, MEGABATCH)
    config = CONFIGS / "causal_lm/smollm2_offline_wikitext2_lora.yaml"
    more = ["--seed_everything={seed}", f"--trainer.val_check_interval={steps}"]
    more += [f"--trainer.limit_val_batches={2 if settings.quick else 50}"]
    bf16, float32 = (
        replace(
            with_words(
                our_language_model(settings, precision, MEGABATCH, 4, "--config", config, f"--data.data_dir={folder}"),
                *more,
            ),
            name=precision,
            value=logged("validation_loss"),
        )
        for precision in ("bf16", "float32")
    )
    title = f"quality: validation loss of SmolLM2 on WikiText-2 in bf16 beside float32, {MEGABATCH} steps"
    return Row(title, "nats", (bf16,), (float32,), fewest_turns=3)


def time_to_quality(settings: Settings) -> Row:
    """From the start of the process to a validation with 94 % of the in-scope queries right; all linear layers.

    Each turn has a seed of its own, and the better one of the peer with and without our label smoothing, warm-up and
    weight decay counts. Both sides tokenize.
    """
    quality = 0.0 if settings.quick else QUALITY
    words: list[Any] = ["fit", "--config", CONFIGS / "clinc150/minilm_lora.yaml", LOGS]
    words += [f"--data.data_dir={settings.data_folder('clinc150')}", QUIET, "--seed_everything={seed}"]
    words += ["--test_after_fit=false", CLOCK, f"--trainer.callbacks.quality={quality}"]
    words += ["--trainer.val_check_interval=" + (str(QUICK_STEPS) if settings.quick else "0.5")]
    peer = ["--quality", str(quality), "--targets", "all-linear", "--pooler", "--seed", "{seed}", "--no-progress"]
    peer += [] if settings.quick else ["--epochs", "5"]
    recipes = {
        "Trainer + PEFT, our recipe": ["--label-smoothing", "0.1"],
        "Trainer + PEFT, its own": ["--warmup", "0", "--weight-decay", "0"],
    }
    ours = Side("ours", program(*words), seconds_to_quality)
    trainers = tuple(
        Side(
            name,
            peer_classifier(settings, "trainer_clinc150", "float32", *peer, *recipe).command,
            seconds_to_quality_at_least,
        )
        for name, recipe in recipes.items()
    )
    title = "time to 94 % of the in-scope queries of CLINC150"
    return Row(title, "s", (ours,), trainers, 0.4, fewest_turns=SEEDS, same_loss=False)


def _rows() -> Rows:
    found: Rows = {"machine_limits": machine_limits}
    for precision in TYPES:
        end = "" if precision == "float32" else f"_{precision}"
        for use in USES:
            found[f"clinc150_{use}{end}"] = partial(clinc150, use=use, precision=precision)
        found[f"clinc150_bare{end}"] = partial(clinc150, use="tuned", precision=precision, script="bare_clinc150")
    found["clinc150_best"] = clinc150_best
    for precision in TYPES:
        found[f"lm_packed_{precision}"] = partial(packed_text, precision=precision)
        for script, name in (("bare_causal_lm", "bare"), ("litgpt_causal_lm", "litgpt")):
            found[f"lm_packed_{precision}_{name}"] = partial(packed_text, precision=precision, script=script)
        found[f"lm_responses_{precision}"] = partial(responses_only, precision=precision)
        found[f"lm_responses_{precision}_flat"] = partial(responses_only, precision=precision, flat=True)
        found[f"lm_qlora_{precision}"] = partial(quantized_text, precision=precision)
    found |= {"quality_clinc150_bf16": classifier_quality, "quality_lm_bf16": language_quality}
    return {**found, "time_to_quality": time_to_quality}


ROWS = _rows()
