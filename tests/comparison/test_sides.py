"""Both sides of rows run on tiny models and data, in this process; only the peers' environments are not theirs."""

import importlib
import json
import sys
import time
from pathlib import Path

import pytest
from comparison import prediction_rows, training_rows
from comparison.row import Outcome, Side
from comparison.rows import ROWS
from comparison.settings import DECODER, ENCODER, Settings
from peers import smollm2
from peers.step_log import FILE

from lora_lightning.cli.commands import run_command
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150, save_tiny_instructions, save_tiny_wikitext
from tests.tiny_gguf import save_tiny_gguf

ENCODER_OPTIONS = ("--trainer.accelerator=cpu", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir={scratch}")
TEMPLATE = "{% for message in messages %}{{ message.content }} t1 {% endfor %}"


@pytest.fixture
def settings(tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Tiny data, an encoder and a decoder in place of the packages, and an interpreter that is never started."""
    save_tiny_clinc150(tmp_path / "data" / "clinc150")
    save_tiny_wikitext(tmp_path / "data/text/wikitext-2-raw")
    records = save_tiny_instructions(tmp_path / "data/text/alpaca").read_text().splitlines()
    (tmp_path / "data/text/alpaca/alpaca_data.json").write_text(json.dumps([json.loads(line) for line in records]))
    (tmp_path / ENCODER).mkdir()
    (tmp_path / ENCODER / "model").symlink_to(tiny_backbone("bert"))
    (tmp_path / DECODER).mkdir()
    save_tiny_gguf(tmp_path / DECODER)
    python = tmp_path / "peers/transformers/bin/python"
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setattr(training_rows, "package_folder", lambda name: tmp_path / name)
    monkeypatch.setenv(FILE, str(tmp_path / "steps.json"))
    return Settings(tmp_path / "data", tmp_path / "peers", tmp_path, quick=True)


def run_ours(side: Side, settings: Settings, monkeypatch: pytest.MonkeyPatch, *more: str) -> float:
    monkeypatch.setattr(sys, "argv", ["lora-lightning"])
    start = time.time()
    run_command([word.replace("{scratch}", str(settings.work)) for word in (*side.command[3:], *more)])
    return value_of(side, settings, start)


def run_peer(side: Side, settings: Settings, monkeypatch: pytest.MonkeyPatch, *more: str) -> float:
    words = [word.replace("{scratch}", str(settings.work)) for word in (*side.command[2:], *more)]
    monkeypatch.setattr(sys, "argv", words)
    start = time.time()
    importlib.import_module(words[0]).main()
    return value_of(side, settings, start)


def value_of(side: Side, settings: Settings, start: float) -> float:
    log = json.loads((settings.work / "steps.json").read_text())
    return side.value(Outcome(start, time.time() - start, 0.0, 0.0, None, log))


def test_a_classifier_is_trained_and_predicts_on_both_sides(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tiny_backbone: TinyBackbone
) -> None:
    row = ROWS["time_to_quality"](settings)
    backbone = f"--model.backbone={tiny_backbone('bert')}"
    assert (
        run_ours(row.ours[0], settings, monkeypatch, backbone, "--trainer.logger.name=run", "--data.batch_size=4") > 0
    )
    assert run_peer(row.peers[0], settings, monkeypatch) > 0
    (best,) = settings.work.rglob("best.ckpt")
    monkeypatch.setattr(prediction_rows, "trained_run", lambda _: best.parents[1])
    row = ROWS["predict_steady"](settings)
    assert run_ours(row.ours[0], settings, monkeypatch, "--data.eval_batch_size=2") > 0
    assert run_peer(row.peers[0], settings, monkeypatch) > 0
    assert len((settings.work / "answers.csv").read_text().splitlines()) == len(
        (settings.work / "queries.txt").read_text().splitlines()
    )


@pytest.mark.parametrize("name", ["clinc150_grouped_bf16", "clinc150_bare"])
def test_training_a_classifier(name: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_peer(ROWS[name](settings).peers[0], settings, monkeypatch) > 0


@pytest.mark.parametrize("name", ["lm_packed_float32", "lm_packed_bf16_bare", "lm_responses_float32"])
def test_training_a_language_model(
    name: str, settings: Settings, monkeypatch: pytest.MonkeyPatch, tiny_backbone: TinyBackbone
) -> None:
    row, load = ROWS[name](settings), smollm2.load_model

    def load_with_template(folder: Path) -> object:
        model, tokenizer = load(folder)
        tokenizer.chat_template, tokenizer.pad_token = TEMPLATE, "<unk>"
        return model, tokenizer

    if not name.endswith("bare"):
        more = (f"--model.backbone={tiny_backbone('llama')}", "--data.context_length=32", "--trainer.accelerator=cpu")
        more += ("--data.chat_template=false",) if "responses" in name else ()
        assert run_ours(row.ours[0], settings, monkeypatch, *more) > 0
    module = importlib.import_module(row.peers[0].command[2])
    monkeypatch.setattr(module, "load_model", load_with_template)
    assert run_peer(row.peers[0], settings, monkeypatch, "--context", "16", "--batch-size", "2") > 0
