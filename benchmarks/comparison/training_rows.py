"""Rows of training: CLINC150 on MiniLM, language modeling on SmolLM2, and the time to a stated quality.

Operations are those of the plain algorithm on real tokens: each weight of a linear layer takes part in two products,
forward and backward to the inputs, with 2 operations each. Adapters, attention and elementwise work are not counted.
"""

import json
import sys
from functools import partial
from typing import Any

from comparison.row import Limit, Row, Rows, Side, logged, samples_per_second, seconds_to_quality, tokens_per_second
from comparison.settings import CONFIGS, DECODER, ENCODER, Settings, package_folder, program

CLOCK = "--trainer.callbacks+=comparison.step_clock.StepClock"
TRAINING_ONLY = ("--trainer.limit_val_batches=0", "--test_after_fit=false", "--trainer.enable_progress_bar=false")
LOGS = "--trainer.logger.init_args.save_dir={scratch}"
PASSES = 4  # operations a weight and token
MINILM_WEIGHTS = 6 * (4 * 384**2 + 2 * 384 * 1536)
SMOLLM2_WEIGHTS = 30 * (2 * 576**2 + 2 * 576 * 192 + 3 * 576 * 1536) + 49152 * 576
TYPES = {"float32": "32-true", "bf16": "bf16-mixed"}  # and Lightning's names
QUALITY = 0.94
QUICK_STEPS = 3
PEERS = {  # by script
    "trainer_clinc150": "Trainer + PEFT",
    "trainer_texts": "Trainer + PEFT",
    "trainer_squad": "Trainer + PEFT",
    "bare_clinc150": "bare loop + PEFT",
}


def products(precision: str, weights: int, goal: float | None) -> Limit:
    """Dense products as the limit.

    Args:
        precision: `float32` or `bf16`.
        weights: In the linear layers of the base.
        goal: Wanted share.
    """
    name = precision.replace("bf16", "bfloat16")
    side = Side(f"dense products in {name}, GFLOP/s", limit_command(name), logged("rate"))
    return Limit(side, lambda outcome: PASSES * weights * tokens_per_second(outcome) / 1e9, goal)


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
    command = ["fit", "--config", CONFIGS / config, f"--model.init_args.lora={json.dumps(lora)}", *words]
    command += [f"--model.base_dropout={dropout}"]
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
    more = ["--model", package_folder(ENCODER) / "model", *words]
    more += ["--steps", QUICK_STEPS] * settings.quick + ["--bf16"] * (precision == "bf16")
    command = settings.module("transformers", script, *more)
    return Side(f"{PEERS[script]}, {precision}", command, samples_per_second)


def our_classifier(settings: Settings, precision: str, dropout: float) -> Side:
    """`fit` on CLINC150."""
    data = f"--data.data_dir={settings.data_folder('clinc150')}"
    return our_encoder(settings, "clinc150/minilm_lora.yaml", precision, dropout, data)


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
    "grouped": ("grouped by length, with dropout", ("--group",), 0.1, 1.6),
    "tuned": ("grouped by length, no dropout of the base", ("--group", "--dropout", "0"), 0.0, 1.5),
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
    ours = our_classifier(settings, precision, dropout)
    peer = peer_classifier(settings, script, precision, *words)
    limit = products(precision, MINILM_WEIGHTS, 0.7 if precision == "float32" else None)
    goals = goal if script == "trainer_clinc150" else None
    return Row(f"CLINC150 in {precision}, peer {how}", "samples/s", (ours,), (peer,), goals, limit)


def clinc150_best(settings: Settings) -> Row:
    """The best precision of each side; the peer is tuned."""
    _, words, dropout, _ = USES["tuned"]
    ours = tuple(our_classifier(settings, precision, dropout) for precision in TYPES)
    peers = tuple(peer_classifier(settings, "trainer_clinc150", precision, *words) for precision in TYPES)
    return Row("CLINC150, best precision of each side, peer tuned", "samples/s", ours, peers, 2.0)


def our_language_model(settings: Settings, precision: str, *words: str) -> Side:
    """`fit` on SmolLM2, some steps of 4 rows of 256 tokens, with r = 8 on all linear layers."""
    lora = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": "all-linear"}
    command = ["fit", *words, f"--model.init_args.lora={json.dumps(lora)}", "--data.context_length=256"]
    command += ["--data.batch_size=4", "--trainer.accumulate_grad_batches=1", "--trainer.callbacks=null", LOGS]
    command += [f"--trainer.max_steps={language_steps(settings)}", f"--trainer.precision={TYPES[precision]}"]
    return Side(f"ours, {precision}", program(*command, *TRAINING_ONLY, CLOCK), tokens_per_second)


def peer_language_model(settings: Settings, script: str, precision: str, *words: object) -> Side:
    """A peer on the same rows; `litgpt_causal_lm` makes its own.

    Args:
        settings: What the command line says.
        script: `trainer_causal_lm`, `bare_causal_lm` or `litgpt_causal_lm`.
        precision: `float32` or `bf16`.
        words: The data.
    """
    more = ["--steps", language_steps(settings), *["--bf16"] * (precision == "bf16")]
    if script == "litgpt_causal_lm":
        return Side(f"litgpt, {precision}", settings.module("litgpt", script, *more), tokens_per_second)
    more += ["--model", package_folder(DECODER), *words]
    name = {"trainer_causal_lm": "Trainer + PEFT", "bare_causal_lm": "bare loop + PEFT"}[script]
    return Side(f"{name}, {precision}", settings.module("transformers", script, *more), tokens_per_second)


def language_steps(settings: Settings) -> int:
    """Training steps of a language model."""
    return 2 if settings.quick else 16


def packed_text(settings: Settings, precision: str, script: str = "trainer_causal_lm") -> Row:
    """Packed WikiText-2 against a peer."""
    folder = settings.data_folder("text/wikitext-2-raw")
    config = str(CONFIGS / "causal_lm/smollm2_offline_wikitext2_lora.yaml")
    ours = our_language_model(settings, precision, "--config", config, f"--data.data_dir={folder}")
    peer = peer_language_model(settings, script, precision, "--text", folder / "wiki.train.raw")
    goal, share = {"float32": (1.25, 0.8), "bf16": (1.6, 0.65)}[precision]
    limit = products(precision, SMOLLM2_WEIGHTS, share)
    title = f"packed text on SmolLM2-135M in {precision}"
    return Row(title, "tokens/s", (ours,), (peer,), goal if script == "trainer_causal_lm" else None, limit)


def responses_only(settings: Settings, precision: str) -> Row:
    """Instructions of which the responses are learnt."""
    file = settings.data_folder("text/alpaca") / "alpaca_data.json"
    config = str(CONFIGS / "causal_lm/smollm2_offline_instructions_lora.yaml")
    ours = our_language_model(settings, precision, "--config", config, f"--data.train_file={file}")
    words = ("--instructions", file, "--batch-size", 16)  # texts, as many as ours packs into 4 rows
    peer = peer_language_model(settings, "trainer_causal_lm", precision, *words)
    title = f"instructions, responses only, on SmolLM2-135M in {precision}"
    return Row(title, "tokens/s", (ours,), (peer,), 1.5)


def time_to_quality(settings: Settings) -> Row:
    """From the start of the process to a validation with 94 % of the in-scope queries right; all linear layers."""
    quality = 0.0 if settings.quick else QUALITY
    words: list[Any] = ["fit", "--config", CONFIGS / "clinc150/minilm_lora.yaml", LOGS]
    words += [f"--data.data_dir={settings.data_folder('clinc150')}", "--trainer.enable_progress_bar=false"]
    words += ["--test_after_fit=false", CLOCK, f"--trainer.callbacks.quality={quality}"]
    words += ["--trainer.val_check_interval=" + (str(QUICK_STEPS) if settings.quick else "0.5")]
    peer = ["--quality", str(quality), "--targets", "all-linear", "--pooler"]
    peer += [] if settings.quick else ["--epochs", "5"]
    ours = Side("ours", program(*words), seconds_to_quality)
    trainer = peer_classifier(settings, "trainer_clinc150", "float32", *peer)
    trainer = Side("Trainer + PEFT", trainer.command, seconds_to_quality)
    return Row("time to 94 % of the in-scope queries of CLINC150", "s", (ours,), (trainer,), 0.4)


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
    return {**found, "time_to_quality": time_to_quality}


ROWS = _rows()
