"""`lora-lightning merge`: what it prints, its JSON, its help and its exit statuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_lightning.artefacts import FreshProcessCheck, merge_gate, merge_job
from lora_lightning.cli.data_options import split_data_options
from lora_lightning.cli.main import main
from lora_lightning.cli.merge import EPILOG
from lora_lightning.training.api import option_arguments
from tests.artefacts.adapters import save_random_adapter
from tests.conftest import TinyBackbone


@pytest.fixture
def adapter(tiny_backbone: TinyBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A language model's adapter; the fresh process is left out."""
    monkeypatch.setattr(merge_job, "run_in_fresh_process", lambda *_: FreshProcessCheck(1e-7, 0.0, 1.0))
    return save_random_adapter(tiny_backbone("llama"), tmp_path / "adapter", "CAUSAL_LM", target_modules=["q_proj"])


def test_the_help_is_complete_and_quick(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["merge", "--help"])
    printed = capsys.readouterr().out
    assert EPILOG in printed
    assert "lora-lightning merge lightning_logs/quickstart/version_0 --output merged" in printed
    assert "--data.*" in printed
    code = "import lora_lightning.cli.merge as m, sys; m.build_merge_parser(); print({*sys.modules} & {'torch'})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_it_prints_tables_and_writes_a_folder(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "merged"
    assert main(["merge", str(adapter), "--output", str(output), "--dtype=bfloat16", "--base-model-id=org/base"]) == 0
    printed = capsys.readouterr()
    assert "base" in printed.out
    assert "passes, written" in printed.out
    assert "logits differ from those of the merged model in this process by up to 1.0e-07" in printed.out
    assert "not judged without data" in printed.out
    assert f"merged model: {output}" in printed.out
    assert "merging into the base weights in float32" in printed.err
    assert "base_model: org/base" in (output / "README.md").read_text()
    assert json.loads((output / "config.json").read_text())["dtype"] == "bfloat16"
    assert main(["merge", str(adapter), "--output", str(output)]) == 2
    assert "exists; choose another folder, or replace it with --overwrite" in capsys.readouterr().err


def test_json_has_all_numbers_and_nothing_else_is_on_standard_output(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["merge", str(adapter), f"--output={tmp_path / 'merged'}", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["output"] == str(tmp_path / "merged")
    assert found["target"] == found["recommended"] == "base"
    assert [one["dtype"] for one in found["measurements"]] == ["float32", "bfloat16"]
    assert found["measurements"][0]["difference"]["max_logit_difference"] < 1e-5
    assert found["measurements"][0]["failure"] is None
    assert found["fresh_process"]["max_logit_difference"] == 1e-7
    assert found["fresh_process"]["reference"] == "adapter"


def test_a_merge_that_fails_its_check_exits_with_3(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merge_job, "find_merge_failure", lambda *_: "logits move by up to 1.0")
    assert main(["merge", str(adapter), "--output", str(tmp_path / "merged")]) == 3
    printed = capsys.readouterr()
    assert "changes the model: logits move by up to 1.0; nothing was written" in printed.err
    assert printed.out == ""
    assert not (tmp_path / "merged").exists()
    assert merge_gate.LEAST_RECOVERY == 0.95


def test_a_model_that_transformers_cannot_run_in_16_bits_merges_in_32(
    adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = merge_job.measure_merge

    def fail_in_16_bits(*given: Any) -> Any:
        if given[3] == "bfloat16":
            raise RuntimeError("expected m1 and m2 to have the same dtype")
        return measure(*given)

    monkeypatch.setattr(merge_job, "measure_merge", fail_in_16_bits)
    output = tmp_path / "merged"
    assert main(["merge", str(adapter), f"--output={output}", "--dtype=bfloat16"]) == 3
    assert "transformers cannot run this model in bfloat16" in capsys.readouterr().err
    assert not output.exists()
    assert main(["merge", str(adapter), f"--output={output}"]) == 0
    assert "the base weights in bfloat16 were not measured" in capsys.readouterr().out
    assert (output / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["merge", "ADAPTER"], "the following arguments are required: --output"),
        (["merge", "ADAPTER", "--output=out", "--dtpe=float16"], "there is no option --dtpe; did you mean --dtype?"),
        (["merge", "ADAPTER", "--outputt=out"], "there is no option --outputt; did you mean --output?"),
        (["merge", "ADAPTER", "--output=out", "--dtype=float61"], "--dtype is 'float61'; did you mean 'float16'"),
        (["merge", "ADAPTER", "--output=out", "--target=base"], "--target is 'base'"),
        (["merge", "nothing", "--output=out"], "nothing does not exist"),
        (["merge", "ADAPTER", "--output=out", "--data.data_dir=x"], "--data.data_dir needs the data module"),
        (["merge", "ADAPTER", "--output=out", "--data=PlainTextDataModule", "--data.contxt=3"], "contxt"),
    ],
)
def test_mistakes_are_a_sentence_and_exit_with_2(
    words: list[str], message: str, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(adapter) if word == "ADAPTER" else word.replace("=out", f"={tmp_path / 'merged'}") for word in words]
    assert main(given) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "merged").exists()


def test_options_of_the_data_are_separated_from_the_others() -> None:
    words = ["--data", "M", "RUN", "--data.a=1", "--output", "o", "--data.b", "x y", "--data.c", "--json"]
    others, data = split_data_options(words)
    assert others == ["RUN", "--output", "o", "--json"]
    assert data == [("data", "M"), ("data.a", "1"), ("data.b", "x y"), ("data.c", "true")]


def test_options_that_append_to_a_list_are_all_kept() -> None:
    words = ["--data.a=[x]", "--data.a+=y", "--data.a+", "z", "--model.lora.exclude_modules+=query"]
    others, data = split_data_options([*words, "RUN"])
    assert others == ["RUN"]
    assert option_arguments(data) == ["--data.a=[x]", "--data.a+=y", "--data.a+=z", words[-1]]
