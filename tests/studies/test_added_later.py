"""Seeds and values that a study gains after its first results are recorded, and its report names them."""

from pathlib import Path

import pytest

from lora_lightning.cli.main import main
from lora_lightning.studies.added_later import AddedLater, additions
from lora_lightning.studies.open_study import open_study
from lora_lightning.studies.study_folder import load_added
from lora_lightning.studies.study_run import judge_study
from tests.studies.small_study import save_study
from tests.studies.test_retry_failed import SEARCH, start, work
from tests.studies.test_search import search_plan


def run(folder: Path, *, status: int = 0, **changes: object) -> None:
    axes = changes.pop("axes", {"model.lora.r": [2, 4]})
    file = save_study(folder, axes=axes, **changes)
    assert main(["study", "run", str(file), f"--save_dir={folder}"]) == status


def test_seeds_and_values_that_are_added_after_results_are_in_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, seeds=[0, 1])
    assert load_added(tmp_path / "small") == AddedLater()
    assert not [note for note in judge_study(open_study(tmp_path / "small")).notes if "Added" in note]
    capsys.readouterr()
    run(tmp_path, seeds=[0, 1, 2])
    assert "warning: Added after tested runs had finished: seed 2. " in capsys.readouterr().err
    run(tmp_path, seeds=[0, 1, 2], axes={"model.lora.r": [1, 2, 4]})
    assert "warning: Added after tested runs had finished: r = 1. " in capsys.readouterr().err
    run(tmp_path, seeds=[0, 1, 2], axes={"model.lora.r": [1, 2, 4]})  # nothing new
    assert "Added" not in capsys.readouterr().err
    assert load_added(tmp_path / "small") == AddedLater((2,), ("r = 1",))
    page = (tmp_path / "small" / "report" / "report.html").read_text()
    assert "Added after tested runs had finished: seed 2; r = 1. The error rate of 5 % holds for one look" in page


def test_seeds_that_are_added_before_a_result_are_no_reason_for_doubt(tmp_path: Path) -> None:
    rates = {"values": [0.01, 0.02], "seeds": [7]}
    # The budget is spent by the first run, which is not tested.
    run(tmp_path, seeds=[0, 1], learning_rate=rates, budget=1e-7, status=3)
    run(tmp_path, seeds=[0, 1, 2], learning_rate=rates)
    assert load_added(tmp_path / "small") == AddedLater()


def test_trials_that_a_search_gains_after_its_winner_was_tested_are_recorded(tmp_path: Path) -> None:
    study = start(tmp_path, SEARCH)
    work(study, tested=False)
    more = SEARCH | {"search": SEARCH["search"] | {"trials": 4}}
    study = start(tmp_path, more)  # no result yet
    assert load_added(study.folder.path) == AddedLater()
    work(study)
    winner = study.plan.configurations[-1].name
    grown = f"search.trials 4 -> 6 (the winner that was tested by then is {winner})"
    with pytest.warns(match="Added after tested runs had finished: search.trials 4 -> 6"):
        start(tmp_path, SEARCH | {"search": SEARCH["search"] | {"trials": 6}})
    assert load_added(study.folder.path) == AddedLater(search=(grown,))
    assert grown in load_added(study.folder.path).note


def test_a_larger_budget_is_recorded_only_where_it_continues_a_search(tmp_path: Path) -> None:
    one, two, free = (search_plan(tmp_path, budget=budget) for budget in (1.5, 2.0, None))
    assert additions(one, two) == AddedLater()
    assert additions(two, one, may_try_more=True) == AddedLater()
    found = additions(one, two, "r = 4", may_try_more=True)
    assert found.search == ("budget of the search 1.5 -> 2 hours (the winner that was tested by then is r = 4)",)
    assert additions(two, free, may_try_more=True).search == ("budget of the search 2 -> without limit hours",)
