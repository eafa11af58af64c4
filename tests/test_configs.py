"""Every YAML in configs/ is found by itself and trains, validates and tests on a tiny model of its own family."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_lightning.main import main
from tests.conftest import TinyBackbone
from tests.tiny_data import (
    save_tiny_clinc150,
    save_tiny_instructions,
    save_tiny_squad,
    save_tiny_table,
    save_tiny_wikitext,
)
from tests.tiny_glue import save_tiny_glue
from tests.tiny_models import FAMILIES

CONFIGS = Path(__file__).parent.parent / "configs"
VARIANTS = ("full", "small", "imbalanced", "oos_plus")


FAMILY_OF_SERIES = {"smollm2": "llama", "qwen2": "qwen2"}  # models that are called otherwise than their architecture
CHAT_TEMPLATE = "{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}"


def family_of(backbone: str) -> str:
    """The tiny family that stands in for a config's backbone; sentence encoders are BERT."""
    for series, family in FAMILY_OF_SERIES.items():
        if series in backbone.lower():
            return family
    names = [family for family in FAMILIES if backbone.startswith(family)]
    return max(names, key=len) if names else "bert"


def stand_in(config: dict[str, Any], tiny_backbone: TinyBackbone, folder: Path) -> Path:
    """A tiny backbone of the config's family, with a chat template where it needs one."""
    tiny = tiny_backbone(family_of(config["model"]["init_args"]["backbone"]))
    if not config["data"]["init_args"].get("chat_template"):
        return tiny
    copy = Path(shutil.copytree(tiny, folder / "chatty"))
    (copy / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return copy


def data_words(data: dict[str, Any], folder: Path) -> list[str]:
    """Options that put tiny data in place of a config's own; synthetic data needs none."""
    words: dict[str, Callable[[], list[str]]] = {
        "Clinc150DataModule": lambda: [f"--data.data_dir={save_tiny_clinc150(folder, VARIANTS)}"],
        "GlueDataModule": lambda: [
            f"--data.data_dir={save_tiny_glue(folder, data['init_args']['task_name'])}",
            "--data.allow_partial=true",
        ],
        # A tiny backbone has 40 positions.
        "InstructionDataModule": lambda: [
            f"--data.train_file={save_tiny_instructions(folder)}",
            "--data.context_length=40",
        ],
        "PlantedRankDataModule": list,
        "PlainTextDataModule": lambda: [f"--data.data_dir={save_tiny_wikitext(folder)}", "--data.context_length=30"],
        "SquadV2DataModule": lambda: [
            f"--data.data_dir={save_tiny_squad(folder)}",
            "--data.max_length=32",
            "--data.doc_stride=8",
        ],
        "SyntheticIntentsDataModule": list,
        "TextClassificationDataModule": lambda: [f"--data.train_file={save_tiny_table(folder / 'train.csv')}"],
    }
    return words[data["class_path"]]()


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config_trains(path: Path, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert config["seed_everything"] == 0
    words = ["fit", f"--config={path}", "--data.batch_size=4"]
    if "backbone" in config["model"]["init_args"]:
        words += [f"--model.backbone={stand_in(config, tiny_backbone, tmp_path)}", f"--data.cache_dir={tmp_path}"]
    words += [f"--trainer.logger.save_dir={tmp_path}", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    words += ["--trainer.limit_train_batches=3", "--trainer.enable_progress_bar=false"]
    words += data_words(config["data"], tmp_path / "data")
    if config["model"]["class_path"] == "CausalLanguageModelingTask":
        words += ["--model.generation.max_new_tokens=2"]
    assert main(words) == 0
    name = config["trainer"]["logger"]["init_args"]["name"]
    assert (tmp_path / name / "version_0" / "adapter" / "adapter_model.safetensors").exists()
    assert (tmp_path / name / "version_0" / "summary.json").exists()


def test_every_config_says_how_to_run_it() -> None:
    paths = sorted(CONFIGS.rglob("*.yaml"))
    assert len(paths) >= 5
    for path in paths:
        relative = path.relative_to(CONFIGS.parent)
        assert f"# lora-lightning fit --config {relative}" in path.read_text(), relative
