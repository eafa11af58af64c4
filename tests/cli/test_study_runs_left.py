"""A dry run counts what is left to train: of a new study, of one that has started, and of one that may try more."""

from pathlib import Path
from typing import Any

import pytest

from lora_lightning.cli.study_runs_left import RunsLeft, count_runs
from lora_lightning.errors import TrainingError
from lora_lightning.studies.journal import StudyJournal
from lora_lightning.studies.open_study import HOUR
from lora_lightning.studies.plan import StudyPlan, plan_study
from lora_lightning.studies.study_file import read_study_file
from lora_lightning.studies.study_folder import StudyFolder
from tests.studies.small_study import save_study

RATES = {"values": [0.01, 0.02], "seeds": [7, 8], "extend": 3}
SEARCH = {"axes": {"data.x": {"low": 0, "high": 9}}, "reference": {"x": 1}, "derived": None}


def plan(folder: Path, **changes: Any) -> StudyPlan:
    return plan_study(read_study_file(save_study(folder, **changes)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, RunsLeft("6 runs", 6)),
        ({"budget": 5}, RunsLeft("6 runs, within 5 hours", 6)),
        (
            {"learning_rate": RATES},
            RunsLeft("18 runs (12 try learning rates), and up to 18 that try further rates", 18, 18),
        ),
        (SEARCH | {"search": {"trials": 3, "seeds": [7, 8]}}, RunsLeft("10 runs (6 of the search)", 10)),
        (
            SEARCH | {"search": {"seeds": [7]}, "budget": 2},
            RunsLeft("4 tested runs, and as many of a search as the budget allows, within 2 hours", None),
        ),
    ],
)
def test_a_new_study(changes: dict[str, Any], expected: RunsLeft, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "studies/small")
    assert count_runs(plan(tmp_path, **changes), folder, retry_failed=False) == expected
    assert not folder.path.exists()


def test_a_study_that_has_started(tmp_path: Path) -> None:
    folder, study = StudyFolder(tmp_path / "studies/small"), plan(tmp_path, budget=5)
    with folder.locked():
        folder.save(study, "test/loss", "val/loss")
        journal = StudyJournal(folder, "small")
        journal.add_trials(study.trials)
    for number in range(3):
        claim = journal.claim_next(study.trials)
        assert claim is not None
        folder.run(claim.trial).mkdir()
        if number < 2:
            journal.finish(claim, 1.0, HOUR)
        else:
            journal.fail(claim, "the loss diverged", HOUR)
    grown = plan(tmp_path, budget=5, seeds=[0, 1, 2])
    text = "9 runs, within 5 hours (3 of them are spent)"
    assert count_runs(grown, folder, retry_failed=False) == RunsLeft(f"{text}; 3 have ended", 6)
    assert count_runs(grown, folder, retry_failed=True) == RunsLeft(f"{text}; 2 have ended", 7)
    folder.run(study.trials[0]).rmdir()  # then it is trained again
    assert count_runs(grown, folder, retry_failed=False) == RunsLeft(f"{text}; 2 have ended", 7)
    intact = folder.journal.read_bytes()
    folder.journal.write_bytes(b"no journal\n" + intact)
    with pytest.raises(TrainingError, match="is damaged"):
        count_runs(grown, folder, retry_failed=False)
    folder.journal.unlink()
    assert count_runs(grown, folder, retry_failed=False) == RunsLeft("9 runs, within 5 hours", 9)


def test_what_runs_take_together() -> None:
    shown = "{:.0f} s".format
    assert RunsLeft("", 3).multiplied(10, shown) == "about 30 s"
    assert RunsLeft("", 3, 2).multiplied(10, shown) == "about 30 s, and up to 20 s more"
    assert RunsLeft("", None).multiplied(10, shown) == "about 10 s a run"
