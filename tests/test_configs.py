"""Every YAML in configs/ is found by itself and trains, validates and tests on a tiny model of its own family."""

from pathlib import Path

import pytest
import yaml

from lora_lightning.main import main
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150, save_tiny_squad
from tests.tiny_models import FAMILIES

CONFIGS = Path(__file__).parent.parent / "configs"
VARIANTS = ("full", "small", "imbalanced", "oos_plus")


def family_of(backbone: str) -> str:
    """The tiny family that stands in for a config's backbone; sentence encoders are BERT."""
    names = [family for family in FAMILIES if backbone.startswith(family)]
    return max(names, key=len) if names else "bert"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_config_trains(path: Path, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    assert config["seed_everything"] == 0
    words = ["fit", f"--config={path}", f"--data.cache_dir={tmp_path}", "--data.batch_size=4"]
    words += [f"--model.backbone={tiny_backbone(family_of(config['model']['init_args']['backbone']))}"]
    words += [f"--trainer.logger.save_dir={tmp_path}", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    words += ["--trainer.limit_train_batches=3", "--trainer.enable_progress_bar=false"]
    if config["data"]["class_path"] == "Clinc150DataModule":
        words += [f"--data.data_dir={save_tiny_clinc150(tmp_path / 'data', VARIANTS)}"]
    if config["data"]["class_path"] == "SquadV2DataModule":
        words += [f"--data.data_dir={save_tiny_squad(tmp_path / 'data')}"]
        words += ["--data.max_length=32", "--data.doc_stride=8"]  # a tiny backbone has 40 positions
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
