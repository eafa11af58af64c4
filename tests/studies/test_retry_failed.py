"""A failed run that helps to choose is not repeated once what was chosen is being tested."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lora_lightning.errors import ConfigurationError
from lora_lightning.studies.comparison import compare_studies
from lora_lightning.studies.open_study import OpenStudy, start_study
from lora_lightning.studies.study_folder import StudyFolder
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
