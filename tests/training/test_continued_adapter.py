"""A run that continues an existing adapter starts where the former ended, and needs its folder only once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Callback, Trainer
from safetensors.torch import load_file, save_file

from lora_lightning import RunRecord, evaluate, predict, train
from lora_lightning.cli.main import main
from lora_lightning.errors import CheckpointError, ConfigurationError
from tests.artefacts.conftest import merge_here  # noqa: F401
from tests.artefacts.runs import train_tiny_run
from tests.conftest import TinyBackbone

NO_STEP = {"model.optimization.learning_rate": 1e-12, "trainer.max_epochs": 1}  # too small to change anything
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "intents": ("bert", {"model__lora__r": 3, "model__lora__use_rslora": True}),
    "text": ("llama", {"model__lora__init_lora_weights": "pissa"}),
    "questions": ("bert", {"model__lora__use_dora": True}),
}


def settings_of(run: RunRecord, **lora: Any) -> dict[str, Any]:
    """The config of a run with other settings of the adapter."""
    settings: dict[str, Any] = yaml.safe_load((run.folder / "config.yaml").read_text())
    settings["model"]["init_args"]["lora"] = lora
    return settings


def val_metrics(run: RunRecord) -> dict[str, float]:
    return dict(run.metrics["val"])


@pytest.fixture(scope="module")
def first(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A classifier's run, relative to nothing."""
    options = {"model__lora__r": 3, "model__lora__lora_dropout": 0.2}
    return train_tiny_run("intents", tiny_backbone("bert"), tmp_path_factory.mktemp("first"), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_validation_is_the_last_one_of_the_adapters_run(
    kind: str, tiny_backbone: TinyBackbone, tmp_path: Path
) -> None:
    family, options = KINDS[kind]
    former = train_tiny_run(kind, tiny_backbone(family), tmp_path, **options)
    assert former.adapter is not None
    saved = load_file(former.adapter / "adapter_model.safetensors")
    assert not [name for name in saved if ".lora_" not in name and "modules_to_save" not in name and "layers" in name]
    run = train(settings_of(former), {"model.adapter": str(former.adapter), **NO_STEP})
    expected = val_metrics(former)
    assert val_metrics(run) == pytest.approx(expected, abs=1e-6, rel=1e-6)


def test_where_a_run_came_from(first: RunRecord) -> None:
    adapter = str(first.adapter)
    run = train(settings_of(first), {"model.adapter": adapter, **NO_STEP})
    assert run.continued_from is not None
    assert run.continued_from["adapter"] == str(Path(adapter).resolve())
    assert run.continued_from["weights"] is not None
    assert first.continued_from is None
    assert run.adapter is not None
    card = (run.adapter / "README.md").read_text()
    assert "Training continued the adapter in a local folder; " in card
    assert f"the SHA-256 of its weights is {run.continued_from['weights']}" in card
    assert "Training continued" not in (first.adapter / "README.md").read_text()  # type: ignore[operator]
    lora = run.settings["model"]["init_args"]["lora"]
    assert (lora["r"], lora["lora_alpha"], lora["lora_dropout"]) == (3, 16.0, 0.2)
    assert lora["target_modules"] == "all-linear"


class StopInSecondEpoch(Callback):
    """Ends a training as Ctrl-C does."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


def test_a_run_resumes_exactly_and_is_used_without_the_adapters_folder(
    first: RunRecord,
    tmp_path: Path,
    merge_here: Any,  # noqa: F811
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(first.adapter, adapter)  # type: ignore[arg-type]
    options = {"model.adapter": str(adapter), "trainer.max_epochs": 2, "trainer.logger.init_args.name": "second"}
    full = train(settings_of(first), {**options, "trainer.logger.init_args.name": "full"})
    with pytest.raises(KeyboardInterrupt):
        train(settings_of(first), options, callbacks=[StopInSecondEpoch()])
    folder = full.folder.parent.parent / "second" / "version_0"
    shutil.rmtree(adapter)
    run = train(folder / "config.yaml", resume=True)
    assert run.folder == folder
    assert run.continued_from == full.continued_from
    left, right = (load_file(record.adapter / "adapter_model.safetensors") for record in (full, run))  # type: ignore[operator]
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert evaluate(run, "val")["val/loss"] == pytest.approx(run.metrics["val"]["loss"], abs=1e-6)
    assert len(predict(run, ["w1 w2", "w3"])) == 2
    assert merge_here(run.folder).written.failure is None


def test_a_run_is_not_resumed_with_other_weights_in_its_adapters_folder(first: RunRecord, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(first.adapter, adapter)  # type: ignore[arg-type]
    options = {"model.adapter": str(adapter), **NO_STEP, "trainer.logger.init_args.name": "replaced"}
    run = train(settings_of(first), options)
    weights, file = load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.safetensors"
    before = file.read_bytes()
    save_file({name: 1.01 * value for name, value in weights.items()}, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"continued the adapter .*, whose weights have changed since"):
        train(settings_of(first), options, resume=True)
    (run.folder / "summary.json").unlink()  # as if it had been killed before its last write
    with pytest.raises(CheckpointError, match=r"continued the adapter .*, whose weights have changed since"):
        train(settings_of(first), options, resume=True)
    file.write_bytes(before)
    assert train(settings_of(first), options, resume=True).folder == run.folder


def test_a_folder_that_is_gone_is_a_sentence_that_says_how_to_resume(
    first: RunRecord, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings_of(first)))
    assert main(["fit", f"--config={config}", f"--model.adapter={tmp_path / 'gone'}"]) == 2
    said = capfd.readouterr().err
    assert "is not a folder and could not be downloaded" in said
    assert "--resume auto" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("given", [{"r": 8}, {"lora_alpha": 17.0}, {"init_lora_weights": "gaussian"}, {"bias": "all"}])
def test_a_setting_that_the_user_gave_must_not_contradict_even_if_it_is_the_default(
    given: dict[str, Any], first: RunRecord
) -> None:
    (name,) = given
    with pytest.raises(ConfigurationError, match=rf"model.lora.{name} is {next(iter(given.values()))!r}, but the"):
        train(settings_of(first, **given), {"model.adapter": str(first.adapter)})


def test_the_dropout_may_be_another(first: RunRecord) -> None:
    run = train(settings_of(first, lora_dropout=0.05), {"model.adapter": str(first.adapter), **NO_STEP})
    assert run.settings["model"]["init_args"]["lora"]["lora_dropout"] == 0.05  # the default of a new adapter


def test_an_adapter_without_lora_settings_is_refused(first: RunRecord, capfd: pytest.CaptureFixture[str]) -> None:
    settings = settings_of(first)
    settings["model"]["init_args"]["lora"] = None
    with pytest.raises(ConfigurationError, match=r"model.adapter continues an adapter, but model.lora is null"):
        train(settings, {"model.adapter": str(first.adapter)})


def test_labels_in_another_order_are_permuted_by_name(first: RunRecord, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(first.adapter, adapter)  # type: ignore[arg-type]
    labels = json.loads((adapter / "labels.json").read_text())
    labels["names"].reverse()
    labels["out_of_scope_index"] = len(labels["names"]) - 1 - labels["out_of_scope_index"]
    (adapter / "labels.json").write_text(json.dumps(labels))
    run = train(settings_of(first), {"model.adapter": str(adapter), **NO_STEP})
    before, after = (
        load_file(folder / "adapter_model.safetensors")["base_model.model.classifier.weight"]
        for folder in (adapter, run.adapter)
        if folder is not None
    )
    assert torch.allclose(after, before.flip(0), atol=1e-6)
