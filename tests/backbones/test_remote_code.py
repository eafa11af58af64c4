"""Architectures whose Python code lies in the backbone's own folder: run only where the user says so."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForSequenceClassification

from lora_lightning.backbones import load_config, remote_code, trust_remote_code
from lora_lightning.cli.main import main
from lora_lightning.errors import BackboneError
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150, save_tiny_squad, save_tiny_wikitext

CODE = """
from pathlib import Path

from transformers import {family}Config, {family}Model, {family}For{head}

Path({mark!r}).touch()


class OwnConfig({family}Config):
    model_type = "own"


class OwnModel({family}Model):
    config_class = OwnConfig


class OwnHead({family}For{head}):
    config_class = OwnConfig
"""
# Head in transformers' words, family, layers, data module, what writes its data, its options.
TASKS: dict[str, tuple[str, str, str, str, Callable[[Path], Path], dict[str, int]]] = {
    "intents": ("SequenceClassification", "Bert", "query,value", "Clinc150DataModule", save_tiny_clinc150, {}),
    "answers": (
        *("QuestionAnswering", "Bert", "query,value", "SquadV2DataModule", save_tiny_squad),
        {"max_length": 32, "doc_stride": 8},
    ),
    "text": ("CausalLM", "Llama", "q_proj,v_proj", "PlainTextDataModule", save_tiny_wikitext, {"context_length": 32}),
}
TRUST = "--trust_remote_code=true"


@pytest.fixture(autouse=True)
def _nothing_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_code, "_trusted", set())
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


def own_backbone(template: Path, folder: Path, family: str, head: str) -> Path:
    """A tiny backbone that only the code in its folder knows; the code leaves a file `executed` beside the folder."""
    shutil.copytree(template, folder)
    code = CODE.format(family=family, head=head, mark=str(folder.with_name("executed")))
    (folder / "own.py").write_text(code)
    names = {"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel", f"AutoModelFor{head}": "own.OwnHead"}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": names}))
    return folder


def words_of(kind: str, backbone: Path, place: Path) -> list[str]:
    head, _, layers, datamodule, save, options = TASKS[kind]
    task = {"CausalLM": "CausalLanguageModeling"}.get(head, head)
    words = [f"--model={task}Task", f"--model.backbone={backbone}", f"--model.lora.target_modules=[{layers}]"]
    words += [f"--data={datamodule}", f"--data.data_dir={save(place / 'data')}", f"--data.cache_dir={place / 'cache'}"]
    words += [f"--data.{name}={value}" for name, value in options.items()]
    return [*words, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def fit_words(words: list[str], logs: Path) -> list[str]:
    words = ["fit", *words, "--trainer.max_steps=2", "--trainer.logger=TensorBoardLogger", "--test_after_fit=false"]
    return [*words, f"--trainer.logger.save_dir={logs}", "--trainer.logger.name=run"]


@pytest.mark.parametrize("kind", TASKS)
def test_code_of_a_backbone_runs_only_where_the_user_says_so(
    tiny_backbone: TinyBackbone, tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str
) -> None:
    head, family, *_ = TASKS[kind]
    backbone = own_backbone(tiny_backbone(family.lower()), tmp_path / "own", family, head)
    words = words_of(kind, backbone, tmp_path)
    fit, mark = fit_words(words, tmp_path), tmp_path / "executed"
    assert main(fit) == 2
    assert "set --trust_remote_code true" in capfd.readouterr().err
    assert not mark.exists()

    assert main([*fit, TRUST]) == 0
    assert f"Python files in {backbone} are executed" in capfd.readouterr().err
    assert mark.exists()

    # The checkpoint may be a stranger's, so it does not say it again.
    remote_code._trusted.clear()
    mark.unlink()
    evaluate = ["validate", *words, f"--ckpt_path={tmp_path / 'run/version_0/checkpoints/last.ckpt'}"]
    capfd.readouterr()
    assert main(evaluate) == 2
    assert "set --trust_remote_code true" in capfd.readouterr().err
    assert not mark.exists()
    assert main([*evaluate, TRUST]) == 0


def readme_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_the_exported_adapter_loads_with_the_code(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    backbone = own_backbone(tiny_backbone("bert"), tmp_path / "own", "Bert", "SequenceClassification")
    assert main([*fit_words(words_of("intents", backbone, tmp_path), tmp_path), TRUST]) == 0
    folder = tmp_path / "run/version_0/adapter"
    config = AutoConfig.from_pretrained(folder / "config", trust_remote_code=True)
    base = AutoModelForSequenceClassification.from_pretrained(backbone, config=config, trust_remote_code=True)
    model = PeftModel.from_pretrained(base, folder).eval()
    assert type(model.get_base_model()).__name__ == "OwnHead"
    trained = torch.load(tmp_path / "run/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    name, value = next((name, value) for name, value in trained.items() if "lora_B" in name)
    assert value.count_nonzero() > 0
    assert torch.equal(dict(model.named_parameters())[name.removeprefix("network.")], value)
    call = re.search(
        r"AutoModelForSequenceClassification\.from_pretrained\(.*trust_remote_code=True\)", readme_of(folder)
    )
    assert call is not None
    names = {"AutoModelForSequenceClassification": AutoModelForSequenceClassification, "folder": folder}
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    with torch.no_grad():
        loaded = eval(call[0], names).eval()(**inputs).logits  # noqa: S307
        torch.testing.assert_close(loaded, model(**inputs).logits, rtol=1e-5, atol=1e-6)


def test_a_fully_trained_model_brings_its_code(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    backbone = own_backbone(tiny_backbone("bert"), tmp_path / "own", "Bert", "SequenceClassification")
    words = [word for word in words_of("intents", backbone, tmp_path) if "model.lora" not in word]
    assert main([*fit_words([*words, "--model.lora=null"], tmp_path), TRUST]) == 0
    shutil.rmtree(backbone)
    model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "run/version_0/adapter", trust_remote_code=True
    )
    assert type(model).__name__ == "OwnHead"


def test_trust_is_for_one_backbone(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    first, second = (
        own_backbone(tiny_backbone("bert"), tmp_path / name / "own", "Bert", "SequenceClassification")
        for name in ("first", "second")
    )
    trust_remote_code(str(first))
    assert load_config(str(first)).model_type == "own"
    with pytest.raises(BackboneError, match="set --trust_remote_code true"):
        load_config(str(second))
