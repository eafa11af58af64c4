"""An adapter names its base by an id on the hub, says whether that is the same, and a known difference is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants
from peft import AutoPeftModelForSequenceClassification, PeftConfig

from lora_lightning.artefacts import export_adapter
from lora_lightning.backbones import load_tokenizer
from lora_lightning.backbones.adapter_config import read_adapter_config
from lora_lightning.backbones.base_identity import identify_base
from lora_lightning.backbones.base_model_id import NamedBase, name_base
from lora_lightning.backbones.export import export_model
from lora_lightning.cli.main import main
from lora_lightning.errors import BackboneError, CheckpointError, ConfigurationError
from lora_lightning.lora.config import LoraSettings
from lora_lightning.metrics import LabelSpace
from lora_lightning.tasks import SequenceClassificationTask
from tests.conftest import TinyBackbone

RUNS = Path(__file__).parents[1] / "runs" / "made_before" / "runs"
ID = "org/tiny"


@pytest.fixture
def bert(tiny_backbone: TinyBackbone) -> Path:
    return tiny_backbone("bert")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def put_into_cache(cache: Path, model: Path) -> None:
    folder = cache / "models--org--tiny"
    shutil.copytree(model, folder / "snapshots" / "abc123")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc123")


def export_tiny(backbone: Path, folder: Path, base: NamedBase | None = None) -> Path:
    task = SequenceClassificationTask(str(backbone), lora=LoraSettings(r=2), label_space=LabelSpace(["a", "b", "c"]))
    task.configure_model()
    assert task.base_identity is not None
    files: dict[str, Any] = {"base_model.json": task.base_identity.as_dict()}
    export_model(task.built_network, load_tokenizer(str(backbone)), folder, files, base=base)
    return folder


def test_an_id_in_the_cache_is_compared_by_content(bert: Path, cache: Path, tiny_backbone: TinyBackbone) -> None:
    identity = identify_base(str(bert))
    assert name_base(ID, identity).comparison == "not compared"
    put_into_cache(cache, bert)
    assert name_base(ID, identity) == NamedBase(ID, "same", identity.weights)
    other = identify_base(str(tiny_backbone("distilbert")))
    with pytest.raises(ConfigurationError, match=r"'org/tiny', but in the hub's cache that has other files of weights"):
        name_base(ID, other)
    assert name_base(ID, other, allowed=True).comparison == "different"


def test_other_files_of_the_same_weights_are_named(bert: Path, cache: Path) -> None:
    put_into_cache(cache, bert)
    next(cache.rglob("tokenizer_config.json")).write_text("{}")
    assert name_base(ID, identify_base(str(bert))).other_files == ("tokenizer",)


def test_an_incomplete_download_says_nothing(bert: Path, cache: Path) -> None:
    put_into_cache(cache, bert)
    weights = next(cache.rglob("model.safetensors"))
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    weights.with_name("model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    weights.rename(weights.with_name(shards["a"]))
    assert name_base(ID, identify_base(str(bert))).comparison == "not compared"


def test_an_adapter_that_does_not_record_its_base_is_not_called_equal(bert: Path, cache: Path, tmp_path: Path) -> None:
    adapter = export_tiny(bert, tmp_path / "adapter")
    (adapter / "base_model.json").unlink()
    network = AutoPeftModelForSequenceClassification.from_pretrained(adapter, num_labels=3)
    shutil.rmtree(adapter)
    network.save_pretrained(adapter)  # with PEFT's own card
    assert str(bert) in (adapter / "README.md").read_text()
    (adapter / "checkpoint-10").mkdir()
    put_into_cache(cache, bert)
    base = export_adapter(adapter, tmp_path / "copy", base_model_id=ID)
    assert base.comparison == "not compared"
    assert "It is not known whether org/tiny is the base model" in base.sentence
    text = (tmp_path / "copy" / "README.md").read_text()
    assert base.sentence in text
    assert json.loads((tmp_path / "copy" / "base_model.json").read_text()) == {"name": ID, "compared": "not compared"}
    for path in (tmp_path / "copy").iterdir():
        assert str(bert).encode() not in path.read_bytes(), path
    assert not (tmp_path / "copy" / "checkpoint-10").exists()


@pytest.mark.parametrize("text", ["---\nbase: [\n---\n", "---\n- a\n---\n", "\xff"])
def test_a_card_that_cannot_be_read_is_named(bert: Path, cache: Path, tmp_path: Path, text: str) -> None:
    (export_tiny(bert, tmp_path / "adapter") / "README.md").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"README\.md is no model card"):
        export_adapter(tmp_path / "adapter", tmp_path / "copy", base_model_id=ID)
    assert not (tmp_path / "copy").exists()


def test_a_file_that_cannot_be_read_is_named(bert: Path, cache: Path, tmp_path: Path) -> None:
    (export_tiny(bert, tmp_path / "adapter") / "gone.txt").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"gone\.txt cannot be read \(no such file or directory\)"):
        export_adapter(tmp_path / "adapter", tmp_path / "copy", base_model_id=ID)


def test_a_revision_is_not_lost(bert: Path, cache: Path, tmp_path: Path) -> None:
    path = export_tiny(bert, tmp_path / "adapter") / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "revision": "v2"}))
    with pytest.raises(ConfigurationError, match="trained on revision 'v2'"):
        export_adapter(tmp_path / "adapter", tmp_path / "copy", base_model_id=ID)


def test_a_cache_without_weights_says_nothing(bert: Path, cache: Path) -> None:
    put_into_cache(cache, bert)
    next(cache.rglob("model.safetensors")).unlink()
    assert name_base(ID, identify_base(str(bert))).comparison == "not compared"


@pytest.mark.parametrize("name", ["./model", "/a/b/c", " ", "a//b"])
def test_a_path_is_no_id(name: str, bert: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"--base_model_id is .* must be a model's id on the hub"):
        name_base(name, identify_base(str(bert)))


@pytest.mark.parametrize("command", [False, True])
def test_nothing_in_an_export_names_a_folder_of_this_machine(
    bert: Path, cache: Path, tmp_path: Path, command: bool
) -> None:
    base = name_base(ID, identify_base(str(bert)))
    if command:
        before = export_tiny(bert, tmp_path / "run" / "adapter")
        folder = tmp_path / "copy"
        export_adapter(tmp_path / "run", folder, base_model_id=ID)
        assert PeftConfig.from_pretrained(str(before)).base_model_name_or_path == str(bert)  # it was only read
    else:
        folder = export_tiny(bert, tmp_path / "adapter", base)
    assert PeftConfig.from_pretrained(str(folder)).base_model_name_or_path == ID
    saved = json.loads((folder / "base_model.json").read_text())
    assert saved == {**(identify_base(str(bert)).as_dict()), "name": ID, "compared": "not compared"}
    for path in folder.rglob("*"):
        assert path.is_dir() or str(bert).encode() not in path.read_bytes(), path
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == ID
    assert f"# LoRA adapter for {ID}\n" in card.text
    assert f"It was not checked whether {ID} has the weights" in card.text
    assert saved["weights"][:12] in card.text


def test_a_second_export_replaces_what_the_first_said(bert: Path, cache: Path, tmp_path: Path) -> None:
    first = export_tiny(bert, tmp_path / "adapter", NamedBase("org/other", "not compared", "0" * 64))
    put_into_cache(cache, bert)
    assert export_adapter(first, tmp_path / "copy", base_model_id=ID).comparison == "same"
    text = (tmp_path / "copy" / "README.md").read_text()
    assert "org/other" not in text
    assert f"Trained with lora-lightning. {ID} has the weights that the adapter was trained on" in text


def test_the_copy_loads_once_its_base_is_in_the_cache(bert: Path, cache: Path, tmp_path: Path) -> None:
    export_adapter(export_tiny(bert, tmp_path / "adapter"), tmp_path / "copy", base_model_id=ID)
    with pytest.raises(BackboneError, match="'org/tiny' is not a local folder"):
        read_adapter_config(tmp_path / "copy")
    put_into_cache(cache, bert)
    assert read_adapter_config(tmp_path / "copy").base == ID


def test_the_command_says_what_was_not_checked(
    bert: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = export_tiny(bert, tmp_path / "adapter")
    words = ["export", str(adapter), "--output", str(tmp_path / "copy"), "--base-model-id"]
    assert main([*words, "./x"]) == 2
    assert "must be a model's id on the hub" in capsys.readouterr().err
    assert main([*words, ID]) == 0
    assert f"It was not checked whether {ID}" in capsys.readouterr().out
    assert main([*words, ID]) == 2
    assert "exists; choose another folder" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="has no adapter"):
        export_adapter(tmp_path / "nothing", tmp_path / "third", base_model_id=ID)


@pytest.mark.parametrize("source", ["version_0", "version_0/adapter"])
def test_the_adapter_of_an_interrupted_run_is_not_taken_for_a_trained_one(
    cache: Path, tmp_path: Path, source: str
) -> None:
    run = Path(shutil.copytree(RUNS / "interrupted" / "version_0", tmp_path / "version_0"))
    last = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    torch.save({**last, "global_step": 11}, run / "checkpoints/last.ckpt")
    best = torch.load(run / "checkpoints/best.ckpt", weights_only=True)["global_step"]
    said = f"has not finished: the adapter is that of step {best}, the best so far, while the run has reached step 11;"
    with pytest.warns(UserWarning, match="--resume auto` resumes it") as caught:
        export_adapter(tmp_path / source, tmp_path / "copy", base_model_id=ID)
    (warning,) = [str(each.message) for each in caught if "resume" in str(each.message)]
    assert said in warning
    assert (tmp_path / "copy" / "adapter_config.json").is_file()


def test_the_adapter_of_a_finished_run_is_exported_without_a_warning(
    cache: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    export_adapter(RUNS / "finished" / "version_0", tmp_path / "copy", base_model_id=ID)
    assert not [each for each in recwarn if "resume" in str(each.message)]
