"""`lora-lightning plan`: what it prints, its files, its help, and its exit statuses."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lora_lightning.cli.main import main
from lora_lightning.cli.plan import EPILOG
from tests.conftest import TinyBackbone
from tests.test_configs import CONFIGS, tiny_training


@pytest.fixture
def words(tiny_backbone: TinyBackbone, tmp_path: Path) -> list[str]:
    """The quickstart on a tiny backbone."""
    return tiny_training([CONFIGS / "quickstart.yaml"], tiny_backbone, tmp_path)[1]


def test_the_help_is_complete_and_quick(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["plan", "--help"])
    assert EPILOG in capsys.readouterr().out
    code = "import lora_lightning.cli.plan as p, sys; p.build_plan_parser(); print({*sys.modules} & {'torch'})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_it_prints_tables_and_writes_a_folder(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "plan"
    assert main(["plan", *words, "--memory", "1GiB", "--output", str(output), "--model.lora.r", "16"]) == 0
    printed = capsys.readouterr().out
    for text in ("attention.self.query", "trainable parameters:", "as in the config", "NF4", "fits 1 GiB", "note:"):
        assert text in printed
    assert {file.name for file in output.iterdir()} == {
        "plan.json",
        "ranks.png",
        "ranks.svg",
        "memory.png",
        "memory.svg",
    }
    content = json.loads((output / "plan.json").read_text())
    assert content["r"] == 16
    assert (output / "ranks.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (output / "memory.svg").read_text()
    assert main(["plan", *words, f"--output={output}"]) == 2
    assert "exists; choose another folder, or replace it with --overwrite" in capsys.readouterr().err
    assert main(["plan", *words, f"--output={output}", "--overwrite", "--precisions=none"]) == 0
    assert json.loads((output / "plan.json").read_text())["r"] == 8


def test_json_is_all_that_standard_output_has(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [row["precision"] for row in content["memory"]] == ["float32", "bf16", "int8", "NF4"]
    assert len(content["adapted_modules"]) == 12  # a tiny backbone has no pooler
    assert content["memory_limit"] is None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--memory=much"], "--memory is 'much', but a size with its unit is needed"),
        (["--overwrite"], "--overwrite replaces the folder of --output, which is not given"),
        (["--device=tpu"], "--device is 'tpu', but it must be cpu or cuda"),
        (["--precisions=NF4"], "--precisions is 'NF4', but it must be all, config or none"),
        (["--precisions=none", "--memory=1GiB"], "--memory is 1GiB, but --precisions=none plans no memory"),
        (["--num-labels=0"], "--num-labels is 0, but it must be at least 1"),
        (["--num-labels=3"], "but the data has 30 labels; leave --num-labels out"),
        (["--num-labels=x"], "invalid int value"),
        (["--devic=cuda"], "plan has no option --devic; did you mean --device?"),
        (["--memry", "1GiB"], "plan has no option --memry; did you mean --memory?"),
        (["--modle.lora.r=4"], "did you mean --model.lora.r?"),
        (["--model.lora.rank=4"], "did you mean model.lora.r?"),
        (["--model.lora.r=0"], "must be at least 1"),
        (["--model.lora.target_modules=[qery]"], "did you mean 'query'"),
        (["--model.backbone=/no/such/folder"], "is not a folder"),
        (["--config=no.yaml"], "no.yaml"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_wrong_input_is_one_sentence(
    more: list[str], message: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words, *more]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("lora-lightning: error:") == 1
    assert "Traceback" not in printed.err
    assert printed.out == ""


def test_labels_without_data_come_from_num_labels(
    tiny_backbone: TinyBackbone, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"--config={CONFIGS / 'clinc150' / 'bert_lora.yaml'}", f"--model.backbone={tiny_backbone('bert')}"]
    words += [f"--data.data_dir={tmp_path}", "--data.max_length=32"]
    assert main(["plan", *words]) == 2
    assert "To plan without the data, give --num-labels." in capsys.readouterr().err
    assert main(["plan", *words, "--num-labels", "7", "--precisions=none"]) == 0
    printed = capsys.readouterr().out
    assert "7 labels are assumed" in printed
    assert f"{7 * 32 + 7:,}" in printed  # the head
    assert "Rows of 32 tokens are assumed" in printed
