"""Options of a study as a release read them that took a typed `1e-5` for a number, and dropped what follows a `#`."""

from dataclasses import replace
from typing import Any

import yaml
from lightning.pytorch.utilities import rank_zero_warn

from lora_lightning.studies.specification import Study
from lora_lightning.studies.study_folder import STUDY, StudyFolder, load_plan
from lora_lightning.studies.study_yaml import as_number, parse_yaml


def with_former_options(study: Study, folder: StudyFolder) -> Study:
    """Keeps the options of the study in a folder, if they only differ by how a former release read their texts.

    Otherwise their runs would have other ids, and the study could not go on.

    Args:
        study: The study, as it is read now.
        folder: Its folder, which may not exist.

    Returns:
        The study, with the values of the folder. A warning names them.
    """
    if not (folder.path / STUDY).exists():
        return study
    former = load_plan(folder.path).study.options
    kept = {
        name: former[name]
        for name, value in study.options.items()
        if isinstance(value, str)
        and name in former
        and former[name] != value
        and as_formerly_read(value) == former[name]
    }
    for name, value in kept.items():
        rank_zero_warn(
            f"{name} is {study.options[name]!r}, but the study in {folder.path} goes on with {value!r}, as which "
            "earlier releases read it; for another value, give the study another name"
        )
    return replace(study, options={**study.options, **kept})


def as_formerly_read(value: Any) -> Any:
    """Returns what a former release read in place of a text; other values as they are.

    Args:
        value: Of an option.
    """
    try:
        found = parse_yaml(value) if isinstance(value, str) else value
    except (yaml.YAMLError, ValueError, RecursionError):
        return value
    return as_number(found)
