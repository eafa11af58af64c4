"""Every YAML in configs/diagnosis is found by itself and runs on tiny stand-ins, with one seed and one rank."""

import json
from pathlib import Path

import pytest
import yaml

from lora_lightning.cli.main import main
from tests.conftest import TinyBackbone
from tests.diagnosis.small_diagnosis import leave_figures_out
from tests.test_configs import DIAGNOSES, VARIANTS, data_words, stand_in
from tests.tiny_data import save_tiny_clinc150

PATHS = sorted(DIAGNOSES.glob("*.yaml"))


def test_all_are_found() -> None:
    assert {path.stem for path in PATHS} >= {"gpt2_medium_instructions", "minilm_clinc150", "smollm2_instructions"}


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_diagnosis_config_runs(
    path: Path, tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_figures_out(monkeypatch)
    monkeypatch.setattr("lora_lightning.diagnosis.diagnosis_file.FEWEST_SEEDS", 1)  # a second one takes as long again
    content = yaml.safe_load(path.read_text())
    base = (path.parent / content["base"]).resolve()
    config = yaml.safe_load(base.read_text())
    content |= {"base": str(base), "name": path.stem, "seeds": content["seeds"][:1], "ranks": content["ranks"][2:3]}
    content["compare"] = {"rank": content["compare"]["rank"]}
    is_language_model = config["model"]["class_path"] == "CausalLanguageModelingTask"
    rows = 2 if is_language_model else 8  # fewer than there are
    content["measure"] |= {"rows": rows, "singles": 2, "prompts": 1, "new_tokens": 2}
    (tmp_path / "diagnosis.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    words = data_words(config["data"], tmp_path / "data")
    words += ["--data.validation_share=0.6", "--trainer.val_check_interval=1"] * is_language_model
    if config["data"]["class_path"] == "Clinc150DataModule":
        words = [f"--data.data_dir={save_tiny_clinc150(tmp_path / 'data', VARIANTS)}"]
    words += [f"--model.backbone={stand_in(config, tiny_backbone, tmp_path)}", f"--data.cache_dir={tmp_path}"]
    words += ["--data.batch_size=4", "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.max_steps=2"]
    words += ["--trainer.callbacks=null", "--trainer.accumulate_grad_batches=1"]
    settings = [f"--set={word.removeprefix('--')}" for word in words]
    assert main(["diagnose", "run", str(tmp_path / "diagnosis.yaml"), *settings, f"--save_dir={tmp_path}"]) == 0
    found = json.loads((tmp_path / path.stem / "diagnosis.json").read_text())
    for part in ("similarity", "errors", "sensitivity", "behaviors", "merges"):
        assert found[part] is not None, part
    (pair,) = found["behaviors"]["pairs"]
    assert pair["predictions"]["rows"] > 0
    assert (pair["greedy"] is not None) is is_language_model
    assert found["sensitivity"]["examples"] == found["behaviors"]["examples"]
    # Rows of 40 tokens hold several of the 22 documents that are held out.
    assert 0 < found["sensitivity"]["examples"] <= (12 if is_language_model else 8)
    assert (pair["flips"] is not None) is not is_language_model
    assert len(found["sensitivity"]["scores"]) == len(found["errors"]["layers"]) > 4
    chosen = found["sensitivity"]["skip"]["modules"]  # also without skip_modules, which only asks for a proof
    assert (tmp_path / path.stem / "skip_modules.yaml").exists() is bool(chosen)
