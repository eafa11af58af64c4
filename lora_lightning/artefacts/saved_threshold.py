"""The threshold of decisions that an adapter was saved with: what is measured must decide as what is shipped does."""

import math
from typing import Any, NamedTuple

from lora_lightning.backbones.adapter_config import ANSWERS, AdapterConfig
from lora_lightning.backbones.adapter_labels import LABELS
from lora_lightning.backbones.model_card import CLASSIFIER, QUESTION_ANSWERER
from lora_lightning.errors import CheckpointError


class Place(NamedTuple):
    """Where a run's export keeps a threshold.

    Attributes:
        file: Of the adapter folder.
        key: In that file.
    """

    file: str
    key: str


PLACES = {  # by AdaptationTask.threshold_name
    "out_of_scope_threshold": Place(LABELS, "out_of_scope_threshold"),
    "label_threshold": Place(LABELS, "decision_threshold"),
    "null_threshold": Place(ANSWERS, "null_threshold"),
}


def decision_options(config: AdapterConfig) -> list[str]:
    """Options of the task that decide how an adapter's answers are read off its logits, as its run saved them.

    Args:
        config: Of a bare adapter.

    Returns:
        Options of a command line; none for an adapter without such files.

    Raises:
        CheckpointError: If a file holds something else.
    """
    options = []
    if config.auto_class == CLASSIFIER and PLACES["label_threshold"].key in (config.file(LABELS) or {}):
        options.append("--model.decision_threshold=best_f1")
    answers = config.file(ANSWERS) if config.auto_class == QUESTION_ANSWERER else None
    length = (answers or {}).get("max_answer_length")
    if length is not None:
        if not isinstance(length, int) or isinstance(length, bool) or length < 1:
            raise _wrong(config, ANSWERS, "max_answer_length", length, "a number of tokens above 0")
        options.append(f"--model.max_answer_length={length}")
    return options


def saved_threshold(config: AdapterConfig, name: str | None) -> float | None:
    """The threshold that validation of the adapter's run chose.

    Args:
        config: Of a bare adapter.
        name: `threshold_name` of the task.

    Returns:
        The threshold, infinity for one that was never chosen; `None` if the folder has none.

    Raises:
        CheckpointError: If it is not a number.
    """
    if name is None:
        return None
    file, key = PLACES[name]
    saved = config.file(file) or {}
    if key not in saved:
        return None
    value: Any = math.inf if saved[key] is None else saved[key]
    if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
        raise _wrong(config, file, key, value, "a number")
    return float(value)


def _wrong(config: AdapterConfig, file: str, key: str, value: Any, allowed: str) -> CheckpointError:
    msg = f"{config.folder / file}: {key} is {value!r}, but it must be {allowed}; correct it, or export again."
    return CheckpointError(msg)
