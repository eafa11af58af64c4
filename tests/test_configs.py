"""Every YAML in configs/ is found by itself and trains, validates and tests on a tiny model of its own family."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_lightning.main import main
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150, save_tiny_squad, save_tiny_table
from tests.tiny_glue import save_tiny_glue
from tests.tiny_models import FAMILIES

CONFIGS = Path(__file__).parent.parent / "configs"
VARIANTS = ("full", "small", "imbalanced", "oos_plus")


def family_of(backbone: str) -> str:
    """The tiny family that stands in for a config's backbone; sentence encoders are BERT."""
    names = [family for family in FAMILIES if backbone.startswith(family)]
    return max(names, key=len) if names else "bert"


def data_words(data: dict[str, Any], folder: Path) -> list[str]:
    """Options that put tiny data in place of a config's own; synthetic data needs none."""
    if data["class_path"] == "Clinc150DataModule":
        return [f"--data.data_dir={save_tiny_clinc150(folder, VARIANTS)}"]
    if data["class_path"] == "SquadV2DataModule":  # a tiny backbone has 40 positions
        return [f"--data.data_dir={save_tiny_squad(folder)}", "--data.max_length=32", "--data.doc_stride=8"]
    if data["class_path"] == "GlueDataModule":
        return [
            f"--data.data_dir={save_tiny_glue(folder, data['init_args']['task_name'])}",
            "--data.allow_partial=true",
        ]
    if data["class_path"] == "TextClassificationDataModule":
        return [f"--data.train_file={save_tiny_table(folder / 'train.csv')}"]
    assert data["class_path"] == "SyntheticIntentsDataModule"
    return []


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config_trains(path: Path, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert config["seed_everything"] == 0
    words = ["fit", f"--config={path}", f"--data.cache_dir={tmp_path}", "--data.batch_size=4"]
    words += [f"--model.backbone={tiny_backbone(family_of(config['model']['init_args']['backbone']))}"]
    words += [f"--trainer.logger.save_dir={tmp_path}", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    words += ["--trainer.limit_train_batches=3", "--trainer.enable_progress_bar=false"]
    words += data_words(config["data"], tmp_path / "data")
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
