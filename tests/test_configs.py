"""Every YAML in configs/ is found by itself and trains, validates and tests on a tiny model of its own family."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lora_lightning import callbacks
from lora_lightning.callbacks.adapter_monitor import AdapterMonitor
from lora_lightning.cli.main import main
from lora_lightning.training.commands import prepare_command
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
PARTIAL = CONFIGS / "callbacks"  # added to a full config
TRAINERS = CONFIGS / "trainer"  # before or after a full config
LOGGERS = CONFIGS / "loggers"  # after a full config
STUDIES = CONFIGS / "studies"  # tests/cli/test_study_configs.py runs them
DIAGNOSES = CONFIGS / "diagnosis"  # tests/diagnosis/test_diagnosis_configs.py runs them
OF_FIT = sorted(path for path in CONFIGS.rglob("*.yaml") if not {STUDIES, DIAGNOSES, LOGGERS} & {*path.parents})
FULL = [path for path in OF_FIT if path.parent not in (PARTIAL, TRAINERS)]
VARIANTS = ("full", "small", "imbalanced", "oos_plus")


FAMILY_OF_SERIES = {
    "smollm2": "llama",
    "meta-llama": "llama",
    "qwen2": "qwen2",
    "olmoe": "olmoe",
}  # models that are called otherwise than their architecture
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


def by_path(paths: Iterable[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", sorted(paths), ids=lambda path: str(path.relative_to(CONFIGS)))


@by_path(FULL)
def test_config_trains(path: Path, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    train([path], tiny_backbone, tmp_path)


@by_path(PARTIAL.glob("*.yaml"))
@pytest.mark.parametrize("full", ["clinc150/minilm_lora.yaml", "causal_lm/gpt2_wikitext2_lora.yaml"])
def test_partial_config_adds_callbacks(path: Path, full: str, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    run = train([CONFIGS / full, path], tiny_backbone, tmp_path)
    own, added = (yaml.safe_load(file.read_text())["trainer"] for file in (CONFIGS / full, path))
    asked = [callback["class_path"] for callback in [*own.get("callbacks", []), *added["callbacks+"]]]
    used = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"]
    assert [callback["class_path"].rpartition(".")[2] for callback in used] == asked


def test_the_quickstart_has_all_monitors_and_a_config_that_adds_them_again_changes_nothing(tmp_path: Path) -> None:
    words = [f"--trainer.logger.init_args.save_dir={tmp_path}"]
    configs = [f"--config={path}" for path in (CONFIGS / "quickstart.yaml", PARTIAL / "all_monitors.yaml")]
    once = yaml.safe_load(prepare_command("fit", [configs[0], *words]).settings_text())
    assert yaml.safe_load(prepare_command("fit", [*configs, *words]).settings_text()) == once
    added = yaml.safe_load((PARTIAL / "all_monitors.yaml").read_text())["trainer"]["callbacks+"]
    monitors = [callback["class_path"] for callback in added]
    assert [callback["class_path"].rpartition(".")[2] for callback in once["trainer"]["callbacks"]] == monitors


@by_path(TRAINERS.glob("*.yaml"))
def test_trainer_config_goes_with_any_other(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before it and after it; that each of them trains, the tests of strategies and of docs/scaling.md show."""
    parsed = []
    for paths in ([path, CONFIGS / "quickstart.yaml"], [CONFIGS / "quickstart.yaml", path]):
        with pytest.raises(SystemExit) as end:
            main(["fit", *(f"--config={each}" for each in paths), "--print_config"])
        assert end.value.code == 0
        parsed.append(yaml.safe_load(capsys.readouterr().out))
    assert parsed[0] == parsed[1]
    for option, wanted in yaml.safe_load(path.read_text())["trainer"].items():
        found = parsed[0]["trainer"][option]
        assert found == wanted or found["class_path"].endswith(f".{wanted['class_path']}"), option


@by_path(LOGGERS.glob("*.yaml"))
def test_logger_config_replaces_the_logger(
    path: Path, tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    words = tiny_training([CONFIGS / "quickstart.yaml", path], tiny_backbone, tmp_path)[1]
    words = [word for word in words if not word.startswith("--trainer.logger")]
    assert main(["fit", *words, "--trainer.callbacks=[]"]) == 0
    (run,) = (config.parent for config in tmp_path.glob("lightning_logs/*/version_0/config.yaml"))
    wanted = yaml.safe_load(path.read_text())["trainer"]["logger"]
    used = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["logger"]
    assert used["class_path"].endswith(f".{wanted['class_path']}")
    assert wanted["init_args"].items() <= used["init_args"].items()
    assert {each.name for each in tmp_path.iterdir() if each.is_dir()} <= {
        "lightning_logs",
        "data",
        "clinc150",
        "intents",
    }


@by_path(TRAINERS / f"{name}.yaml" for name in ("cpu", "gpu"))
def test_trainer_config_of_one_process_trains(path: Path, tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    train([path, CONFIGS / "quickstart.yaml"], tiny_backbone, tmp_path)


def test_all_monitors_are_all_that_have_a_config() -> None:
    """The one line switches on what the other files switch on one by one."""
    files = {path.stem: yaml.safe_load(path.read_text())["trainer"]["callbacks+"] for path in PARTIAL.glob("*.yaml")}
    together = [callback["class_path"] for callback in files.pop("all_monitors")]
    assert sorted(together) == sorted(callback["class_path"] for added in files.values() for callback in added)
    monitors = {name for name in callbacks.__all__ if issubclass(getattr(callbacks, name), AdapterMonitor)}
    assert monitors - {"OtherTextLoss"} <= set(together)  # which needs a file, and a language model


def train(paths: list[Path], tiny_backbone: TinyBackbone, tmp_path: Path) -> Path:
    """Trains with the configs, one of them a full one, on tiny data; the run's folder."""
    config, words = tiny_training(paths, tiny_backbone, tmp_path)
    assert main(["fit", *words]) == 0
    (run,) = (path.parent for path in tmp_path.glob("*/version_0/config.yaml"))
    is_full = config["model"]["init_args"].get("lora", {}) is None
    weights = "model.safetensors" if is_full else "adapter_model.safetensors"
    assert (run / "adapter" / weights).exists()
    assert (run / "summary.json").exists()
    return run


def test_every_config_says_how_to_run_it() -> None:
    paths = sorted(CONFIGS.rglob("*.yaml"))
    assert len(paths) >= 5
    for path in paths:
        relative = path.relative_to(CONFIGS.parent)
        if STUDIES in path.parents:
            assert f"# lora-lightning study run {relative}" in path.read_text(), relative
            continue
        if path.parent == DIAGNOSES:
            assert f"# lora-lightning diagnose run {relative}" in path.read_text(), relative
            continue
        before = "--config configs/quickstart.yaml " if path.parent in (PARTIAL, TRAINERS, LOGGERS) else ""
        assert f"# lora-lightning fit {before}--config {relative}" in path.read_text(), relative


def tiny_training(paths: list[Path], tiny_backbone: TinyBackbone, tmp_path: Path) -> tuple[dict[str, Any], list[str]]:
    """The content of the full config among some, and options of `fit` that train with them on tiny data."""
    config = next(content for content in (yaml.safe_load(path.read_text()) for path in paths) if "model" in content)
    assert config["seed_everything"] == 0
    words = [*(f"--config={path}" for path in paths), "--data.batch_size=4"]
    if "backbone" in config["model"]["init_args"]:
        words += [f"--model.backbone={stand_in(config, tiny_backbone, tmp_path)}", f"--data.cache_dir={tmp_path}"]
    words += [f"--trainer.logger.save_dir={tmp_path}", "--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    words += ["--trainer.limit_train_batches=3", "--trainer.enable_progress_bar=false"]
    words += data_words(config["data"], tmp_path / "data")
    lora = config["model"]["init_args"].get("lora", {})
    if lora and "adalora" in lora:  # three steps
        words += [f"--model.lora.adalora.{name}=1" for name in ("tinit", "tfinal", "deltaT")]
    if lora and "layers_to_transform" in lora:  # two layers
        words += ["--model.lora.layers_to_transform=[1]", "--model.lora.rank_pattern={query: 4}"]
    if config["model"]["class_path"] == "CausalLanguageModelingTask":
        words += ["--model.generation.max_new_tokens=2"]
    return config, words
