"""What changes in a study with its base: options of one kind of data, and the metric that decides."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lora_lightning.metrics.direction import higher_is_better
from lora_lightning.studies.study_yaml import read_yaml

OPTIONS_BY_DATA = "options_by_data"  # a key of a study's YAML


def data_module_of(base: Sequence[Path | Mapping[str, Any]]) -> str:
    """Returns the class of the data module that base configs have, such as `"GlueDataModule"`; empty without one.

    Args:
        base: Configs of `fit`; later ones override earlier ones.
    """
    contents = [read_yaml(each) if isinstance(each, Path) else each for each in base]
    data = [content["data"] for content in contents if content.get("data")]
    names = [each.get("class_path") if isinstance(each, Mapping) else each for each in data]
    return next((str(name).rpartition(".")[2] for name in reversed(names) if name), "")


def options_of_data(
    found: Mapping[str, Mapping[str, Any]], module: str, refuse: Callable[[str], NoReturn], *, is_other_base: bool
) -> Mapping[str, Any]:
    """Returns the options that a study has for the data of its base.

    Args:
        found: Options by data module, as the study gives them.
        module: Class of the base's data module.
        refuse: Raises the error with a message.
        is_other_base: Whether the base is another one than the study's, whose data may have no options there.
    """
    if found and module not in found and not is_other_base:
        refuse(
            f"{OPTIONS_BY_DATA} has options of {', '.join(found)}, but the data module of the base is "
            f"{module or 'none'}; correct the name, or leave them out"
        )
    return found.get(module, {})


def with_objective(content: Mapping[str, Any], objective: str, refuse: Callable[[str], NoReturn]) -> dict[str, Any]:
    """Replaces the metric that decides in the content of a study.

    A direction belongs to a metric, and a margin and the claimed range of a difference to a unit.

    Args:
        content: Values by key.
        objective: The metric.
        refuse: Raises the error with a message.

    Returns:
        The content without what does not fit the metric.
    """
    former = str(content.get("objective"))
    changed = {**content, "objective": objective}
    if former == objective:
        return changed
    changed.pop("direction", None)
    if higher_is_better(objective.rpartition("/")[2]) is None:
        refuse(
            f"it is not known whether a larger {objective!r} is better; copy the study, and set its objective, "
            "direction and margin there"
        )
    if _unit(former) == _unit(objective):
        return changed
    if _unit(objective) == objective.rpartition("/")[2]:
        refuse(
            f"the objective {objective!r} has no usual margin, and the study's margin is of {former}; copy the study, "
            "and set its objective and margin there"
        )
    changed.pop("margin", None)
    claims = content.get("claims")
    for claim in claims if isinstance(claims, list) else ():
        if isinstance(claim, dict) and claim.get("quantity") == "difference" and any(claim.get("between") or ()):
            refuse(
                f"the claim {claim.get('claim')!r} is in the unit of {former}, which is not that of the objective "
                f"{objective!r}; copy the study, and correct its objective and its claims there"
            )
    return changed


def _unit(objective: str) -> str:
    """The unit of a metric's differences: its own name, unless they are points or percent."""
    from lora_lightning.analysis.metric_scale import choose_scale  # noqa: PLC0415  # SciPy; rarely needed
    from lora_lightning.statistics.study_results import Scale  # noqa: PLC0415

    name = objective.rpartition("/")[2]
    scale = choose_scale(name, []).stored
    return name if scale is Scale.PLAIN else str(scale)
