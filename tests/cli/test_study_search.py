"""`study run` with a search: choosing on validation, ending runs early, resuming, testing the winner with new seeds."""

import csv
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from lora_lightning import RunRecord
from lora_lightning.cli.main import main
from lora_lightning.errors import TrialsFailed
from lora_lightning.studies import run_study
from lora_lightning.studies.open_study import open_study
from lora_lightning.studies.study_run import judge_study
from tests.cli.test_study_run import here, patch_step, run
from tests.studies.small_study import STUDY, save_study

__all__ = ["here"]  # a fixture
RATE = "model.optimization.learning_rate"
SEARCH: dict[str, Any] = {
    "axes": {RATE: {"low": 1e-4, "high": 0.1, "log": True}},
    "derived": None,
    "reference": {"learning_rate": 1e-4},
    "search": {"trials": 3, "seeds": [7]},
}
FOLDER = Path("lightning_logs/studies/small")


def suggested() -> dict[int, float]:
    """The learning rates of the search, by number."""
    return {each.suggestion: each.values[RATE] for each in open_study(FOLDER).journal.search_runs()}


def test_a_search_ends_in_a_tested_winner(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_study(here, **SEARCH)
    assert run(path, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "the winner" in printed
    assert "learning_rate: 0.0001 to 0.1" in printed
    assert "7 runs (3 of the search), in lightning_logs/studies/small" in printed
    other = save_study(here, **SEARCH | {"search": {"seeds": [7]}, "budget": 5})
    assert run(other, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "4 tested runs, and as many of a search as the budget allows, within 5 hours, in lightning_logs" in printed
    assert re.search(r"time: about \S+ s a run \(", printed)
    assert re.search(r"disk: about \S+ [kMG]B a run, if each run takes", printed)
    assert run(save_study(here, **SEARCH)) == 0
    printed = capsys.readouterr().out
    assert "(7 of 7)" in printed
    study = open_study(FOLDER)
    runs = study.journal.search_runs()
    records = {each.name: RunRecord.load(each) for each in FOLDER.glob("*_seed_*")}
    assert len(records) == 7
    for name, record in records.items():
        assert ("test" in record.metrics) is not name.startswith("search_")
    best = min(runs, key=lambda each: each.value or 9e9)
    winner = f"learning_rate = {best.values[RATE]:g}"
    results = judge_study(study).results
    assert [each.name for each in results.configurations] == ["learning_rate = 0.0001", winner]
    assert [each.values.keys() for each in results.configurations] == [{0, 1}, {0, 1}]
    expected = (
        f"note: The search tried 3 configurations on validation, with a seed of its own. The best one is {winner} "
    )
    assert f"{expected}(val/loss {best.value:.4g})." in printed
    assert "The comparison is on test, with seeds that chose nothing." in printed
    assert "curves" in printed
    assert main(["study", "status", str(FOLDER)]) == 0
    assert "runs of the search" in capsys.readouterr().out
    assert json.loads((FOLDER / "report/analysis.json").read_text())["reference"] == "learning_rate = 0.0001"
    assert run(path) == 0
    assert "training learning_rate" not in capsys.readouterr().out
    assert len(suggested()) == 3


def test_a_stopped_search_keeps_its_suggestions(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_study(here, **SEARCH, seeds=[0])
    assert run(path) == 0
    expected = suggested()
    FOLDER.rename(here / "undisturbed")
    with monkeypatch.context() as patch:
        stop = lambda task: signal.raise_signal(signal.SIGTERM) if "search_1" in str(task.trainer.log_dir) else None  # noqa: E731
        patch_step(patch, stop)
        assert run(path) == 75
    assert list(suggested()) == [0, 1]
    assert run(path) == 0
    assert suggested() == expected
    one, two = (
        {each.name: RunRecord.load(each).metrics for each in place.glob("*_seed_*")}
        for place in (FOLDER, here / "undisturbed")
    )
    assert one == two


def test_a_hopeless_run_is_ended_early(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = [0.02, 0.03, 0.01, 0.025, 0.015, 1e-7]
    search = {"trials": 6, "seeds": [7], "sampler": "grid", "pruning": True}
    path = save_study(
        here, **SEARCH | {"axes": {RATE: rates}, "search": search, "reference": {"learning_rate": 0.01}}, seeds=[0]
    )
    assert run(path) == 0
    printed = capsys.readouterr().out
    assert "ended early by the search" in printed
    study = open_study(FOLDER)
    found = {each.values[RATE]: each for each in study.journal.search_runs()}
    assert [each.state.name for each in found.values()] == ["COMPLETE"] * 5 + ["PRUNED"]
    (pruned,) = FOLDER.glob("search_5_*")
    record = RunRecord.load(pruned)
    assert record.steps == 4
    assert record.state == "finished"
    assert record.reason.startswith("pruned by the search: val/loss was ")
    assert "; 1 was ended early" in printed
    rows = {row["trial"]: row for row in csv.DictReader((FOLDER / "results.csv").open())}
    assert (rows[pruned.name]["state"], rows[pruned.name]["is_tested"]) == ("pruned", "False")
    assert main(["study", "status", str(FOLDER)]) == 0
    done = "8 of 8 trials are finished, of which the search ended 1 early; the study is complete\n"
    assert done in capsys.readouterr().out
    assert run(path) == 0


def test_a_failed_suggestion_counts_and_is_not_repeated_after_the_winner_is_tested(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(task: Any) -> None:
        if "search_1" in str(task.trainer.log_dir):
            raise ZeroDivisionError("a bug of ours")

    path = save_study(here, **SEARCH, seeds=[0])
    with monkeypatch.context() as patch:
        patch_step(patch, fail)
        assert run(path) == 3
    assert "; 1 failed. The best one is" in capsys.readouterr().out
    assert run(path, "--retry_failed") == 3
    assert "1 failed runs are not repeated" in capsys.readouterr().err
    assert sorted(suggested()) == [0, 1, 2]
    assert len(open_study(FOLDER).journal.search_runs()) == 3


def test_no_further_run_is_started_when_the_budget_is_spent(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_study(here, budget=1e-6)
    assert run(path) == 3
    printed = capsys.readouterr()
    assert "The budget of 1e-06 hours is spent, so that 5 of 6 runs were not started." in printed.out
    assert "The report is partial: 5 of 6 trials have not finished." in printed.out
    expected = "the budget of 1e-06 hours is spent, so that 5 of 6 runs were not started; to train them, raise `budget`"
    assert expected in printed.err
    assert run(path) == 3
    assert "training" not in capsys.readouterr().out.replace("training on", "")
    assert main(["study", "work", str(FOLDER)]) == 3
    assert expected in capsys.readouterr().err
    assert main(["study", "status", str(FOLDER)]) == 0
    printed = capsys.readouterr()
    assert "so that 5 of 6 runs were not started." in printed.out
    assert "complete" not in printed.out
    rates = {"values": [0.01, 0.02], "seeds": [7]}
    message = "the budget of 1e-07 hours is spent, so that 11 of 12 runs were not started"
    with pytest.raises(TrialsFailed, match=message):
        run_study({**STUDY, "name": "rates", "budget": 1e-7, "learning_rate": rates}, save_dir=here)
    assert run(save_study(here, budget=1)) == 0
    assert "(6 of 6)" in capsys.readouterr().out


def test_a_search_keeps_time_for_its_winner(here: Path) -> None:
    search = {"seeds": [7]}  # as many as the budget allows
    path = save_study(here, **SEARCH | {"search": search}, seeds=[0], budget=15 / 3600)
    assert run(path) == 0
    study = open_study(FOLDER)
    assert {status.state for status in study.statuses().values()} == {"finished"}
    assert len(study.plan.tested) == 2
    assert len(suggested()) >= 1
    assert study.journal.search_budget == 15 / 3600  # the budget has ended the search, and not an empty space


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {RATE: {"low": -0.1, "high": 0.1}}}, "'learning_rate = -0.1' of the study cannot be trained"),
        ({"axes": {RATE: {"low": 0.1, "high": 0.1}}}, "low must be below high"),
    ],
)
def test_ranges_are_checked_before_anything_is_trained(
    changes: dict[str, Any], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(save_study(here, **SEARCH | changes)) == 2
    assert message in capsys.readouterr().err
    assert not FOLDER.exists()
