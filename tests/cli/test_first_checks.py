"""Mistakes that are found at once: nothing heavy is imported before the sentence is printed."""

import subprocess
import sys
from pathlib import Path

import pytest

from lora_lightning.cli.main import main

ROOT = Path(__file__).parents[2]
CODE = """if True:
    import sys
    from lora_lightning.cli.main import main
    status = main(sys.argv[1:])
    print(sorted({"torch", "lightning", "transformers", "jsonargparse"} & {*sys.modules}))
    sys.exit(status)
"""


def test_a_misspelt_config_is_refused_before_anything_heavy_is_imported() -> None:
    command = [sys.executable, "-c", CODE, "fit", "--config", "configs/quickstrat.yaml"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (ended.returncode, ended.stdout) == (2, "[]\n"), ended.stderr
    sentence = "there is no config configs/quickstrat.yaml; did you mean configs/quickstart.yaml?"
    assert ended.stderr == f"lora-lightning: error: {sentence}\n"


@pytest.mark.parametrize(
    "words",
    [
        ["fit", "--config=configs/quickstrat.yaml"],
        ["fit", "--model.lora.r=4", "-c", "configs/quickstrat.yaml"],
        ["plan", "--config", "configs/quickstrat.yaml"],
        ["study", "run", "configs/studies/rank.yaml", "--base", "configs/quickstrat.yaml"],
        ["study", "run", "configs/quickstrat.yaml", "--dry-run"],
    ],
    ids=" ".join,
)
def test_every_command_names_the_nearest_config(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(words) == 2
    assert "did you mean configs/quickstart.yaml?" in capsys.readouterr().err


@pytest.mark.parametrize("checkout", [True, False])
def test_fit_alone_names_the_quickstart(
    checkout: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT if checkout else tmp_path)
    assert main(["fit"]) == 2
    said = capsys.readouterr().err
    assert ("--config configs/quickstart.yaml`" in said) is checkout
    assert ("`lora-lightning configs --copy quickstart` and `lora-lightning fit --config quickstart.yaml`" in said) is (
        not checkout
    )


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_evaluation_alone_names_what_it_needs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command]) == 2
    said = capsys.readouterr().err
    assert f"`lora-lightning {command} --config RUN/config.yaml --ckpt_path RUN/checkpoints/best.ckpt`" in said


def test_configs_are_listed_a_line_each_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["configs"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line]
    assert len(lines) == len(list((ROOT / "configs").rglob("*.yaml")))
    assert any(line.startswith("glue/sst2_minilm_lora ") and "film review" in line for line in lines)
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "--copy", "quickstart"]) == 0
    assert capsys.readouterr().out == "written: quickstart.yaml\n"
    assert main(["configs", "--copy", "quickstart"]) == 2
    assert "quickstart.yaml exists already" in capsys.readouterr().err
