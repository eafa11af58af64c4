"""Reads the configuration of a PEFT folder and refuses what cannot be loaded correctly, before any weights load."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version
from transformers import BitsAndBytesConfig

from lora_lightning.backbones.base_identity import BaseIdentity, identify_base
from lora_lightning.backbones.export import QUANTIZATION
from lora_lightning.backbones.model_card import CLASSIFIER, LANGUAGE_MODEL, QUESTION_ANSWERER
from lora_lightning.backbones.saved_base import BASE_MODEL, check_base
from lora_lightning.errors import CheckpointError, ConfigurationError

ADAPTER_CONFIG = "adapter_config.json"
ANSWERS = "question_answering.json"  # of a run's export
AUTO_CLASS_OF_TASK = {"SEQ_CLS": CLASSIFIER, "QUESTION_ANS": QUESTION_ANSWERER, "CAUSAL_LM": LANGUAGE_MODEL}
SUPPORTED = ("LORA", "ADALORA")
BASE_UNCHANGED = ("true", "false", "none", "gaussian", "orthogonal", "eva", "mica")  # values of init_lora_weights
BASE_REBUILT = ("pissa", "olora")  # take a part out of the base, the same whenever the adapter is loaded
EXPERTS_SINCE = Version("0.19")  # PEFT has kept the factors of experts in another order before


@dataclass(frozen=True)
class AdapterConfig:
    """What a PEFT folder says of itself.

    Attributes:
        folder: The folder.
        base: Hub id, folder or `package://` name of the base model.
        auto_class: Name of the transformers class that the adapter is for.
        changes_base: Whether PEFT takes a part out of the base weights while it loads the adapter.
        content: PEFT's settings by name, as in the file.
    """

    folder: Path
    base: str
    auto_class: str
    changes_base: bool = False
    content: Mapping[str, Any] = field(default_factory=dict)

    def file(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder; `None` if there is none."""
        return read_json_file(self.folder / name) if (self.folder / name).is_file() else None

    @property
    def revision(self) -> str | None:
        """The revision of the base on the hub; `None` for the newest, which alone is loaded."""
        found = self.content.get("revision")
        return None if found in {None, "", "main"} else str(found)

    def quantization(self) -> BitsAndBytesConfig | None:
        """How the base is quantized; `None` if it is not.

        Raises:
            CheckpointError: If the file holds anything but a configuration of bitsandbytes.
        """
        if (saved := self.file(QUANTIZATION)) is None:
            return None
        try:
            settings: BitsAndBytesConfig = BitsAndBytesConfig.from_dict(saved)
        except Exception as error:  # wrong types make transformers and torch raise many kinds
            raise self._not_bitsandbytes(str(error)) from error
        method = saved.get("quant_method", "bitsandbytes")
        if method != "bitsandbytes":
            raise self._not_bitsandbytes("quant_method is " + str(method))
        if not (settings.load_in_4bit or settings.load_in_8bit):
            why = "neither load_in_4bit nor load_in_8bit is true"
            raise self._not_bitsandbytes(why)
        return settings

    def _not_bitsandbytes(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.folder / QUANTIZATION} is not a configuration of bitsandbytes in 4 or 8 bits "
            f"({' '.join(why.split())[:150]}); correct it, or delete it if the base is not quantized."
        )


def read_adapter_config(folder: Path, auto_class: str | None = None, backbone: str | None = None) -> AdapterConfig:
    """Reads and checks `adapter_config.json`.

    Args:
        folder: The PEFT folder.
        auto_class: Name of the transformers class that the adapter is needed for; `None` if the folder decides.
        backbone: The base model to load it on, which the caller compares with the adapter's own; `None` for its own.

    Returns:
        What is needed to load it.

    Raises:
        ConfigurationError: If it is no LoRA, if PEFT cannot rebuild the base that it was trained on, if its experts
            were saved by an old PEFT, or if it is for another class.
        CheckpointError: If the file is damaged, names no base model, or belongs to another base model.
    """
    content = read_json_file(folder / ADAPTER_CONFIG)
    kind = content.get("peft_type")
    if kind not in SUPPORTED:
        msg = f"{folder} holds an adapter of type {kind}, which is not supported; give one of type {SUPPORTED[0]}."
        raise ConfigurationError(msg)
    _check_experts(folder, content)
    start = _check_initialization(folder, content)
    base = backbone or content.get("base_model_name_or_path")
    if not base:
        msg = f"{folder / ADAPTER_CONFIG} does not name the base model; set base_model_name_or_path in it."
        raise CheckpointError(msg)
    config = AdapterConfig(folder, str(base), _auto_class(folder, content, auto_class), start in BASE_REBUILT, content)
    config.quantization()
    if backbone is None:
        _check_revision(config)
        _check_same_base(config)
    return config


def _auto_class(folder: Path, content: Mapping[str, Any], wanted: str | None) -> str:
    task_type = content.get("task_type")
    found = AUTO_CLASS_OF_TASK.get(str(task_type))
    if task_type is None and (folder / ANSWERS).is_file():  # PEFT's wrapper for the task drops token_type_ids
        found = QUESTION_ANSWERER
    if found is None and (wanted is None or task_type is not None):
        msg = (
            f"{folder / ADAPTER_CONFIG} has task_type {task_type}, so it is not known which model the adapter is for; "
            f"set it to one of {', '.join(AUTO_CLASS_OF_TASK)}."
        )
        raise ConfigurationError(msg)
    if wanted is not None and found not in {None, wanted}:
        msg = (
            f"the adapter {folder} is for {found} (task_type {task_type}), but this task needs one for {wanted}; "
            "choose the task that it was trained for, or another adapter."
        )
        raise ConfigurationError(msg)
    return wanted or str(found)


def _check_experts(folder: Path, content: dict[str, Any]) -> None:
    if not content.get("target_parameters"):
        return
    saved = str(content.get("peft_version") or "").partition("@")[0]
    try:
        is_old = Version(saved) < EXPERTS_SINCE
    except InvalidVersion:  # older versions did not say
        is_old = True
    if is_old:
        msg = (
            f"{folder} adapts experts (target_parameters) and was saved by PEFT {saved or 'before 0.18'}, which "
            f"ordered their factors otherwise than PEFT {EXPERTS_SINCE} and later, so it would be loaded wrongly; load "
            "it with the PEFT that saved it, and save it there as a full model (merge_and_unload), or train it again."
        )
        raise ConfigurationError(msg)


def _check_initialization(folder: Path, content: dict[str, Any]) -> str:
    """Some initializations change the base, and PEFT changes it otherwise when the adapter is loaded again."""
    value = content.get("init_lora_weights", True)
    start, is_quantized = str(value).lower(), (folder / QUANTIZATION).is_file()
    if start in BASE_UNCHANGED or (start in BASE_REBUILT and not is_quantized):
        return start
    why = "the quantized base" if start in BASE_REBUILT else "the base"
    msg = (
        f"{folder / ADAPTER_CONFIG} has init_lora_weights {value!r}, with which PEFT cannot rebuild {why} that the "
        "adapter was trained on; save the adapter with path_initial_model_for_weight_conversion of PEFT's "
        "save_pretrained, which makes it plain LoRA, or set base_model_name_or_path to that base, saved as a folder of "
        "its own, and init_lora_weights to true."
    )
    raise ConfigurationError(msg)


def _check_revision(config: AdapterConfig) -> None:
    if config.revision is None or Path(config.base).expanduser().is_dir():
        return
    msg = (
        f"{config.folder / ADAPTER_CONFIG} names revision {config.revision!r} of {config.base}, but the newest is "
        "loaded; download that revision into a folder, and set base_model_name_or_path to the folder."
    )
    raise ConfigurationError(msg)


def _check_same_base(config: AdapterConfig) -> None:
    saved = config.file(f"{BASE_MODEL}.json")
    if BaseIdentity.from_saved(saved) is None:
        return
    remedy = f"Set base_model_name_or_path in its {ADAPTER_CONFIG} to the model that it was trained on."
    check_base(
        {BASE_MODEL: saved},
        identify_base(config.base),
        str(config.folder),
        is_frozen=True,
        allowed=False,
        remedy=remedy,
    )


def read_json_file(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        CheckpointError: If it is missing, damaged or not an object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path} cannot be read ({' '.join(str(error).split())[:100]}); export the adapter again."
        raise CheckpointError(msg) from error
    if not isinstance(content, dict):
        msg = f"{path} does not hold a JSON object; export the adapter again."
        raise CheckpointError(msg)
    return content
