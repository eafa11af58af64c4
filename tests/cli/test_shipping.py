"""What a run of a user's own texts leaves for others: an adapter with a card, not bound to this machine."""

import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file

from lora_lightning.cli.main import main
from lora_lightning.runs.record import RunRecord
from lora_lightning.runs.settings import settings_in
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_table

ID = "org/tiny"


PRINTED = "printed.txt"


@pytest.fixture(scope="module")
def run(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A finished run, with what it printed beside it; not to be changed."""
    logs = tmp_path_factory.mktemp("logs")
    words = [
        "--model=SequenceClassificationTask",
        f"--model.backbone={tiny_backbone('bert')}",
        "--model.lora.r=4",
        "--data=TextClassificationDataModule",
        f"--data.train_file={save_tiny_table(logs / 'train.csv')}",
        "--data.test_share=0.2",
        "--data.batch_size=8",
        f"--data.cache_dir={logs / 'cache'}",
        "--trainer.max_epochs=2",
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        "--trainer.logger=TensorBoardLogger",
        f"--trainer.logger.save_dir={logs}",
        "--trainer.logger.name=mine",
        "--checkpoint.monitor=val/f1",
        "--checkpoint.mode=max",
        f"--base-model-id={ID}",
    ]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.setattr(constants, "HF_HUB_CACHE", str(logs / "hub"))
        assert main(["fit", *words]) == 0
    (logs / "mine" / PRINTED).write_text(printed.getvalue())
    return RunRecord.load(logs / "mine" / "version_0")


def test_the_start_says_that_the_scaling_has_changed(run: RunRecord) -> None:
    lines = (run.folder.parent / PRINTED).read_text().splitlines()
    note = next(number for number, line in enumerate(lines) if "note: model.lora.r is 4 instead of 8" in line)
    assert note < next(number for number, line in enumerate(lines) if line.startswith("metric"))


def test_the_adapter_names_its_base_by_the_id(run: RunRecord, tiny_backbone: TinyBackbone) -> None:
    adapter = run.folder / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == ID
    assert json.loads((adapter / "base_model.json").read_text())["compared"] == "not compared"
    here = str(tiny_backbone("bert")).encode()
    assert not [path for path in adapter.rglob("*") if path.is_file() and here in path.read_bytes()]


def test_the_id_is_no_part_of_a_runs_settings(run: RunRecord) -> None:
    text = (run.folder / "config.yaml").read_text()
    assert f"base_model_id: {ID}" in text
    assert settings_in(text) == settings_in(text.replace(ID, "org/other"))


def test_a_run_that_goes_on_exports_into_its_own_folder(run: RunRecord, tmp_path: Path) -> None:
    card = run.folder / "adapter" / "README.md"
    before = card.read_bytes()
    words = [f"--config={run.folder / 'config.yaml'}", f"--trainer.logger.save_dir={tmp_path}"]
    words += [f"--ckpt_path={run.folder / 'checkpoints' / 'last.ckpt'}", "--trainer.max_epochs=3"]
    assert main(["fit", *words]) == 0
    own = RunRecord.load(tmp_path / "mine" / "version_0")
    assert own.adapter is not None
    best = [record.folder / "checkpoints" / "best.ckpt" for record in (own, run)]
    assert best[0].read_bytes() == best[1].read_bytes()  # no later epoch was better
    weights = torch.load(best[0], weights_only=True)["state_dict"]
    exported = load_file(own.adapter / "adapter_model.safetensors")
    name = next(name for name in exported if "lora_B" in name)
    assert torch.equal(exported[name], weights[f"network.{name.replace('.weight', '.default.weight')}"])
    assert "epochs, at most | `3`" in (own.adapter / "README.md").read_text()
    assert card.read_bytes() == before


def test_another_name_for_the_base_of_a_finished_run_is_not_ignored(
    run: RunRecord, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        f"--config={run.folder / 'config.yaml'}",
        "--resume=auto",
        f"--trainer.logger.save_dir={run.folder.parents[1]}",
    ]
    assert main(["fit", *words, "--base_model_id=org/other"]) == 2
    assert f"lora-lightning export {run.folder} --output DIR --base_model_id org/other" in capsys.readouterr().err
    assert main(["fit", *words]) == 0


def test_a_fully_trained_model_has_no_base_to_name(
    run: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--config={run.folder / 'config.yaml'}", f"--trainer.logger.save_dir={tmp_path}", "--model.lora=null"]
    assert main(["fit", *words]) == 2
    assert f"base_model_id is '{ID}', but a fully trained model needs no base" in capsys.readouterr().err


def test_a_threshold_that_validation_chooses_needs_validation(
    run: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--config={run.folder / 'config.yaml'}", f"--trainer.logger.save_dir={tmp_path}"]
    words += ["--model.decision_threshold=best_f1", "--trainer.limit_val_batches=0", "--base_model_id=null"]
    assert main(["fit", *words]) == 2
    assert "model.decision_threshold is best_f1, which validation chooses" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_a_card_without_validation_claims_no_choice(run: RunRecord, tmp_path: Path) -> None:
    words = [f"--config={run.folder / 'config.yaml'}", f"--trainer.logger.save_dir={tmp_path}"]
    words += [
        "--trainer.limit_val_batches=0",
        "--trainer.max_steps=1",
        "--base_model_id=null",
        "--test_after_fit=false",
    ]
    assert main(["fit", *words]) == 0
    text = (tmp_path / "mine" / "version_0" / "adapter" / "README.md").read_text()
    assert "chosen by" not in text
    assert "These are the weights of the last step: " in text


def test_the_card_has_metrics_data_settings_and_how_to_load(run: RunRecord) -> None:
    card = ModelCard.load(run.folder / "adapter" / "README.md")
    assert card.data.base_model == ID
    assert card.data.pipeline_tag == "text-classification"
    assert f"It was not checked whether {ID} has the weights" in card.text
    assert "from_pretrained(folder" in card.text
    shown = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert shown == pytest.approx(run.metrics["test"], rel=1e-5)
    assert {result.dataset_split for result in card.data.eval_results} == {"test"}
    rows = dict(re.findall(r"^\| ([^|]+?) \| (.+?) \|$", card.text, re.MULTILINE))
    assert rows["f1"] == f"{run.metrics['val']['f1']:.4f} | {run.metrics['test']['f1']:.4f}"
    assert rows["train"].endswith(f"`{run.data_fingerprint['train']}`")
    assert rows["r"] == "`4`"
    assert rows["learning rate"] == "`0.001`"
    assert "torch" in rows
    assert "The checkpoint was chosen by `val/f1`." in card.text
