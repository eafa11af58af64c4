"""A rank that is changed without lora_alpha changes the scaling: one line says so, with the value that keeps it."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lora_lightning.training.commands import prepare_command
from lora_lightning.training.scaling_note import without_option

CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"  # r = 8, lora_alpha = 16


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (
            ["--model.lora.r", "4"],
            (
                "model.lora.r is 4 instead of 8 with the same lora_alpha 16, so updates are scaled by 4 instead of 2; "
                "--model.lora.lora_alpha 8 keeps the scaling"
            ),
        ),
        (
            ["--model.lora.r=32", "--model.lora.use_rslora=true"],
            "scaled by 2.83 instead of 5.66; --model.lora.lora_alpha 32",
        ),
        (["--model.lora.r=512"], "--model.lora.lora_alpha 1024 keeps"),
        (["--model.init_args.lora.r", "4"], "--model.lora.lora_alpha 8 keeps"),
        (["--model.lora.r=4", "--model.lora.lora_alpha=8"], ""),
        (["--model.init_args.lora.r=4", "--model.init_args.lora.lora_alpha=8"], ""),
        (["--model.lora.r=8"], ""),
        (["--model.lora=null"], ""),
        ([], ""),
    ],
)
def test_the_note(words: list[str], note: str) -> None:
    found = prepare_command("fit", [f"--config={CONFIG}", *words]).scaling_note
    assert note in found
    assert bool(found) is bool(note)


def test_a_config_from_a_pipe_is_read_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        pool.submit((tmp_path / "pipe").write_text, CONFIG.read_text())
        prepared = prepare_command("fit", [f"--config={tmp_path / 'pipe'}", "--model.lora.r=4"])
    assert prepared.scaling_note == ""


def test_an_option_is_removed_with_its_value() -> None:
    words = ["--a", "1", "--b", "--a=2", "--a", "3", "--ab", "4"]
    assert list(without_option(words, "--a")) == ["--b", "--ab", "4"]
