"""Options of a study that count time: how long a run trains then depends on what else its machine does."""

from collections.abc import Mapping
from typing import Any

from lora_lightning.runs.settings import flatten
from lora_lightning.studies.option_conflicts import varied_options
from lora_lightning.studies.specification import Study
from lora_lightning.studies.study_folder import base_contents

LIMIT, INTERVAL, CALLBACKS, TIMER = "trainer.max_time", "trainer.val_check_interval", "trainer.callbacks", "Timer"


def note_on_time_limits(study: Study) -> str:
    """Says that runs are limited or validated by time; empty if they are not.

    Args:
        study: The study.
    """
    settings: dict[str, Any] = {}
    for config in (*base_contents(study), study.options):
        settings |= flatten(config)
    set_to = {name: value for name, value in settings.items() if value is not None} | dict.fromkeys(
        varied_options(study)
    )
    found = [LIMIT] if any(f"{name}.".startswith(f"{LIMIT}.") for name in set_to) else []
    # A number is a share of an epoch, or counts batches.
    if isinstance(set_to.get(INTERVAL), str) or any(name.startswith(f"{INTERVAL}.") for name in set_to):
        found.append(INTERVAL)
    if any(_has_timer(value) for name, value in set_to.items() if name.startswith(CALLBACKS)):
        found.append(f"the callback {TIMER}")
    if not found:
        return ""
    return (
        f"Time decides how long runs train or when they are validated ({', '.join(found)}), so that results "
        "depend on what else a machine does: configurations may be compared after unequal training, and a "
        "repeated run may differ. trainer.max_epochs, trainer.max_steps and a number as val_check_interval "
        "do not depend on it."
    )


def _has_timer(value: Any) -> bool:
    """Whether callbacks, or the class of one, are Lightning's timer."""
    if isinstance(value, list):
        return any(_has_timer(entry) for entry in value)
    name = value.get("class_path") if isinstance(value, Mapping) else value
    return isinstance(name, str) and name.rpartition(".")[2] == TIMER
