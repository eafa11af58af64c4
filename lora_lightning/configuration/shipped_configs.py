"""The YAML files that come with this package: where they are, what each is for, and how to copy one.

It imports nothing heavy: a misspelt name of a config is refused before anything loads.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import yaml

from lora_lightning.configuration.schema_file import SCHEMA_FILE
from lora_lightning.errors import ConfigurationError, suggest_names

PACKAGE = Path(__file__).parents[1]
FOLDER = "configs"
COMMAND = "# lora-lightning "  # the comment line that says how to run a config
SCHEMA_COMMENT = re.compile(r"^(# yaml-language-server: \$schema=).*$", re.MULTILINE)
SENTENCE_END = re.compile(r"(?<=[.?])\s")
SIMILAR, NEARLY_EQUAL = 0.6, 0.9


@dataclass(frozen=True)
class ShippedConfig:
    """A YAML of this package.

    Attributes:
        name: Its path below `configs` without the suffix, such as `clinc150/minilm_lora`.
        path: The file.
    """

    name: str
    path: Path

    @property
    def summary(self) -> str:
        """The first sentence of the comment at its top."""
        lines = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            if not line.startswith("# ") or line.startswith(COMMAND):
                break
            lines.append(line.removeprefix("# "))
        return SENTENCE_END.split(" ".join(lines))[0]

    @property
    def companions(self) -> list[str]:
        """Names of the other configs in the command that runs it; a config of callbacks completes another one."""
        command = next(
            (line for line in self.path.read_text(encoding="utf-8").splitlines() if line.startswith(COMMAND)), ""
        )
        return [name for name in re.findall(rf"{FOLDER}/([\w/]+)\.yaml", command) if name != self.name]

    @property
    def bases(self) -> list[str]:
        """The configs that a study trains, as they are written in it."""
        found = (yaml.safe_load(self.path.read_text(encoding="utf-8")) or {}).get("base", [])
        files = found if isinstance(found, list) else [found]
        return [file for file in files if isinstance(file, str)]


def configs_folder() -> Path:
    """Returns the folder of the configs: within the package if it was installed, beside it in a source checkout."""
    installed = PACKAGE / FOLDER
    return installed if installed.is_dir() else PACKAGE.parent / FOLDER


def shipped_configs() -> list[ShippedConfig]:
    """Lists all configs, those of the top folder first."""
    folder = configs_folder()
    paths = sorted(folder.rglob("*.yaml"), key=lambda path: (path.parent, path.name))
    return [ShippedConfig(path.relative_to(folder).with_suffix("").as_posix(), path) for path in paths]


def find_config(name: str) -> ShippedConfig:
    """Finds a config by its name.

    Args:
        name: Such as `quickstart`, `clinc150/minilm_lora` or `configs/clinc150/minilm_lora.yaml`.

    Returns:
        The config.

    Raises:
        ConfigurationError: If there is none; names similar ones.
    """
    wanted = name.removeprefix("./").removeprefix(f"{FOLDER}/").removesuffix(".yaml")
    known = {config.name: config for config in shipped_configs()}
    if wanted in known:
        return known[wanted]
    close = get_close_matches(wanted, known, cutoff=SIMILAR)
    hint = suggest_names(wanted, close) if close else "`lora-lightning configs` lists all."
    msg = f"there is no shipped config {name!r}; {hint}"
    raise ConfigurationError(msg)


def copy_config(name: str, folder: Path) -> list[Path]:
    """Copies a config into a folder, to be edited there, and the configs that it trains or that complete its command.

    The comment that says how to run it, the bases of a study and the schema for editors are those of the copy.

    Args:
        name: As in `find_config`.
        folder: Where to write; the files are named as the last part of each config's name. A config that completes the
            command and was copied before is left as it is.

    Returns:
        The written files, the config itself first.

    Raises:
        ConfigurationError: If there is no such config, or a file exists or cannot be written.
    """
    config = find_config(name)
    texts = {config.path.name: _copied_text(config)}
    for base in config.bases:
        shipped = find_config((config.path.parent / base).resolve().relative_to(configs_folder().resolve()).as_posix())
        texts[shipped.path.name] = _copied_text(shipped)
    companions = {shipped.path.name: _copied_text(shipped) for shipped in map(find_config, config.companions)}
    texts = {**{file: text for file, text in companions.items() if not (folder / file).exists()}, **texts}
    for file in texts:
        if (folder / file).exists():
            msg = f"{folder / file} exists already; rename it, or copy the config in another folder."
            raise ConfigurationError(msg)
    try:
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        msg = f"the config cannot be written to {folder} ({error.strerror}); change into a folder that is writable."
        raise ConfigurationError(msg) from error
    return [folder / file for file in sorted(texts, key=lambda file: file != config.path.name)]


def _copied_text(config: ShippedConfig) -> str:
    """The text of a config with the paths of its copy."""
    text = config.path.read_text(encoding="utf-8")
    for name in (config.name, *config.companions):
        text = text.replace(f"{FOLDER}/{name}.yaml", f"{Path(name).name}.yaml")
    for base in config.bases:
        text = text.replace(base, Path(base).name)
    return SCHEMA_COMMENT.sub(lambda comment: f"{comment[1]}{SCHEMA_FILE}", text)


def check_config_paths(names: Iterable[str], kind: str = "config") -> None:
    """Refuses a config that does not exist.

    Args:
        names: Values of `--config`, `--base` and the like: files, or the text of a config.
        kind: What they are, for the message.

    Raises:
        ConfigurationError: Names similar files, in the folder of the missing one and among those of this package.
    """
    for name in names:
        if not is_config_text(name) and not Path(name).expanduser().exists():
            msg = f"there is no {kind} {name}; {_similar_configs(name)}"
            raise ConfigurationError(msg)


def is_config_text(name: str) -> bool:
    """Returns whether this is the text of a config, as Python callers give it, and not the name of a file.

    Args:
        name: The value of `--config`.
    """
    if "\n" in name or len(name) > 1000 or "\0" in name:  # noqa: PLR2004  # no path is as long
        return True
    try:
        return not isinstance(yaml.safe_load(name), str)
    except yaml.YAMLError:
        return False


def _similar_configs(name: str) -> str:
    shipped = {f"{FOLDER}/{config.name}.yaml": config for config in shipped_configs()}
    if (found := shipped.get(name.removeprefix("./"))) is not None:
        return f"{copy_hint(found.name)} puts it into the current folder."
    folder = Path(name).expanduser().parent
    here = [str(path) for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])] if folder.is_dir() else []
    names = list(dict.fromkeys([*here, *shipped]))
    close = next(
        filter(None, (get_close_matches(name, names, cutoff=cutoff) for cutoff in (NEARLY_EQUAL, SIMILAR))), []
    )
    close = close or _with_similar_stem(name, names)
    if not close:
        return "`lora-lightning configs` lists those of this package."
    question = f"did you mean {' or '.join(close)}?"
    elsewhere = next((shipped[each] for each in close if each in shipped and not Path(each).is_file()), None)
    return question if elsewhere is None else f"{question} {copy_hint(elsewhere.name)} puts it into the current folder."


def _with_similar_stem(name: str, names: Sequence[str]) -> list[str]:
    stems = {Path(each).stem: each for each in reversed(names)}
    return [stems[stem] for stem in get_close_matches(Path(name).stem, stems, cutoff=SIMILAR)]


def copy_hint(name: str) -> str:
    """Returns the command that copies a config.

    Args:
        name: As in `find_config`.
    """
    return f"`lora-lightning configs --copy {name}`"
