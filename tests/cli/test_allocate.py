"""`lora-lightning allocate`: what it prints, what `fit` makes of its file, its help and its exit statuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from lora_lightning import RunRecord
from lora_lightning.cli.allocate import EPILOG
from lora_lightning.cli.main import main
from tests.artefacts.test_allocate import config_of
from tests.conftest import TinyBackbone


@pytest.fixture
def base(tiny_backbone: TinyBackbone, tmp_path: Path) -> Path:
    """A config of `fit`."""
    config = config_of(tiny_backbone("bert"), tmp_path, rank_pattern={"query": 2}, target_modules=["query", "value"])
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": "runs"}}
    config["trainer"] |= {"logger": logger, "limit_train_batches": 4, "enable_progress_bar": False}
    file = tmp_path / "base.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def test_the_help_is_complete_and_quick(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["allocate", "--help"])
    assert EPILOG in capsys.readouterr().out
    code = "import lora_lightning.cli.allocate as c, sys; c.build_allocate_parser(); print({*sys.modules} & {'torch'})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_fit_trains_what_was_announced(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "ranks.yaml"
    words = ["allocate", f"--config={base}", "--budget", "r=3", "--output", str(output), "--batches=2"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert "ranks by singular values of the gradients of 2 batches" in said.out
    assert f"train with it: lora-lightning fit --config BASE.yaml --config {output}" in said.out
    assert main(words) == 2
    assert "or replace it with --overwrite" in capsys.readouterr().err
    assert main([*words, "--json", "--overwrite"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert main(["fit", f"--config={base}", f"--config={output}", "--test_after_fit=false"]) == 0
    record = RunRecord.load(tmp_path / "runs" / "version_0")
    assert record.adapter is not None
    weights = load_file(record.adapter / "adapter_model.safetensors")
    factors = {name: weight for name, weight in weights.items() if ".lora_" in name}
    trained = {
        name.split(".lora_A")[0].removeprefix("base_model.model."): len(w)
        for name, w in factors.items()
        if "_A" in name
    }
    assert trained == {layer["name"]: layer["rank"] for layer in found["layers"]}
    assert sum(weight.numel() for weight in factors.values()) == found["parameters"] <= found["budget"]


def test_options_that_append_to_a_list_all_count(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["allocate", f"--config={base}", "--budget=r=2", f"--output={tmp_path / 'ranks.yaml'}", "--batches=1"]
    excluded = [f"--model.lora.exclude_modules+=layer.{number}.attention.self.value" for number in range(2)]
    assert main([*words, *excluded, "--json"]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    assert [layer["name"].rpartition(".")[2] for layer in layers] == ["query", "query"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget=r=3"], "the following arguments are required: --output"),
        (["--budget=r=3", "--output=out.yaml"], "neither RUN nor --config are given"),
        (["--config=BASE", "--output=out.yaml", "--budget=3", "--bathces=3"], "did you mean --batches?"),
        (["--config=BASE", "--output=out.yaml", "--budget=3", "--batches=x"], "argument --batches: invalid int"),
        (["--config=BASE", "--output=out.yaml", "--budget=5"], "--budget is 5 trainable adapter parameters, below"),
        (["--config=BASE", "--output=out.yaml", "--budget=r=1", "--model.lora.q=3"], "model.lora has no option 'q'"),
        (["--config=BASE", "--output=BASE", "--overwrite", "--budget=r=1"], "is the config that is read"),
    ],
)
def test_mistakes_are_a_sentence_and_exit_with_2(
    words: list[str],
    message: str,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["allocate", *(word.replace("BASE", str(base)) for word in words)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "out.yaml").exists()
