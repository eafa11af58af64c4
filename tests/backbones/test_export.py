"""What is exported loads with plain transformers and plain PEFT and gives the same logits; a crash harms nothing."""

import json
import socket
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from lora_lightning.backbones import load_tokenizer
from lora_lightning.backbones.export import export_model
from lora_lightning.lora.config import LoraSettings
from lora_lightning.lora.dropout import use_fast_dropout
from lora_lightning.lora.fused import fuse_lora_layers
from lora_lightning.lora.injection import attach_lora
from tests.conftest import TinyBackbone, TinyClassifier
from tests.tiny_models import FAMILIES

TEXTS = ["w1 w2 w3 w4 w5", "w9", "w7 w8 w3"]
LABELS = {0: "label 0", 1: "label 1", 2: "label 2"}

Trained = Callable[..., tuple[nn.Module, PreTrainedTokenizerBase]]


@pytest.fixture
def trained(tiny_backbone: TinyBackbone, tiny_classifier: TinyClassifier) -> Trained:
    """A network as the task builds it, after a few steps on random data, and its tokenizer."""

    def train(family: str, settings: LoraSettings | None) -> tuple[nn.Module, PreTrainedTokenizerBase]:
        tokenizer, loaded = load_tokenizer(str(tiny_backbone(family))), tiny_classifier(family)
        network: nn.Module = loaded.model
        if settings is not None:
            network = attach_lora(loaded.model, settings, loaded.lacked, "SEQ_CLS")
        use_fast_dropout(network)
        fuse_lora_layers(network)
        network.train()
        trains = [parameter for parameter in network.parameters() if parameter.requires_grad]
        before = logits_of(network, tokenizer)
        optimizer = torch.optim.AdamW(trains, lr=0.02)
        for step in range(3):
            batch = tokenizer(TEXTS, padding=True, return_tensors="pt")
            network.train()(**batch, labels=torch.tensor([0, 1, 2]).roll(step)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert (logits_of(network, tokenizer) - before).abs().max() > 1e-3
        return network, tokenizer

    return train


def logits_of(network: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    return logits


def logits_by_plain_peft(base: Path, folder: Path) -> Tensor:
    """What a user without this package gets."""
    config = AutoConfig.from_pretrained(folder, subfolder="config")
    model = AutoModelForSequenceClassification.from_pretrained(base, config=config)
    return logits_of(PeftModel.from_pretrained(model, str(folder)), AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_adapter_gives_the_same_logits_in_plain_peft(
    trained: Trained, tiny_backbone: TinyBackbone, tmp_path: Path, family: str
) -> None:
    network, tokenizer = trained(family, LoraSettings(r=2))
    adapters = [p for name, p in network.named_parameters() if "lora_B" in name]
    assert all(parameter.any() for parameter in adapters)
    export_model(network, tokenizer, tmp_path / "run" / "adapter", {})
    torch.manual_seed(12345)  # whatever stayed random would differ
    plain = logits_by_plain_peft(tiny_backbone(family), tmp_path / "run" / "adapter")
    torch.testing.assert_close(plain, logits_of(network, tokenizer), rtol=0, atol=1e-5)
    assert AutoConfig.from_pretrained(tmp_path / "run" / "adapter" / "config").id2label == LABELS


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("bert", {"bias": "all"}),
        ("bert", {"bias": "lora_only", "target_modules": "attention-qv"}),
        ("bert", {"use_rslora": True, "modules_to_save": ["layer.1"]}),
        ("electra", {"modules_to_save": ["embeddings_project"]}),
        ("gpt2", {"target_modules": "attention-qv", "lora_alpha": 3.5}),
        ("modernbert", {"modules_to_save": ["head"]}),
        ("llama", {"modules_to_save": ["embed_tokens"]}),
        ("bert", {"rank_pattern": {"layer.1.attention.self.key": 6, "key": 4}}),  # not in the order of the alphabet
        ("bert", {"alpha_pattern": {"layer.1.attention.self.key": 6.0, "key": 4.0}}),
    ],
)
def test_every_setting_survives_the_export(
    trained: Trained, tiny_backbone: TinyBackbone, tmp_path: Path, family: str, settings: dict[str, object]
) -> None:
    network, tokenizer = trained(family, LoraSettings(r=2, **settings))  # type: ignore[arg-type]
    export_model(network, tokenizer, tmp_path / "adapter", {})
    torch.manual_seed(12345)
    plain = logits_by_plain_peft(tiny_backbone(family), tmp_path / "adapter")
    torch.testing.assert_close(plain, logits_of(network, tokenizer), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_fully_fine_tuned_model_gives_the_same_logits_in_plain_transformers(
    trained: Trained, tmp_path: Path, family: str
) -> None:
    network, tokenizer = trained(family, None)
    export_model(network, tokenizer, tmp_path / "model", {})
    plain, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"]
    plain_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits_of(plain, plain_tokenizer), logits_of(network, tokenizer), rtol=0, atol=1e-5)
    assert plain.config.id2label == LABELS
    assert not (tmp_path / "model" / "adapter_config.json").exists()


def test_folder_holds_what_it_should_and_is_readable_by_all(trained: Trained, tmp_path: Path) -> None:
    network, tokenizer = trained("bert", LoraSettings(r=2))
    tokenizer.chat_template = {"default": "{{ messages }}", "short": "{{ messages[0] }}"}  # makes a subfolder
    export_model(network, tokenizer, tmp_path / "adapter", {"labels.json": {"names": ["é"], "threshold": None}})
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "labels.json"} <= names
    assert (tmp_path / "adapter" / "config" / "config.json").is_file()
    assert "config.json" not in names  # transformers would look for a complete model
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl", ".ckpt"))]
    assert json.loads((tmp_path / "adapter" / "labels.json").read_text()) == {"names": ["é"], "threshold": None}
    inside = list((tmp_path / "adapter").rglob("*"))
    assert any(path.is_dir() for path in inside)
    for path in [tmp_path / "adapter", *inside]:
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_adapter_holds_only_what_trained(trained: Trained, tmp_path: Path) -> None:
    network, tokenizer = trained("bert", LoraSettings(r=2))
    export_model(network, tokenizer, tmp_path / "adapter", {})
    trains = sum(p.numel() * p.element_size() for p in network.parameters() if p.requires_grad)
    size = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert trains < size < trains + 10_000  # the rest is names


def test_second_export_replaces_the_first(trained: Trained, tmp_path: Path) -> None:
    network, tokenizer = trained("bert", LoraSettings(r=2))
    export_model(network, tokenizer, tmp_path / "adapter", {"old.json": 1})
    export_model(network, tokenizer, tmp_path / "adapter", {"new.json": 2})
    assert (tmp_path / "adapter" / "new.json").read_text() == "2\n"
    assert not (tmp_path / "adapter" / "old.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class CrashError(Exception):
    """Stands for a full disk, a kill, a bug."""


@pytest.mark.parametrize("where", ["weights", "tokenizer", "extra file", "last move"])
@pytest.mark.parametrize("settings", [LoraSettings(r=2), None], ids=["adapter", "full"])
def test_crash_leaves_the_old_export_as_it_was(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: LoraSettings | None, where: str
) -> None:
    network, tokenizer = trained("bert", settings)
    export_model(network, tokenizer, tmp_path / "adapter", {"old.json": 1})
    before = contents(tmp_path / "adapter")

    def crash(*_: object, **__: object) -> None:
        raise CrashError

    replace = Path.replace

    def crash_on_the_new_one(self: Path, target: Path) -> Path:
        return crash() if (self / "new.json").exists() else replace(self, target)  # type: ignore[return-value,func-returns-value]

    extra: dict[str, object] = {"new.json": 2}
    if where == "weights":
        monkeypatch.setattr(type(network), "save_pretrained", crash)
    elif where == "tokenizer":
        monkeypatch.setattr(type(tokenizer), "save_pretrained", crash)
    elif where == "extra file":
        extra["bad.json"] = object()  # no JSON
    else:
        monkeypatch.setattr(Path, "replace", crash_on_the_new_one)
    with pytest.raises((CrashError, TypeError)):
        export_model(network, tokenizer, tmp_path / "adapter", extra)
    assert contents(tmp_path / "adapter") == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize("settings", [LoraSettings(r=2), LoraSettings(r=2, modules_to_save=["word_embeddings"]), None])
def test_no_hub_is_asked(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: LoraSettings | None
) -> None:
    network, tokenizer = trained("bert", settings)
    network.config._name_or_path = "some-owner/some-model"  # as if it came from the hub
    if isinstance(network, PeftModel):
        network.peft_config["default"].base_model_name_or_path = "some-owner/some-model"
    asked: list[object] = []

    def no_network(*address: object, **_: object) -> None:
        asked.append(address)
        raise OSError("blocked")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # PEFT reads this one
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    export_model(network, tokenizer, tmp_path / "adapter", {})
    assert asked == []
