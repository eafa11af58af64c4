"""Options of a study that count time: how long a run trains then depends on what else its machine does."""

import math
from collections.abc import Mapping
from typing import Any

from lora_lightning.runs.settings import flatten
from lora_lightning.studies.specification import Axis, Study
from lora_lightning.studies.study_folder import base_contents

LIMIT, INTERVAL, CALLBACKS, TIMER = "trainer.max_time", "trainer.val_check_interval", "trainer.callbacks", "Timer"


def note_on_time_limits(study: Study) -> str:
    """Says that runs are limited or validated by time; empty if they are not.

    Args:
        study: The study.
    """
    settings: dict[str, Any] = {}
    for config in (*base_contents(study), study.options):
        settings = _overridden(settings, flatten(config))
    for axis in study.axes:
        if not axis.is_named:  # every configuration has a value of its own
            settings = _overridden(settings, {axis.name: None})
    varied = [flatten(each) for axis in study.axes for each in _options_in(axis)]
    set_to = [(name, value) for found in (settings, *varied) for name, value in found.items() if value is not None]
    named = [LIMIT] if any(_is_in(name, LIMIT) for name, _ in set_to) or LIMIT in study.derived else []
    # A number is a share of an epoch, or counts batches.
    if any(_is_in(name, INTERVAL) and not _is_number(value) for name, value in set_to):
        named.append(INTERVAL)
    if any(_is_in(name, CALLBACKS) and _has_timer(value) for name, value in set_to):
        named.append(f"the callback {TIMER}")
    if not named:
        return ""
    return (
        f"Time decides how long runs train or when they are validated ({', '.join(named)}), so that results "
        "depend on what else a machine does: configurations may be compared after unequal training, and a "
        "repeated run may differ. trainer.max_epochs, trainer.max_steps and a number as val_check_interval "
        "do not depend on it."
    )


def _overridden(settings: Mapping[str, Any], further: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name under further ones: a value, or null, also replaces what was below its name."""
    kept = {name: value for name, value in settings.items() if not any(_is_in(name, other) for other in further)}
    return {**kept, **further}


def _options_in(axis: Axis) -> list[Mapping[str, Any]]:
    """The options that each value of an axis sets."""
    return [value if axis.is_named else {axis.name: value} for value in axis.values.values()]


def _is_in(name: str, option: str) -> bool:
    """Whether a name is an option, or one of its parts."""
    return f"{name}.".startswith(f"{option}.")


def _is_number(value: Any) -> bool:
    """Also a text such as `.5`: `fit` reads it as a number."""
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _has_timer(value: Any) -> bool:
    """Whether callbacks, or the class of one, are Lightning's timer."""
    if isinstance(value, list):
        return any(_has_timer(entry) for entry in value)
    name = value.get("class_path") if isinstance(value, Mapping) else value
    return isinstance(name, str) and name.rpartition(".")[2] == TIMER
