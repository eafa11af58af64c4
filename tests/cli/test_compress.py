"""`lora-lightning compress`: what it prints, its JSON, its help and its exit statuses."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lora_lightning import RunRecord
from lora_lightning.artefacts import compress_job
from lora_lightning.cli.compress import EPILOG
from lora_lightning.cli.main import main
from tests.artefacts.runs import train_tiny_run
from tests.conftest import TinyBackbone


@pytest.fixture(scope="module")
def run(tiny_backbone: TinyBackbone, tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    """A classifier of intents."""
    return train_tiny_run("intents", tiny_backbone("bert"), tmp_path_factory.mktemp("intents"), model__lora__r=3)


def test_the_help_is_complete_and_quick(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["compress", "--help"])
    printed = capsys.readouterr().out
    assert EPILOG in printed
    code = "import lora_lightning.cli.compress as c, sys; c.build_compress_parser(); print({*sys.modules} & {'torch'})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_it_prints_tables_and_writes_a_folder(
    run: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compress", str(run.folder), f"--output={tmp_path / 'small'}", "--metric=accuracy"]
    assert main([*words, "--margin=95", "--ranks", "2,1"]) == 0
    printed = capsys.readouterr()
    assert "compared with the full adapter (r = 3) on val of Clinc150DataModule, 24 examples" in printed.out
    assert "k = 1 is enough for this adapter: " in printed.out
    assert "not worse, written" in printed.out
    assert "llama.cpp: refuses it (its converter takes factors A and B only" in printed.out
    assert f"compressed adapter: {tmp_path / 'small'}" in printed.out
    assert "k = 2: accuracy" in printed.err
    assert main([*words, "--margin=95"]) == 2
    assert "exists; choose another folder, or replace it with --overwrite" in capsys.readouterr().err
    assert main([*words, "--margin=95", "--ranks=1", "--overwrite", "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (found["k"], found["rank"], found["layout"], found["confirmed"]) == (1, 8, "portable", True)
    assert [row["rule"] for row in found["validation"]][:3] == ["full", "uniform", "budget"]


def test_a_loss_on_test_exits_with_3_and_writes_nothing(
    run: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, first = compress_job.Comparison.compare, []

    def worse_on_test(self: Any, choice: Any, measured: Any, *, is_tested: bool) -> Any:
        first[:] = first or [self]  # on validation
        found = judge(self, choice, measured, is_tested=is_tested)
        if is_tested and self is not first[0]:
            return compress_job.replace(found, verdict=compress_job.Verdict.WORSE)
        return found

    monkeypatch.setattr(compress_job.Comparison, "compare", worse_on_test)
    words = ["compress", str(run.folder), f"--output={tmp_path / 'out' / 'small'}", "--metric=accuracy", "--margin=95"]
    assert main([*words, "--ranks=1"]) == 3
    said = capsys.readouterr()
    assert "k = 1 was enough on validation, but on test it is worse than the full adapter by more than 95 p" in said.err
    assert "nothing was written" in said.err
    assert said.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["RUN"], "the following arguments are required: --output"),
        (["RUN", "--output=out", "--mergin=1"], "there is no option --mergin; did you mean --margin?"),
        (["RUN", "--output=out", "--ranks=8;4"], "--ranks is '8;4', but it must be whole numbers with commas"),
        (["RUN", "--output=out", "--ranks=,"], "--ranks is ',', but it must be whole numbers with commas"),
        (
            ["RUN", "--output=out", "--check-targets=, "],
            "--check_targets is ', ', which names no program; give peft",
        ),
        (["RUN", "--output=out", "--margin=x"], "argument --margin: invalid float value: 'x'"),
        (["RUN", "--output=out", "--data.batch_sise=3"], "batch_sise"),
        (["RUN", "--output=out", "--trained-at-k=nothing"], "nothing does not exist; give a run such as"),
    ],
)
def test_mistakes_are_a_sentence_and_exit_with_2(
    words: list[str], message: str, run: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(run.folder) if word == "RUN" else word.replace("=out", f"={tmp_path / 'small'}") for word in words]
    assert main(["compress", *given]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "small").exists()
