"""Names of classes in configs that older releases wrote: such a config still means what it said."""

import re
from collections.abc import Sequence
from pathlib import Path

FORMER_NAMES = {
    "lora_lightning.strategies.FullyShardedStrategy": "lora_lightning.training.strategies.FullyShardedStrategy",
    "lora_lightning.callbacks.ConfusionFigure": "lora_lightning.training.confusion.ConfusionFigure",
    "lora_lightning.callbacks.FinalValidation": "lora_lightning.training.final_validation.FinalValidation",
    "lora_lightning.callbacks.FiniteLoss": "lora_lightning.training.finite_loss.FiniteLoss",
    "lora_lightning.callbacks.ThroughputMonitor": "lora_lightning.training.throughput.ThroughputMonitor",
    "lora_lightning.checkpoint_files.WholeCheckpointIO": "lora_lightning.runs.checkpoint_io.AtomicCheckpointIO",
    "lora_lightning.runs.checkpoint_io.WholeCheckpointIO": "lora_lightning.runs.checkpoint_io.AtomicCheckpointIO",
}
ANY = re.compile(rf"\b(?:{'|'.join(re.escape(name) for name in FORMER_NAMES)})\b")


def current_names(config: str) -> str:
    """Replaces former names of classes.

    Args:
        config: The text of a config.

    Returns:
        The text with the names of today.
    """
    return ANY.sub(lambda found: FORMER_NAMES[found[0]], config)


def with_current_names(words: Sequence[str]) -> list[str]:
    """Gives a config that has former names as its text, with the names of today, in place of its file.

    Args:
        words: Of a command line.

    Returns:
        The words; the same if no config has such a name.
    """
    changed = []
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        is_value = place > 0 and words[place - 1] in {"--config", "-c"}
        name = value if equals and option in {"--config", "-c"} else word if is_value else ""
        text = Path(name).read_text(encoding="utf-8-sig") if name and _is_file(name) else ""
        changed.append(word.removesuffix(name) + current_names(text) if ANY.search(text) else word)
    return changed


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # a config given as its text is no file's name
        return False
