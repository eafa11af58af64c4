"""What other programs make of a PEFT folder: a small table of rules, each with the date and the code it was read in.

The rules are read, not tried: none of these programs is needed here. A program that refuses a folder says so itself;
one that drops a part or mis-scales it does not, and its answers are wrong.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from lora_lightning.errors import ConfigurationError, suggest_names
from lora_lightning.lora.parameter_names import is_embedding_factor, is_factor

READ_ON = "2026-11-29"
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # values of max_lora_rank
VLLM_DEFAULT_RANK = 16
VLLM_HEADS = {"score", "classifier"}  # in modules_to_save of a sequence classifier
NORMS = ("_layernorm", ".norm")  # in names of tensors that llama.cpp's converter keeps and its runtime skips
SOURCES = {
    "peft": "https://github.com/huggingface/peft, release 0.21.2, src/peft/tuners/lora",
    "vllm": (
        "https://github.com/vllm-project/vllm: vllm/config/lora.py at 01230b4 (ranks), vllm/lora/peft_helper.py at "
        "e745baf (scales by alpha / r of the configuration, drops its other fields), vllm/lora/lora_model.py at "
        "0306474 (tensors), pull request 53555 (heads), issues 36501 (tokens) and 55545 (rsLoRA of experts)"
    ),
    "llama.cpp": (
        "https://github.com/ggml-org/llama.cpp: convert_lora_to_gguf.py at 56bf500 (reads lora_alpha alone, takes "
        "factors and norms), src/llama-adapter.h at 215841f (scales by alpha / columns of B), src/llama-adapter.cpp at "
        "0650ea8 (skips norms)"
    ),
}
TARGETS = tuple(SOURCES)
Outcome = Literal["right", "refused", "wrong"]


@dataclass(frozen=True)
class AdapterFacts:
    """What a PEFT folder holds, as far as loaders differ in it.

    Attributes:
        config: The content of `adapter_config.json`.
        tensors: Names of the tensors in the file.
    """

    config: Mapping[str, Any]
    tensors: Sequence[str]

    @property
    def has_patterns(self) -> bool:
        """Whether ranks or scalings differ by layer."""
        return bool(self.config.get("rank_pattern") or self.config.get("alpha_pattern"))

    @property
    def other_tensors(self) -> list[str]:
        """The tensors that are no factors A and B, such as those of a head."""
        return [name for name in self.tensors if not is_factor(name)]

    @property
    def refused_tensors(self) -> list[str]:
        """The other tensors that llama.cpp's converter does not take."""
        return [name for name in self.other_tensors if not any(norm in name for norm in NORMS)]

    @property
    def heads_only(self) -> bool:
        """Whether all modules that train in full are heads of classifiers, by their names."""
        return set(self.config.get("modules_to_save") or ()) <= VLLM_HEADS


@dataclass(frozen=True)
class LoaderCheck:
    """What a program makes of an adapter.

    Attributes:
        target: `peft`, `vllm` or `llama.cpp`.
        outcome: `right`; `refused`, if the program says that it cannot load it; `wrong`, if it loads something else.
        reasons: Why it does not load it right; for `right` what it needs.
        read_on: When the rules were read, as an ISO date.
        source: Where.
    """

    target: str
    outcome: Outcome
    reasons: tuple[str, ...]
    read_on: str
    source: str


@dataclass(frozen=True)
class Rule:
    """One thing that a program does not load.

    Attributes:
        targets: The programs.
        outcome: What it does instead.
        applies: Whether an adapter has it.
        reason: A clause.
    """

    targets: tuple[str, ...]
    outcome: Outcome
    applies: Callable[[AdapterFacts], bool]
    reason: str


RULES = (
    Rule(("vllm",), "wrong", lambda facts: facts.has_patterns, "it drops rank_pattern and alpha_pattern"),
    Rule(("llama.cpp",), "wrong", lambda facts: facts.has_patterns, "it scales every layer by the global lora_alpha"),
    Rule(
        ("llama.cpp",),
        "wrong",
        lambda facts: bool(facts.config.get("use_rslora")),
        "it scales by alpha / r, and rsLoRA by alpha / sqrt(r)",
    ),
    Rule(
        ("vllm", "llama.cpp"),
        "wrong",
        lambda facts: bool(facts.config.get("target_parameters")),
        "it drops or misplaces adapters on experts (target_parameters)",
    ),
    Rule(("vllm", "llama.cpp"), "refused", lambda facts: bool(facts.config.get("use_dora")), "it has no DoRA"),
    Rule(
        ("vllm",),
        "refused",
        lambda facts: bool(facts.config.get("modules_to_save")),
        "releases before pull request 53555 of August 2026 take no modules_to_save, such as a head",
    ),
    Rule(
        ("vllm",),
        "refused",
        lambda facts: not facts.heads_only,
        "later ones take a head called score or classifier alone",
    ),
    Rule(
        ("vllm",),
        "refused",
        lambda facts: facts.config.get("bias", "none") != "none" or bool(facts.config.get("lora_bias")),
        "it takes no trained biases",
    ),
    Rule(
        ("vllm",),
        "refused",
        lambda facts: bool(facts.config.get("trainable_token_indices")),
        "it takes no trainable tokens",
    ),
    Rule(
        ("vllm",),
        "refused",
        lambda facts: any(map(is_embedding_factor, facts.tensors)),
        "it takes adapters of embeddings only for models that declare them, such as Llama",
    ),
    Rule(
        ("llama.cpp",),
        "wrong",
        lambda facts: bool(facts.other_tensors) and not facts.refused_tensors,
        "it skips trained norms",
    ),
    Rule(
        ("llama.cpp",),
        "refused",
        lambda facts: bool(facts.refused_tensors),
        "its converter takes factors A and B only, and the file has a head, biases or other tensors",
    ),
    Rule(
        ("vllm",),
        "refused",
        lambda facts: int(facts.config.get("r", 0)) > VLLM_RANKS[-1],
        f"its largest rank is {VLLM_RANKS[-1]}",
    ),
)


def check_target_names(targets: Sequence[str]) -> None:
    """Refuses programs without rules.

    Args:
        targets: Names.

    Raises:
        ConfigurationError: If one is unknown.
    """
    for name in targets:
        if name not in TARGETS:
            msg = f"--check_targets has {name!r}; {suggest_names(name, TARGETS)}"
            raise ConfigurationError(msg)


def read_adapter_facts(folder: Path) -> AdapterFacts:
    """Reads what a PEFT folder holds.

    Args:
        folder: With `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        The facts.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        return AdapterFacts(config, tuple(file.keys()))


def check_loaders(facts: AdapterFacts) -> tuple[LoaderCheck, ...]:
    """What each program makes of an adapter.

    Args:
        facts: Of its folder.

    Returns:
        In the order of `TARGETS`.
    """
    return tuple(_check_loader(target, facts) for target in TARGETS)


def _check_loader(target: str, facts: AdapterFacts) -> LoaderCheck:
    broken = [rule for rule in RULES if target in rule.targets and rule.applies(facts)]
    outcome: Outcome = "right"
    if broken:
        outcome = "wrong" if any(rule.outcome == "wrong" for rule in broken) else "refused"
    reasons = tuple(rule.reason for rule in broken) or _needs(target, int(facts.config.get("r", 0)))
    return LoaderCheck(target, outcome, reasons, READ_ON, SOURCES[target])


def _needs(target: str, r: int) -> tuple[str, ...]:
    if target != "vllm" or r <= VLLM_DEFAULT_RANK:
        return ()
    return (f"start it with --max-lora-rank {next(rank for rank in VLLM_RANKS if rank >= r)}",)
