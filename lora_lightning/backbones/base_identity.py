"""Which base model this is, by the content of its files and not by its name."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from lora_lightning.backbones.source import gguf_file_of, hub_is_reachable, not_found, resolve_backbone
from lora_lightning.errors import BackboneError
from lora_lightning.runs.file_hashes import hash_files

# Of several kinds of weights transformers loads the first.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
CONFIGS = ("config.json", "generation_config.json")
TOKENIZERS = (
    "added_tokens.json",
    "bpe.codes",
    "byte_maps.json",
    "chat_template.jinja",
    "chat_template.json",
    "dict.txt",
    "emoji.json",
    "entity_vocab.json",
    "merges.txt",
    "normalizer.json",
    "prophetnet.tokenizer",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "source.spm",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "spm_char.model",
    "target.spm",
    "target_vocab.json",
    "tekken.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab-src.json",
    "vocab-tgt.json",
    "vocab.json",
    "vocab.txt",
    "word_pronunciation.json",
    "word_shape.json",
)
MORE_TEMPLATES = "additional_chat_templates/*.jinja"
# What transformers notes in a configuration without any effect on the model.
NOTES = ("_name_or_path", "transformers_version")
SHA256_DIGITS = 64


@dataclass(frozen=True)
class BaseIdentity:
    """The content of a base model, as SHA-256 hashes of hexadecimal digits.

    Attributes:
        weights: Of all files of weights in the format that transformers loads.
        config: Of the configuration, and of the model's own Python code if it has some.
        tokenizer: Of all files of the tokenizer.
        commit: The hub's commit, for information; `None` for a local folder.
    """

    weights: str
    config: str
    tokenizer: str
    commit: str | None = None

    @classmethod
    def from_saved(cls, saved: Any) -> "BaseIdentity | None":
        """Reads what `as_dict` returned and a file kept.

        Args:
            saved: From a checkpoint, `run.json` or `base_model.json`.

        Returns:
            The identity; `None` if the file has none, as those of older releases.
        """
        names = ("weights", "config", "tokenizer")
        if not isinstance(saved, Mapping) or not all(isinstance(saved.get(name), str) for name in names):
            return None
        return cls(saved["weights"], saved["config"], saved["tokenizer"], saved.get("commit"))

    def as_dict(self) -> dict[str, str | None]:
        """The attributes by name, as JSON can hold them."""
        return asdict(self)

    def differences(self, other: "BaseIdentity", *, weights: bool = True) -> list[str]:
        """Lists the parts that differ.

        Args:
            other: The identity at another time or place.
            weights: Whether weights are compared.

        Returns:
            For each part its name and the first digits of both hashes.
        """
        parts = [("weights", "weights")] * weights + [("config", "configuration"), ("tokenizer", "tokenizer")]
        return [
            f"{words} (SHA-256 {getattr(self, name)[:12]}, now {getattr(other, name)[:12]})"
            for name, words in parts
            if getattr(self, name) != getattr(other, name)
        ]


def identify_base(backbone: str) -> BaseIdentity:
    """Hashes the files of a base model, downloading them first if they are on the hub.

    Args:
        backbone: Hub id, folder or `package://` name.

    Returns:
        The identity.

    Raises:
        BackboneError: If the model, or a file of it, is not there or cannot be read.
    """
    source = resolve_backbone(backbone)
    try:
        files = _LocalFiles(Path(source)) if Path(source).is_dir() else _HubFiles(source)
        return BaseIdentity(
            weights=_combined(_weight_files(files)),
            config=_config_hash(files),
            tokenizer=_combined([*files.existing(TOKENIZERS), *files.more_templates()]),
            commit=files.commit,
        )
    except OSError as error:  # the hub's errors are among them
        why = " ".join(str(error).split())[:200]
        msg = f"the files of the backbone {backbone!r} cannot be read: {why} ({type(error).__name__})"
        raise BackboneError(msg) from error


class _LocalFiles:
    """The files of a folder."""

    commit: str | None = None

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str) -> Path | None:
        path = self.folder / name
        return path if path.is_file() else None

    def existing(self, names: Iterable[str]) -> list[Path]:
        return [path for name in names if (path := self.find(name)) is not None]

    def more_templates(self) -> list[Path]:
        """Chat templates beside the default one, such as `tool_use`."""
        return sorted(self.folder.glob(MORE_TEMPLATES))


class _HubFiles(_LocalFiles):
    """The files of a repository on the hub, or of its cache if the hub cannot be reached."""

    def __init__(self, repository: str) -> None:
        self.repository = repository
        if (config := self.find("config.json")) is None:
            raise BackboneError(not_found(repository))
        super().__init__(config.parent)
        self.commit = config.parent.name  # <cache>/snapshots/<commit>/config.json

    def find(self, name: str) -> Path | None:
        try:
            return Path(hf_hub_download(self.repository, name, local_files_only=not hub_is_reachable()))
        except EntryNotFoundError:
            return None

    def more_templates(self) -> list[Path]:
        """None: the cache has them only once a tokenizer was loaded, so that the first start would differ."""
        return []


def _weight_files(files: _LocalFiles) -> list[Path]:
    if not isinstance(files, _HubFiles) and (gguf := gguf_file_of(str(files.folder))) is not None:
        return [files.folder / gguf]
    found = next((path for name in WEIGHTS if (path := files.find(name)) is not None), None)
    if found is None:
        return []
    return [found, *files.existing(shards_of(found) or [])]  # transformers says what is wrong with a list of shards


def shards_of(weights: Path) -> list[str] | None:
    """Reads which files a list of shards names.

    Args:
        weights: A file of weights, or a list of shards, which is JSON.

    Returns:
        Names, sorted; none for a file of weights; `None` for a list that cannot be read.
    """
    if weights.suffix != ".json":
        return []
    try:
        shards = set(json.loads(weights.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return sorted(str(shard) for shard in shards)


def _config_hash(files: _LocalFiles) -> str:
    digest, code = hashlib.sha256(), False
    for path in files.existing(CONFIGS):
        content = path.read_bytes()
        try:
            values = json.loads(content)
            code = code or "auto_map" in values
            values = {name: value for name, value in values.items() if name not in NOTES}
            content = json.dumps(values, sort_keys=True).encode()
        except (ValueError, TypeError, AttributeError):  # transformers says what is wrong with it
            pass
        digest.update(content)
    if code:
        digest.update((files.commit or _combined(sorted(files.folder.glob("*.py")))).encode())
    return digest.hexdigest()


def _combined(paths: Sequence[Path]) -> str:
    """One hash of several files and their names."""
    digest = hashlib.sha256()
    to_read = [path for path in paths if _hash_of_the_hub(path) is None]
    hashes = dict(zip(to_read, hash_files(to_read), strict=True))
    for path in paths:
        digest.update(f"{path.name} {_hash_of_the_hub(path) or hashes[path]}\n".encode())
    return digest.hexdigest()


def _hash_of_the_hub(path: Path) -> str | None:
    """The SHA-256 by which the hub's cache names a large file, so that it need not be read."""
    name = path.resolve().name if path.is_symlink() else ""
    is_hash = len(name) == SHA256_DIGITS and not set(name) - set("0123456789abcdef")
    return name if is_hash and path.resolve().parent.name == "blobs" else None
