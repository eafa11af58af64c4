"""A base model is known by the content of its files: what changes it, and what does not."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

from lora_lightning.backbones import base_identity
from lora_lightning.backbones.base_identity import BaseIdentity, identify_base
from lora_lightning.errors import BackboneError
from tests.conftest import TinyBackbone


@pytest.fixture
def base(tiny_backbone: TinyBackbone, tmp_path: Path) -> Path:
    """A folder that a test may change."""
    return Path(shutil.copytree(tiny_backbone("llama"), tmp_path / "base"))


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(name: str, key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**content, key: value}))

    return change


def save_text(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("{{ messages }}")


CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "weights": (flip_a_bit, ["weights"]),
    "config": (edit("config.json", "rms_norm_eps", 0.5), ["configuration"]),
    "stopping": (edit("generation_config.json", "eos_token_id", 3), ["configuration"]),
    "tokenizer": (edit("tokenizer_config.json", "model_max_length", 7), ["tokenizer"]),
    "template": (lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"), ["tokenizer"]),
    "slow tokenizer": (lambda folder: (folder / "spm.model").write_bytes(b"DeBERTa-v3 has no other"), ["tokenizer"]),
    "another template": (lambda folder: save_text(folder / "additional_chat_templates/tool_use.jinja"), ["tokenizer"]),
    "version": (edit("config.json", "transformers_version", "4.0"), []),
    "name": (edit("config.json", "_name_or_path", "elsewhere"), []),
    "readme": (lambda folder: (folder / "README.md").write_text("changed"), []),
    "unused weights": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"never loaded"), []),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_decides_what_the_model_computes_decides_its_identity(base: Path, name: str) -> None:
    (base / "generation_config.json").write_text('{"eos_token_id": 2}')
    before = identify_base(str(base))
    change, parts = CHANGES[name]
    change(base)
    assert [found.partition(" ")[0] for found in before.differences(identify_base(str(base)))] == parts


def test_every_file_that_a_tokenizer_of_transformers_reads_counts() -> None:
    classes = {
        name
        for names in TOKENIZER_MAPPING_NAMES.values()
        for name in ([names] if isinstance(names, str) else names or ())
    }
    found = {
        file
        for name in classes - {None}
        for file in getattr(getattr(transformers, name, None), "vocab_files_names", {}).values()
    }
    assert len(found) > 10
    assert found <= set(base_identity.TOKENIZERS)


def test_a_moved_folder_is_the_same_base(base: Path, tmp_path: Path) -> None:
    before = identify_base(str(base))
    base.rename(tmp_path / "elsewhere")
    assert identify_base(str(tmp_path / "elsewhere")) == before


def test_weights_may_be_left_out_of_the_comparison(base: Path) -> None:
    before = identify_base(str(base))
    flip_a_bit(base)
    assert before.differences(identify_base(str(base)), weights=False) == []


def test_every_shard_counts(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    shards = {name: f"model-0000{index % 2 + 1}-of-00002.safetensors" for index, name in enumerate(sorted(weights))}
    for file in set(shards.values()):
        save_file({name: weights[name] for name in weights if shards[name] == file}, base / file)
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    found = []
    for file in [None, *sorted(set(shards.values()))]:
        if file is not None:
            save_file({"changed": torch.zeros(1)}, base / file)
        found.append(identify_base(str(base)).weights)
    assert len(set(found)) == 3


def test_code_that_comes_with_a_model_counts(base: Path) -> None:
    edit("config.json", "auto_map", {"AutoModel": "modeling.Model"})(base)
    found = []
    for code in ("x = 1", "x = 2"):
        (base / "modeling.py").write_text(code)
        found.append(identify_base(str(base)).config)
    assert found[0] != found[1]


@pytest.fixture
def hub_cache(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of the hub's client with one model, as it lays files out: links to blobs that are named by hash."""
    repository = tmp_path / "hub/models--some--model"
    snapshot = repository / "snapshots/c0ffee"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("c0ffee")
    for number, path in enumerate(sorted(base.iterdir())):
        blob = repository / "blobs" / (f"{number:064x}" if path.suffix == ".safetensors" else f"{number:040x}")
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return repository


def test_a_model_of_the_hub_is_known_by_the_hubs_hashes(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    compute = base_identity.hash_files
    monkeypatch.setattr(base_identity, "hash_files", lambda paths: read.extend(paths) or compute(paths))
    found = identify_base("some/model")
    assert found.commit == "c0ffee"
    assert read
    assert not [path for path in read if path.suffix == ".safetensors"]  # named by its hash, so not read
    (snapshot,) = (hub_cache / "snapshots").iterdir()
    link = snapshot / "model.safetensors"
    other = hub_cache / "blobs" / ("f" * 64)
    shutil.copy(link, other)
    link.unlink()
    link.symlink_to(other)
    assert [part.partition(" ")[0] for part in found.differences(identify_base("some/model"))] == ["weights"]


def test_a_model_that_is_not_there_is_an_error() -> None:
    with pytest.raises(BackboneError, match="'some/other'"):
        identify_base("some/other")


def test_what_a_file_does_not_know_is_nothing() -> None:
    identity = BaseIdentity("1", "2", "3", None)
    assert BaseIdentity.from_saved(identity.as_dict()) == identity
    for saved in (None, {}, [], {"weights": "1"}, {"weights": 1, "config": "2", "tokenizer": "3"}):
        assert BaseIdentity.from_saved(saved) is None
