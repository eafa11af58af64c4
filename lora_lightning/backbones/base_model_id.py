"""The name by which other machines find the base model of an exported adapter, and whether it is known to be the same.

An adapter names the base that it was trained on. A path of this machine means nothing elsewhere, but a hub id may
belong to other weights: those of a GGUF file, for example, were quantized and are not the hub's.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import ModelCard, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not in __all__

from lora_lightning.backbones.base_identity import WEIGHTS, BaseIdentity, identify_base, shards_of
from lora_lightning.backbones.model_card import TRAINED_WITH
from lora_lightning.backbones.saved_base import BASE_MODEL
from lora_lightning.errors import BackboneError, CheckpointError, ConfigurationError

OPTION = "--base_model_id"
TITLE = re.compile(r"^(# LoRA adapter for ).*$", re.MULTILINE)
TRAINED = re.compile(rf"^{re.escape(TRAINED_WITH)}.*$", re.MULTILINE)
NO_CARD = "---\nlibrary_name: peft\n---\n"
GGUF_FILE = re.compile(r", gguf_file='[^']*'")
Comparison = Literal["same", "different", "not compared"]


@dataclass(frozen=True)
class NamedBase:
    """A base model's id on the hub.

    Attributes:
        name: The id.
        comparison: Whether its files of weights, in the hub's cache, are those that the adapter was trained on.
        weights: SHA-256 of the weights that the adapter was trained on; empty if the adapter does not say.
        other_files: Which of its other files differ, or are not all in the cache, if the weights are the same:
            `configuration`, `tokenizer`.
    """

    name: str
    comparison: Comparison
    weights: str
    other_files: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What is known of the equality."""
        if not self.weights:
            return (
                f"It is not known whether {self.name} is the base model that the adapter was trained on, because the "
                "adapter does not record the content of that."
            )
        trained_on = f"the weights that the adapter was trained on (SHA-256 {self.weights[:12]})"
        if self.comparison == "same":
            parts = " and ".join(self.other_files)
            others = f" The files of its {parts} in the hub's cache are others, or not complete." if parts else ""
            return f"{self.name} has {trained_on}.{others}"
        if self.comparison == "different":
            return f"{self.name} has other files of weights than {trained_on}; the adapter may compute something else."
        return (
            f"It was not checked whether {self.name} has {trained_on}, because {self.name} is not on this machine; "
            f"{BASE_MODEL}.json has their complete hash."
        )


def check_hub_id(name: str) -> None:
    """Refuses what cannot be a model's id on the hub.

    Args:
        name: The value of `--base_model_id`.

    Raises:
        ConfigurationError: If it is a path, or has forbidden characters.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        msg = f"{OPTION} is {name!r}, but it must be a model's id on the hub, such as org/name."
        raise ConfigurationError(msg) from error


def name_base(
    name: str, identity: BaseIdentity | None, *, allowed: bool = False, permission: str = "--allow_other_base"
) -> NamedBase:
    """Compares the base model of an adapter with the one of an id, if the hub's cache has that; downloads nothing.

    Args:
        name: The id on the hub.
        identity: The base model of the adapter; `None` if it is not known.
        allowed: Whether the weights may be known to differ.
        permission: The option that allows it.

    Returns:
        The name and what is known.

    Raises:
        ConfigurationError: If it cannot be an id, or its files of weights are known to differ.
    """
    check_hub_id(name)
    if identity is None:
        return NamedBase(name, "not compared", "")
    if (cached := cached_identity(name)) is None:
        return NamedBase(name, "not compared", identity.weights)
    if cached.weights == identity.weights:
        pairs = {"configuration": (cached.config, identity.config), "tokenizer": (cached.tokenizer, identity.tokenizer)}
        return NamedBase(name, "same", identity.weights, tuple(part for part, (a, b) in pairs.items() if a != b))
    if not allowed:
        msg = (
            f"{OPTION} is {name!r}, but in the hub's cache that has other files of weights than the base model "
            f"(different {' and '.join(identity.differences(cached))}); give the id of a model with the same weights, "
            f"upload the base model under an id of its own, or allow it with {permission}."
        )
        raise ConfigurationError(msg)
    return NamedBase(name, "different", identity.weights)


def saved_base_name(folder: Path | None) -> NamedBase | None:
    """The id that an exported folder names its base by, so that what is made of it names it as well.

    Args:
        folder: The export of a run; `None` if there is none.

    Returns:
        The name, compared anew with the hub's cache; `None` for a folder without a given id.

    Raises:
        CheckpointError: If the file is damaged.
    """
    file = None if folder is None else folder / f"{BASE_MODEL}.json"
    if file is None or not file.is_file():
        return None
    try:
        saved: Any = json.loads(file.read_text(encoding="utf-8"))
        name = saved.get("name")
    except (AttributeError, ValueError) as error:
        msg = f"{file} is damaged ({' '.join(str(error).split())[:100]}); copy it from another export, or delete it."
        raise CheckpointError(msg) from error
    if not isinstance(name, str):
        return None
    return name_base(name, BaseIdentity.from_saved(saved), allowed=True)


def cached_identity(name: str) -> BaseIdentity | None:
    """Hashes a model in the hub's cache.

    Args:
        name: Its id.

    Returns:
        The identity; `None` if its weights are not in the cache, or not all of them.
    """
    config = try_to_load_from_cache(name, "config.json")
    folder = Path(config).parent if isinstance(config, str) else None
    found = next((folder / file for file in WEIGHTS if (folder / file).exists()), None) if folder is not None else None
    if folder is None or found is None or not _is_complete(found):
        return None
    try:
        return identify_base(str(folder))
    except BackboneError:  # an incomplete download
        return None


def _is_complete(weights: Path) -> bool:
    """Whether all files of weights that a list of shards names are there."""
    shards = shards_of(weights)
    return shards is not None and all((weights.parent / shard).exists() for shard in shards)


def write_base_name(folder: Path, base: NamedBase) -> None:
    """Makes the files of an exported folder name its base by an id.

    Args:
        folder: With PEFT's `adapter_config.json` and our `base_model.json`, if it is an adapter, and a README.md.
        base: The name.
    """
    former = _update(folder / "adapter_config.json", {"base_model_name_or_path": base.name}).get(
        "base_model_name_or_path"
    )
    _update(folder / f"{BASE_MODEL}.json", {"name": base.name, "compared": base.comparison})
    readme = folder / "README.md"
    try:
        text = readme.read_text(encoding="utf-8") if readme.is_file() else NO_CARD
        card = ModelCard(text, ignore_metadata_errors=True)
    except (ValueError, yaml.YAMLError) as error:  # bytes that are no UTF-8 are a ValueError, too
        msg = f"{readme} is no model card ({' '.join(str(error).split())[:100]}); mend it, or delete it."
        raise CheckpointError(msg) from error
    card.data["base_model"] = base.name
    # PEFT's own cards repeat the base's name in a tag.
    card.data["tags"] = [tag for tag in card.data.get("tags") or [] if not str(tag).startswith("base_model:")] or None
    card.text = _named_in_card(card.text, base, str(former or ""))
    card.save(readme)


def _update(path: Path, entries: dict[str, str]) -> dict[str, Any]:
    """Writes entries into a JSON object, which may not exist yet; returns what it was before."""
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**before, **entries}, indent=2) + "\n", encoding="utf-8")
    return before


def _named_in_card(text: str, base: NamedBase, former: str) -> str:
    text = TITLE.sub(lambda found: found[1] + base.name, text, count=1)
    text, count = TRAINED.subn(lambda _: f"{TRAINED_WITH} {base.sentence}", text, count=1)
    if not count and base.sentence not in text:  # the card of another program
        text = f"{text.rstrip()}\n\n{base.sentence}\n"
    if Path(former).is_absolute():
        text = text.replace(former, base.name)
    return GGUF_FILE.sub("", text)  # the hub's files of that name are not known
