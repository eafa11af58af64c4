"""A failed run that helps to choose is not repeated once what was chosen is being tested."""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lora_lightning.cli.study_runs_left import count_runs
from lora_lightning.errors import ConfigurationError
from lora_lightning.studies.comparison import compare_studies
from lora_lightning.studies.open_study import OpenStudy, check_additions, start_study
from lora_lightning.studies.study_folder import STUDY, StudyFolder
from lora_lightning.studies.trial_runs import CheckedStudy
from tests.studies.test_learning_rates import plan
from tests.studies.test_search import search_plan

CHECKED = CheckedStudy("test/loss", "val/loss", "r = 2", 1, 1, "rows")


def start(folder: Path, changes: Mapping[str, Any], *, retry_failed: bool = False) -> OpenStudy:
    planned = search_plan(folder, **changes) if "search" in changes else plan(folder, **changes)
    return start_study(planned, StudyFolder(folder / "studies/small"), CHECKED, retry_failed=retry_failed)


def work(study: OpenStudy, *, failing: str = "", tested: bool = True, first: int = 99) -> None:
    """Runs trials, of which those with a text in their title fail; without tested ones on request."""
    for _ in range(first):
        claim = study.claim_next()
        if claim is None or (claim.trial.is_tested and not tested):
            return
        study.folder.run(claim.trial).mkdir(exist_ok=True)
        if failing and failing in claim.trial.title:
            study.journal.fail(claim, "out of memory")
        else:
            study.journal.finish(claim, claim.trial.options["model.optimization.learning_rate"])


def states(study: OpenStudy, state: str) -> list[str]:
    found = study.statuses()
    return [trial.title for trial in study.plan.trials if found[trial.id].state == state]


RATES: dict[str, Any] = {"learning_rate": {"values": [0.01, 0.1], "seeds": [7]}, "seeds": [0]}


def test_rates_are_not_chosen_again_after_tests(tmp_path: Path) -> None:
    study = start(tmp_path, RATES)
    work(study, failing="r = 2, learning rate 0.01")
    assert study.rates() == {"r = 2": 0.1, "r = 4": 0.01}
    with pytest.warns(match="1 failed runs are not repeated, .* known: r = 2, learning rate 0.01, seed 7; to repeat"):
        again = start(tmp_path, RATES, retry_failed=True)
    assert states(again, "failed") == ["r = 2, learning rate 0.01, seed 7"]
    assert again.rates() == study.rates()
    assert count_runs(plan(tmp_path, **RATES), study.folder, retry_failed=True).count == 0  # what a dry run prints


@pytest.mark.parametrize("shared", [False, True])
def test_rates_are_repeated_before_tests_and_tests_always(shared: bool, tmp_path: Path) -> None:
    changes = RATES | {"learning_rate": RATES["learning_rate"] | {"shared": shared}}
    study = start(tmp_path, changes)
    work(study, failing="r = 4, learning rate 0.01", first=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = start(tmp_path, changes, retry_failed=True)
    assert states(again, "failed") == []
    work(again, failing="r = 4, learning rate 0.01", first=1)
    work(again, failing="r = 2, seed 0")
    with pytest.warns(match="r = 4, learning rate 0.01"):
        last = start(tmp_path, changes, retry_failed=True)
    assert states(last, "waiting") == ["r = 2, seed 0"]


def test_a_shared_rate_is_not_chosen_again_by_a_value_that_is_added_after_tests(tmp_path: Path) -> None:
    changes = RATES | {"learning_rate": RATES["learning_rate"] | {"shared": True}}
    more = {"axes": {"model.lora.r": [1, 2, 4]}}
    folder = StudyFolder(tmp_path / "studies/small")
    study = start(tmp_path, changes)
    work(study, first=4)
    check_additions(plan(tmp_path, **changes, **more), folder)  # nothing is tested yet
    work(study, first=1)
    before = (folder.path / STUDY).read_bytes()
    with pytest.raises(ConfigurationError, match="share one learning rate, with which runs are tested already; r = 1"):
        start(tmp_path, changes | more)
    assert (folder.path / STUDY).read_bytes() == before
    start(tmp_path, changes | {"seeds": [0, 1]})


def test_a_value_with_a_rate_of_its_own_may_be_added_after_tests(tmp_path: Path) -> None:
    study = start(tmp_path, RATES)
    work(study)
    again = start(tmp_path, RATES | {"axes": {"model.lora.r": [1, 2, 4]}})
    assert again.rates() == study.rates() == {"r = 2": 0.01, "r = 4": 0.01}
    assert states(again, "finished") == states(study, "finished")


def test_repeated_runs_count_in_the_budget_each_time(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"seeds": [0], "learning_rate": None}
    study = start(tmp_path, changes)
    for _ in range(2):
        claim = study.claim_next()
        assert claim is not None
        study.journal.fail(claim, "out of memory", 100.0)
    again = start(tmp_path, changes, retry_failed=True)
    assert sum(again.journal.spent_seconds()) == 200
    claim = again.claim_next()
    assert claim is not None
    again.journal.finish(claim, 1.0, 10.0)
    assert again.journal.spent_seconds() == [100, 100, 10]
    assert again.journal.spent_seconds(only_complete=True) == [10]


SEARCH: dict[str, Any] = {"search": {"trials": 3, "seeds": [7], "sampler": "random"}, "seeds": [0]}


def test_a_search_is_not_decided_again_after_tests(tmp_path: Path) -> None:
    study = start(tmp_path, SEARCH)
    work(study, failing="search 1", first=3)
    assert states(start(tmp_path, SEARCH, retry_failed=True), "failed") == []
    work(study, failing="search 1")
    winner = study.plan.configurations[-1].name
    with pytest.warns(match="1 failed runs are not repeated, .*: search 1: "):
        again = start(tmp_path, SEARCH, retry_failed=True)
    assert len(states(again, "failed")) == 1
    assert again.plan.configurations[-1].name == winner


def test_a_search_without_a_winner_is_not_compared_by_its_reference(tmp_path: Path) -> None:
    study = start(tmp_path, SEARCH)
    work(study, first=2)
    with pytest.raises(ConfigurationError, match="has no winner yet; let it end with `study run`, or name config"):
        compare_studies(study.folder.path, study.folder.path)


def test_deleted_runs_that_chose_are_trained_again_only_with_what_they_chose(tmp_path: Path) -> None:
    study = start(tmp_path, RATES)
    work(study)
    for trial in study.plan.trials:
        if not trial.is_tested:
            shutil.rmtree(study.folder.run(trial))
    assert count_runs(plan(tmp_path, **RATES), study.folder, retry_failed=False).count == 0
    with pytest.warns(match="4 runs whose folders are gone are not trained again, .* tested already: r = 2, learning"):
        again = start(tmp_path, RATES)
    assert again.is_complete
    assert again.rates() == study.rates()
    (tested,) = (trial for trial in study.plan.tested if trial.configuration == "r = 4")
    shutil.rmtree(study.folder.run(tested))
    with pytest.warns(match="2 runs whose folders are gone are not trained again"):
        again = start(tmp_path, RATES)
    assert states(again, "waiting") == ["r = 4, learning rate 0.01, seed 7", "r = 4, learning rate 0.1, seed 7"]


def test_deleted_runs_of_a_search_do_not_decide_again_after_tests(tmp_path: Path) -> None:
    study = start(tmp_path, SEARCH)
    work(study)
    lost = next(trial for trial in study.plan.trials if not trial.is_tested)
    shutil.rmtree(study.folder.run(lost))
    with pytest.warns(match="1 runs whose folders are gone are not trained again, .*: search 0: "):
        assert start(tmp_path, SEARCH).is_complete
