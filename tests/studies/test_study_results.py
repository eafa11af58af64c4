"""Kept results have no weights, can be reported and continued, and the page shows their verdicts."""

from dataclasses import replace
from pathlib import Path

import pytest
import study_results

from lora_lightning.cli.main import main
from lora_lightning.reports.study_report import write_study_report
from lora_lightning.statistics.analysis import analyze_study
from lora_lightning.studies.open_study import open_study
from lora_lightning.studies.study_run import judge_study
from tests.studies.small_study import save_study
from tests.studies.test_truncated_trials import CLAIM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("study")
    file = save_study(path, truncations={"r = 4": [2]}, claims=[CLAIM])
    assert main(["study", "run", str(file), f"--save_dir={path}"]) == 0
    return path


def test_what_is_kept_gives_the_same_verdicts_without_weights(folder: Path, tmp_path: Path) -> None:
    kept = study_results.keep(folder / "small", tmp_path)
    files = [path for path in kept.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in {".ckpt", ".safetensors"} or "events" in path.name]
    assert sum(path.stat().st_size for path in files if "report" not in path.parts) < 200_000
    pictures = {path.stem for path in files if path.suffix in {".png", ".svg"}}
    assert 1 <= len(pictures) <= len(study_results.FIGURES)  # all others are in the report's page alone
    first, second = (judge_study(open_study(path)) for path in (folder / "small", kept))
    assert second.analysis == first.analysis
    assert second.results.configuration("r = 4 truncated to 2").outcomes.keys() == {0, 1}


def test_reports_that_are_kept_compare_no_times(folder: Path, tmp_path: Path) -> None:
    audit = judge_study(open_study(folder / "small"))
    times = {"seconds_per_step": {0: 1.0, 1: 2.0}, "inference_ms_merged_batch_1": {0: 1.0}, "wall_seconds": {0: 3.0}}
    rows = [replace(each, measurements={**each.measurements, **times}) for each in audit.results.configurations]
    results = replace(audit.results, configurations=rows, costs=("trainable_parameters", "seconds_per_step"))
    audit = replace(audit, results=results, analysis=analyze_study(results))
    assert "seconds_per_step" in audit.analysis.pareto
    kept = study_results.without_times(audit)
    page = write_study_report(kept.results, kept.analysis, tmp_path)
    texts = [path.read_text() for path in (page, tmp_path / "analysis.json", tmp_path / "results.csv")]
    assert not [text for text in texts if "seconds" in text or "inference" in text]
    assert "trade_off_trainable_parameters.png" in {path.name for path in (tmp_path / "figures").iterdir()}


def test_a_study_of_a_script_has_its_question_and_command(folder: Path, tmp_path: Path) -> None:
    study_results.keep(folder / "small", tmp_path, written_by="allocation.py clinc150 --data FOLDER")
    page = study_results.page(tmp_path).read_text()
    assert "Does choosing ranks by measurement beat one rank for all?" in page
    assert "`python benchmarks/allocation.py clinc150 --data FOLDER`" in page
    assert "Example:" not in page


def test_the_page_has_answers_claims_and_what_was_not_run(folder: Path, tmp_path: Path) -> None:
    study_results.keep(folder / "small", tmp_path)
    study_results.keep(folder / "small", tmp_path)  # again, when the study has gone on
    page = study_results.page(tmp_path).read_text()
    answer = judge_study(open_study(folder / "small")).analysis.recommendation.answer
    assert answer in page
    assert "## small" in page
    assert "6 of 6 runs" in page
    assert page.count("| not run |") == 9


def test_a_kept_study_continues(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = study_results.keep(folder / "small", tmp_path)
    file = save_study(tmp_path, truncations={"r = 4": [2]}, claims=[CLAIM], seeds=[0, 1, 2])
    assert main(["study", "run", str(file), f"--save_dir={tmp_path}"]) == 0
    assert "(6 of 9 trials are finished)" in capsys.readouterr().out
    statuses = open_study(kept).statuses()
    assert [status.state for status in statuses.values()] == ["finished"] * 9


def test_a_study_without_tested_runs_is_kept_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"axes": {"model.lora.r": [2, 4]}, "learning_rate": {"values": [0.01, 0.02], "seeds": [7]}, "seeds": [0]}
    file = save_study(tmp_path, **small, name="forgetting", budget=1e-7)  # over after the first run
    assert main(["study", "run", str(file), f"--save_dir={tmp_path / 'here'}"]) == 3
    kept = study_results.keep(tmp_path / "here" / "forgetting", tmp_path / "kept")
    assert "Not finished: 1 of 6 runs, none tested." in study_results.page(tmp_path / "kept").read_text()
    assert study_results.page(tmp_path / "kept").read_text().count("| not finished |") == 1
    file = save_study(tmp_path, **small, name="forgetting")
    assert main(["study", "run", str(file), f"--save_dir={tmp_path / 'kept'}"]) == 0
    assert "(1 of 6 trials are finished)" in capsys.readouterr().out
    assert {status.state for status in open_study(kept).statuses().values()} == {"finished"}
