"""A search leaves time for the runs that are tested, ends once a winner is chosen, and prunes by its own runs alone."""

from pathlib import Path
from typing import Any

import pytest

from lora_lightning.errors import TrialsFailed
from lora_lightning.studies.journal import Claim, StudyJournal
from lora_lightning.studies.open_study import HOUR, OpenStudy
from lora_lightning.studies.study_folder import StudyFolder
from lora_lightning.studies.study_run import budget_note, check_budget_sufficed
from tests.studies.test_search import search_plan

SEEDS = [0, 1, 2]


def open_search(folder: Path, seconds: float, **changes: Any) -> OpenStudy:
    search = {"seeds": [7], "sampler": "random", **changes}
    plan = search_plan(folder, search=search, seeds=SEEDS, budget=seconds / HOUR)
    place = StudyFolder(folder / "studies/small")
    with place.locked():
        journal = StudyJournal(place, plan.study.name, higher_is_better=False)
        journal.add_trials(plan.trials)
    return OpenStudy(plan, place, journal, "test/loss", "val/loss")


def claim(study: OpenStudy) -> Claim:
    found = study.claim_next()
    assert found is not None
    return found


def search(study: OpenStudy, count: int, seconds: float, *, pruned: bool = False) -> None:
    """Ends further runs of the search."""
    for number in range(count):
        found = claim(study)
        assert not found.trial.is_tested
        study.journal.finish(found, float(number), seconds, pruned=pruned)


def test_time_for_tested_runs_is_that_of_complete_runs(tmp_path: Path) -> None:
    study = open_search(tmp_path, 1215)
    search(study, 5, 100.0)
    search(study, 2, 10.0, pruned=True)  # 520 s; another run and 6 tested ones need 700 s
    assert claim(study).trial.is_tested


def test_runs_of_other_workers_are_counted(tmp_path: Path) -> None:
    study = open_search(tmp_path, 950)
    search(study, 1, 100.0)
    claims = [claim(study) for _ in range(4)]  # with two running: 100 s, and 900 s for nine runs
    assert [each.trial.is_tested for each in claims] == [False, False, True, True]


def test_tested_runs_that_are_done_need_no_time(tmp_path: Path) -> None:
    study = open_search(tmp_path, 950)
    search(study, 1, 100.0)
    claims = [claim(study) for _ in range(4)]
    assert sum(each.trial.is_tested for each in claims) == 2
    for each in claims:
        study.journal.finish(each, 1.0, 100.0)  # 500 s; another run and 4 tested ones need 500 s
    assert not claim(open_search(tmp_path, 1000)).trial.is_tested


def test_a_search_that_is_over_stays_over_until_the_budget_is_raised(tmp_path: Path) -> None:
    study = open_search(tmp_path, 1690)
    search(study, 10, 100.0)
    first = claim(study)
    study.journal.fail(first, "the loss is NaN", 1.0)  # 1001 s; another run and 5 tested ones would need 600 s
    others = [claim(study) for _ in range(5)]
    assert all(each.trial.is_tested for each in (first, *others))
    assert len({each.trial.configuration for each in others}) == 2
    for each in others:
        study.journal.finish(each, 1.0, 1.0)
    assert study.claim_next() is None
    assert study.is_complete
    assert study.plan.size == 10 + 6
    assert not claim(open_search(tmp_path, 2000)).trial.is_tested


def test_tested_runs_and_former_attempts_do_not_prune(tmp_path: Path) -> None:
    study = open_search(tmp_path, 10**6, pruning=True)
    for number in range(3):
        found = claim(study)
        study.journal.report(found, 2, 0.1)
        study.journal.finish(found, 0.1, 1.0)
        with study.folder.locked():
            lost = study.journal.lost([found.trial] if number == 0 else [])
            study.journal.add_again(lost)  # its folder is gone, so it is trained again
    for _ in range(2):  # the fourth and the fifth that are complete in the journal, of two runs of the search
        tested = study.journal.claim_next(study.plan.tested)
        assert tested is not None
        study.journal.finish(tested, 0.1, 1.0)
    hopeless = claim(study)
    assert not study.journal.report(hopeless, 2, 9.0)
    study.journal.finish(hopeless, 0.2, 1.0)
    search(study, 2, 1.0)
    assert study.journal.report(claim(study), 2, 9.0)


def test_runs_of_a_search_that_its_budget_leaves_out_are_counted(tmp_path: Path) -> None:
    study = open_search(tmp_path, 1215, trials=20)
    search(study, 6, 100.0)
    claims = [claim(study) for _ in range(6)]
    assert all(each.trial.is_tested for each in claims)
    left_out = "has ended the search, to leave time for the tested runs, so that 14 of 26 runs were not started"
    assert left_out in budget_note(study)
    with pytest.raises(TrialsFailed, match=f"{left_out}; to train them, raise `budget` in the study's YAML"):
        check_budget_sufficed(study)
    for each in claims[:3]:
        study.journal.finish(each, 1.0, 300.0)  # 1500 s
    for each in claims[3:]:
        study.journal.finish(each, 1.0, 1.0)
    assert study.is_complete
    assert "is spent, so that 14 of 26 runs were not started" in budget_note(study)


def test_a_search_without_a_number_of_trials_leaves_none_out(tmp_path: Path) -> None:
    study = open_search(tmp_path, 950)
    search(study, 3, 100.0)
    assert claim(study).trial.is_tested
    assert budget_note(study) == ""


def test_running_trials_are_not_called_not_started(tmp_path: Path) -> None:
    study = open_search(tmp_path, 650, trials=20)
    search(study, 1, 100.0)
    claims = [claim(study) for _ in range(3)]
    study.journal.finish(claims[0], 1.0, 550.0)  # the budget is spent; of 6 tested runs, two are running
    assert "is spent, so that 22 of 26 runs were not started" in budget_note(study)
