"""Both sides of rows run on tiny models and data, in this process; only the peers' environments are not theirs."""

import argparse
import importlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from comparison import growth_rows, plain_decoder, prediction_rows, random_encoder, spectra, startup_rows, training_rows
from comparison.row import Outcome, Side
from comparison.rows import ROWS
from comparison.settings import DECODER, ENCODER, Settings
from peers import smollm2, trainer_squad
from peers.step_log import FILE
from transformers import AutoConfig, AutoTokenizer

from lora_lightning.cli.commands import run_command
from lora_lightning.datamodules.context_windows import encode_windows
from lora_lightning.datamodules.squad_format import read_squad_json
from tests.conftest import TinyBackbone
from tests.tiny_data import save_tiny_clinc150, save_tiny_instructions, save_tiny_squad, save_tiny_wikitext
from tests.tiny_gguf import save_tiny_gguf
from tests.tiny_glue import save_tiny_glue

ENCODER_OPTIONS = ("--trainer.accelerator=cpu", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir={scratch}")
TEMPLATE = "{% for message in messages %}{{ message.content }} t1 {% endfor %}"


@pytest.fixture
def settings(tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Tiny data, an encoder and a decoder in place of the packages, and an interpreter that is never started."""
    save_tiny_clinc150(tmp_path / "data" / "clinc150")
    save_tiny_glue(tmp_path / "data/glue", "mnli", rows=40)
    save_tiny_squad(tmp_path / "data/squad_v2")
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
    for rows in (training_rows, growth_rows):
        monkeypatch.setattr(rows, "package_folder", lambda name: tmp_path / name)
        monkeypatch.setattr(rows, "kept", lambda *given: tmp_path / given[1])
    monkeypatch.setenv(FILE, str(tmp_path / "steps.json"))
    return Settings(tmp_path / "data", tmp_path / "peers", tmp_path, quick=True)


def run_ours(side: Side, settings: Settings, monkeypatch: pytest.MonkeyPatch, *more: str) -> float:
    monkeypatch.setattr(sys, "argv", ["lora-lightning"])
    start = time.time()
    words = (*side.command[3:], *more)
    run_command([word.replace("{scratch}", str(settings.work)).replace("{seed}", "1") for word in words])
    return value_of(side, settings, start)


def run_peer(side: Side, settings: Settings, monkeypatch: pytest.MonkeyPatch, *more: str) -> float:
    words = (*side.command[2:], *more)
    words = [word.replace("{scratch}", str(settings.work)).replace("{seed}", "1") for word in words]
    monkeypatch.setattr(sys, "argv", words)
    start = time.time()
    importlib.import_module(words[0]).main()
    return value_of(side, settings, start)


def make_random_encoder(settings: Settings, monkeypatch: pytest.MonkeyPatch, layers: int, hidden: int) -> Path:
    folder = settings.work / f"random_{layers}x{hidden}"
    words = ["", str(settings.work / ENCODER / "model"), str(folder), str(layers), str(hidden)]
    monkeypatch.setattr(sys, "argv", words)
    random_encoder.main()
    return folder


def log_of(settings: Settings) -> dict[str, Any]:
    """What the last run wrote."""
    log: dict[str, Any] = json.loads((settings.work / "steps.json").read_text())
    return log


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
    for peer in row.peers:
        assert run_peer(peer, settings, monkeypatch) > 0
    (best,) = settings.work.rglob("best.ckpt")
    monkeypatch.setattr(prediction_rows, "trained_run", lambda _: best.parents[1])
    row = ROWS["predict_steady"](settings)
    many, few = (settings.work / f"queries_{times}.txt" for times in (prediction_rows.QUICK_TIMES, 1))
    assert len(many.read_text().splitlines()) == 11 * len(few.read_text().splitlines()) > 11
    for side in (row.ours[0], row.peers[0]):
        assert [word.replace(str(few), str(many)) for word in side.less] == list(side.command)
    for each in (row, ROWS["predict"](settings)):
        ours, peer = (replace(side, value=lambda outcome: outcome.seconds) for side in (each.ours[0], each.peers[0]))
        assert run_ours(ours, settings, monkeypatch, "--data.eval_batch_size=2") > 0
        assert "environment" in json.loads((settings.work / "steps.json").read_text())
        assert run_peer(peer, settings, monkeypatch) > 0
    assert len((settings.work / "answers.csv").read_text().splitlines()) == len(few.read_text().splitlines())


@pytest.mark.parametrize("name", ["clinc150_grouped_bf16", "clinc150_bare"])
def test_training_a_classifier(name: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_peer(ROWS[name](settings).peers[0], settings, monkeypatch) > 0


@pytest.mark.parametrize(
    "name",
    ["lm_packed_float32", "lm_packed_bf16_bare", "lm_responses_float32", "lm_responses_bf16_flat", "lm_qlora_bf16"],
)
def test_training_a_language_model(
    name: str, settings: Settings, monkeypatch: pytest.MonkeyPatch, tiny_backbone: TinyBackbone
) -> None:
    base = settings.work / "decoder"
    if "qlora" in name:
        monkeypatch.setattr(sys, "argv", ["", str(settings.work / DECODER), str(base)])
        plain_decoder.main()
    row, load = ROWS[name](settings), smollm2.load_model

    def load_with_template(options: argparse.Namespace) -> object:
        model, tokenizer = load(options)
        tokenizer.chat_template, tokenizer.pad_token = TEMPLATE, "<unk>"
        return model, tokenizer

    if not name.endswith("bare"):
        more = ("--data.context_length=32", "--trainer.accelerator=cpu")
        more += () if "qlora" in name else (f"--model.backbone={tiny_backbone('llama')}",)
        more += ("--data.chat_template=false",) if "responses" in name else ()
        assert run_ours(row.ours[0], settings, monkeypatch, *more) > 0
        ours = log_of(settings)
    module = importlib.import_module(row.peers[0].command[2])
    monkeypatch.setattr(module, "load_model", load_with_template)
    assert run_peer(row.peers[0], settings, monkeypatch, "--context", "16", "--batch-size", "2") > 0
    assert len(log_of(settings)["losses"]) == len(log_of(settings)["labels"]) == 2
    if "qlora" in name:  # the others have another tiny model on each side
        assert log_of(settings)["trainable"] == ours["trainable"]
        assert log_of(settings)["losses"][0] == pytest.approx(ours["losses"][0], rel=0.1)
    if "flat" in name:
        assert log_of(settings)["tokens"] == log_of(settings)["places"]


@pytest.mark.parametrize(
    ("name", "ours", "peers"),
    [
        ("pairs_grouped", (), ()),
        ("squad_as_left", ("--data.max_length=32", "--data.doc_stride=8"), ("--max-length", "32", "--stride", "8")),
        ("clinc150_grouped", (), ()),
        ("clinc150_qlora", ("--data.batch_size=4",), ()),
        ("growth_tokens_16", (), ()),
    ],
)
def test_training_an_encoder(
    name: str,
    ours: tuple[str, ...],
    peers: tuple[str, ...],
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    tiny_backbone: TinyBackbone,
) -> None:
    make_random_encoder(
        settings, monkeypatch, layers=1, hidden=64
    )  # has a pooler, which MiniLM has and the tiny one not
    monkeypatch.chdir(settings.work)
    row = ROWS[name](settings)
    more = (f"--model.backbone={settings.work / 'random_1x64'}", "--trainer.accelerator=cpu", *ours)
    assert run_ours(row.ours[0], settings, monkeypatch, *more) > 0
    found = log_of(settings)
    assert run_peer(row.peers[0], settings, monkeypatch, *peers, "--model", "random_1x64") > 0
    assert log_of(settings)["trainable"] == found["trainable"]
    assert log_of(settings)["losses"][0] == pytest.approx(found["losses"][0], rel=0.1)
    if name.startswith("growth"):
        assert log_of(settings)["tokens"] == found["tokens"] == 3 * [32 * 14]  # the tiny tokenizer has no marks


def test_both_sides_cut_the_same_windows(tiny_backbone: TinyBackbone, tmp_path: Path) -> None:
    file = save_tiny_squad(tmp_path) / "train-v2.0.json"
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone("bert"))
    questions = [question for article in read_squad_json(file, "--data.train_file") for question in article]
    ours = list(encode_windows(questions, tokenizer, 32, 8, "train"))
    peers = trainer_squad.read_windows(file, tokenizer, 32, 8)
    assert len(ours) > len(questions)
    assert [window.input_ids.tolist() for window in ours] == list(peers["input_ids"])
    assert [window.start_position for window in ours] == list(peers["start_positions"])
    assert [window.end_position for window in ours] == list(peers["end_positions"])


def test_a_row_of_model_sizes_has_a_random_encoder(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_random_encoder(settings, monkeypatch, layers=3, hidden=192)
    config = AutoConfig.from_pretrained(folder)
    assert (config.num_hidden_layers, config.hidden_size, config.intermediate_size) == (3, 192, 768)
    row = ROWS["growth_size_3x192"](settings)
    assert f"--model.backbone={folder}" in row.ours[0].command
    assert str(folder) in row.peers[0].command


def test_monitors_are_all_that_differs(settings: Settings) -> None:
    row = ROWS["monitors"](settings)
    watched, plain = row.ours[0].command, row.peers[0].command
    assert [Path(word).name for word in watched if word not in plain] == ["all_monitors.yaml"]
    assert len(watched) == len(plain) + 2


def test_a_second_start_finds_the_tokens_of_one_before(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Side] = []
    monkeypatch.setattr(startup_rows, "run_side", started.append)
    row = ROWS["second_start"](settings)
    assert [side.command for side in started] == [row.ours[0].command]
    assert row.ours[0].command[:-1] == row.peers[0].command[:-1]
    assert row.peers[0].command[-1].startswith("--data.cache_dir={scratch}")


def test_a_warm_start_is_one_of_both_sides(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Side] = []
    monkeypatch.setattr(startup_rows, "run_side", started.append)
    row = ROWS["first_step_warm"](settings)
    assert [side.command for side in started] == [row.ours[0].command, row.peers[0].command]
    cold = ROWS["first_step"](settings)
    assert any("{scratch}/tokens" in word for word in cold.ours[0].command)
    tokens: list[list[int]] = []
    for _ in range(2):
        assert run_peer(row.peers[0], settings, monkeypatch) > 0
        tokens.append(log_of(settings)["tokens"])
    assert tokens[0] == tokens[1]
    assert list(settings.work.glob("kept/peer_tokens_*/train"))
    assert len(started) == 2


def test_spectra_are_measured_in_both_ways(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spectra, "SHAPES", {"query": (24, 20)})
    row = ROWS["spectrum"](settings)
    for side in (*row.ours, *row.peers):
        monkeypatch.setattr(sys, "argv", list(side.command[1:]))
        spectra.main()
        assert value_of(side, settings, time.time()) > 0
