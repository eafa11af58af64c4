"""What a search tries and what wins: from ended runs alone, without repeating itself, and always the same."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from lora_lightning.errors import ConfigurationError, TrainingError
from lora_lightning.studies.journal import StudyJournal
from lora_lightning.studies.plan import StudyPlan, plan_study
from lora_lightning.studies.search import (
    SearchRun,
    Suggestion,
    next_suggestion,
    notes_on_search,
    search_trial,
    winning_values,
)
from lora_lightning.studies.study_file import read_study_file
from lora_lightning.studies.study_folder import StudyFolder, load_plan
from tests.studies.small_study import save_study

RATE = "model.optimization.learning_rate"
AXES: dict[str, Any] = {
    RATE: {"low": 1e-4, "high": 3e-2, "log": True},
    "model.lora.r": {"low": 2, "high": 8, "step": 2},
    "model.lora.target_modules": ["all-linear", ["0"]],
}
REFERENCE = {"learning_rate": 0.02, "r": 4, "target_modules": "all-linear"}


def search_plan(folder: Path, **changes: Any) -> StudyPlan:
    changes = {"axes": AXES, "reference": REFERENCE, "search": {"trials": 12, "seeds": [7]}} | changes
    return plan_study(read_study_file(save_study(folder, **changes)))


def ended(suggestion: Suggestion, value: float | None, state: TrialState = TrialState.COMPLETE) -> SearchRun:
    return SearchRun(suggestion.number, suggestion.values, suggestion.seed, state, value, {2: value or 0.0})


def search_alone(plan: StudyPlan, loss: Any) -> list[SearchRun]:
    """All runs of a search with one worker."""
    runs: list[SearchRun] = []
    while (suggestion := next_suggestion(plan.study, runs, higher_is_better=False)) is not None:
        runs.append(ended(suggestion, loss(suggestion.values)))
    return runs


def distance(values: Mapping[str, Any]) -> float:
    return abs(float(values[RATE]) - 5e-3) + abs(values["model.lora.r"] - 6)


def test_suggestions_depend_on_ended_runs_alone(tmp_path: Path) -> None:
    plan = search_plan(tmp_path)
    one, two = search_alone(plan, distance), search_alone(plan, distance)
    assert one == two
    assert [run.suggestion for run in one] == list(range(12))
    assert len({str(run.values) for run in one}) == 12
    other = search_alone(search_plan(tmp_path, search={"trials": 12, "seeds": [8]}), distance)
    assert other[0].values != one[0].values


def test_suggestions_are_in_range_and_can_be_read(tmp_path: Path) -> None:
    for run in search_alone(search_plan(tmp_path, search={"trials": 30, "seeds": [7]}), distance):
        assert 1e-4 <= run.values[RATE] <= 3e-2
        assert float(f"{run.values[RATE]:.4g}") == run.values[RATE]
        assert run.values["model.lora.r"] in {2, 4, 6, 8}
        assert run.values["model.lora.target_modules"] in {"all-linear", "['0']"}


def test_tpe_learns_and_random_does_not(tmp_path: Path) -> None:
    axes = {RATE: {"low": 1e-4, "high": 1.0, "log": True}}

    def late(sampler: str) -> float:
        search = {"trials": 40, "seeds": [3], "sampler": sampler}
        plan = search_plan(tmp_path, axes=axes, reference={"learning_rate": 0.02}, derived=None, search=search)
        rates = [run.values[RATE] for run in search_alone(plan, lambda values: abs(float(values[RATE]) - 5e-3))]
        return sum(1e-3 < rate < 2.5e-2 for rate in rates[20:]) / 20

    assert late("tpe") >= late("random") + 0.3


def test_workers_at_the_same_time_get_different_suggestions(tmp_path: Path) -> None:
    plan, runs = search_plan(tmp_path), list[SearchRun]()
    for _ in range(4):
        suggestion = next_suggestion(plan.study, runs, higher_is_better=False)
        assert suggestion is not None
        runs.append(ended(suggestion, None, TrialState.RUNNING))
    assert len({run.values[RATE] for run in runs}) == 4


def test_a_grid_and_a_small_space_are_tried_once_each(tmp_path: Path) -> None:
    axes = {"model.lora.r": {"low": 1, "high": 3}, "model.lora.lora_dropout": {"low": 0.0, "high": 0.2, "step": 0.1}}
    reference = {"r": 1, "lora_dropout": 0.0}
    for sampler in ("grid", "tpe", "random"):
        search = {"trials": 9, "seeds": [7], "sampler": sampler}
        plan = search_plan(tmp_path, axes=axes, reference=reference, derived=None, search=search)
        runs = search_alone(plan, lambda values: values["model.lora.r"])
        tried = {(run.values["model.lora.r"], run.values["model.lora.lora_dropout"]) for run in runs}
        assert tried == {(r, dropout) for r in (1, 2, 3) for dropout in (0.0, 0.1, 0.2)}
        assert len(runs) == 9


@pytest.mark.parametrize("sampler", ["tpe", "random"])
@pytest.mark.parametrize("log", [False, True])
def test_a_range_narrower_than_the_rounding_is_not_used_up(sampler: str, log: bool, tmp_path: Path) -> None:
    axes = {RATE: {"low": 0.10001, "high": 0.10002, "log": log}}
    search = {"trials": 6, "seeds": [7], "sampler": sampler}
    plan = search_plan(tmp_path, axes=axes, reference={"learning_rate": 0.1}, derived=None, search=search)
    rates = [run.values[RATE] for run in search_alone(plan, lambda values: values[RATE])]
    assert len(set(rates)) == 6
    assert all(0.10001 <= rate <= 0.10002 for rate in rates)


def test_each_seed_of_a_suggestion_follows_unless_it_was_ended_early(tmp_path: Path) -> None:
    plan = search_plan(tmp_path, search={"trials": 2, "seeds": [7, 8]})

    def following(runs: Sequence[SearchRun]) -> Suggestion | None:
        return next_suggestion(plan.study, runs, higher_is_better=False)

    first = following([])
    assert first is not None
    again = following([ended(first, 1.0)])
    assert again == Suggestion(0, first.values, 8)
    other = following([ended(first, None, TrialState.PRUNED)])
    assert other is not None
    assert (other.number, other.seed) == (1, 7)
    meanwhile = following([ended(first, None, TrialState.RUNNING)])
    assert meanwhile is not None
    assert (meanwhile.number, meanwhile.seed) == (1, 7)
    assert following([ended(first, 1.0), ended(again, 1.0), ended(other, None, TrialState.FAIL)]) is None


def run(number: int, rate: float, seed: int, value: float | None, state: TrialState = TrialState.COMPLETE) -> SearchRun:
    values = {RATE: rate, "model.lora.r": 4, "model.lora.target_modules": "all-linear"}
    return SearchRun(number, values, seed, state, value, {})


def test_the_winner_has_the_best_mean_of_runs_that_took_all_steps(tmp_path: Path) -> None:
    study = search_plan(tmp_path, search={"trials": 4, "seeds": [7, 8]}).study
    runs = [
        run(0, 1e-4, 7, 1.0),
        run(0, 1e-4, 8, 2.0),
        run(1, 1e-3, 7, 1.9),
        run(1, 1e-3, 8, 0.9),
        run(2, 3e-3, 7, None, TrialState.PRUNED),
        run(3, 4e-3, 7, 0.1),
        run(3, 4e-3, 8, None, TrialState.FAIL),
    ]
    found = winning_values(study, runs, higher_is_better=False)
    assert found is not None
    assert found[RATE] == 1e-3
    best = winning_values(study, runs, higher_is_better=True)
    assert best is not None
    assert best[RATE] == 1e-4
    notes = notes_on_search(study, runs, "val/loss", higher_is_better=True)
    assert "4 configurations on validation, with 2 seeds of its own; 1 was ended early, 1 failed." in notes[0]
    assert "learning_rate = 0.0001, r = 4, target_modules = all-linear (val/loss 1.5)" in notes[0]
    assert "The best learning_rate lies at the edge of its range" in notes[1]
    assert winning_values(study, runs[4:], higher_is_better=True) is None
    assert "no winner" in notes_on_search(study, runs[4:], "val/loss", higher_is_better=True)[0]


def test_a_suggestion_is_a_trial_that_is_not_tested(tmp_path: Path) -> None:
    plan = search_plan(tmp_path)
    values = {RATE: 0.001, "model.lora.r": 6, "model.lora.target_modules": "['0']"}
    trial = search_trial(plan.study, Suggestion(3, values, 7))
    assert trial.options == {
        RATE: 0.001,
        "model.lora.r": 6,
        "model.lora.target_modules": ["0"],
        "model.lora.lora_alpha": 6,
    }
    assert not trial.is_tested
    assert trial.title == "search 3: learning_rate = 0.001, r = 6, target_modules = ['0'], seed 7"
    assert [each.title for each in plan.tested] == [f"{plan.reference}, seed 0", f"{plan.reference}, seed 1"]
    assert plan.size == 12 + 4
    grown = plan.with_search([trial], None, is_over=False)
    assert (grown.size, len(grown.trials)) == (16, 3)
    over = plan.with_search([trial], values, is_over=True)
    assert over.size == len(over.trials) == 5
    assert [each.name for each in over.configurations] == [plan.reference, trial.configuration]
    same = plan.with_search(
        [trial], {**values, RATE: 0.02, "model.lora.r": 4} | {"model.lora.target_modules": "all-linear"}, is_over=True
    )
    assert [each.name for each in same.configurations] == [plan.reference]


def test_a_search_is_read_back_from_its_folder_and_may_only_gain_trials(tmp_path: Path) -> None:
    folder, plan = StudyFolder(tmp_path / "studies/small"), search_plan(tmp_path, budget=2)
    with folder.locked():
        folder.save(plan, "test/loss", "val/loss")
    assert load_plan(folder.path) == plan_study(
        read_study_file(
            save_study(tmp_path, axes=AXES, reference=REFERENCE, search={"trials": 12, "seeds": [7]}, budget=2)
        )
    )
    folder.check(search_plan(tmp_path, search={"trials": 13, "seeds": [7]}, budget=3))
    for other, changed in (
        ({"trials": 11, "seeds": [7]}, "search.trials is 11 here and 12 there"),
        ({"trials": 12, "seeds": [9]}, r"search.seeds is \[9\] here and \[7\] there"),
        ({"trials": 12, "seeds": [7], "pruning": True}, "search.pruning is True here and False there"),
    ):
        with pytest.raises(ConfigurationError, match=rf"\({changed}\), which may only gain trials"):
            folder.check(search_plan(tmp_path, search=other))
    with pytest.raises(ConfigurationError, match=r"derived values: model.lora.lora_alpha is '4' here and 'r' there"):
        folder.check(search_plan(tmp_path, derived={"model.lora.lora_alpha": "4"}, budget=2))  # that of the reference
    with pytest.raises(ConfigurationError, match=r"\(axes.*learning_rate.low is 1e-05 here and 0.0001 there\), which"):
        folder.check(search_plan(tmp_path, axes=AXES | {RATE: {"low": 1e-5, "high": 3e-2, "log": True}}))
    with pytest.raises(ConfigurationError, match=r"another search .*search.sampler is None here and 'tpe' there"):
        folder.check(replace(plan, study=replace(plan.study, search=None)))
    without_limit = search_plan(tmp_path, search={"seeds": [7]}, budget=1)  # a smaller budget, and all that it allows
    with folder.locked():
        folder.save(without_limit, "test/loss", "val/loss")
    message = "search.trials is 99 here and as many as the budget allows there"
    with pytest.raises(ConfigurationError, match=message):
        folder.check(search_plan(tmp_path, search={"trials": 99, "seeds": [7]}, budget=1))


def test_a_run_of_a_search_gets_into_the_journal_with_its_parameters_alone(tmp_path: Path) -> None:
    folder, plan = StudyFolder(tmp_path / "studies/small"), search_plan(tmp_path)
    suggestion = next_suggestion(plan.study, [], higher_is_better=False)
    assert suggestion is not None
    trial = search_trial(plan.study, suggestion)
    with folder.locked():
        journal = StudyJournal(folder, "small")
        with pytest.raises(TrainingError, match=r"the run 'search 0: .*has other settings than the study there gives"):
            journal.add_trials([trial])
        assert journal.search_runs() == []
        journal.add_suggestion(trial, suggestion.values, plan.study)
        journal.add_trials([trial])
    assert [run.values for run in journal.search_runs()] == [suggestion.values]


def axis(**content: Any) -> dict[str, Any]:
    return {"axes": {"model.lora.r": content}, "reference": {"r": 4}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (axis(low=4, high=4), "low 4 to high 4, but low must be below high"),
        (axis(low=8, high=4), "low must be below high"),
        (axis(low=1, high=10**400), "has high 1000.*, but a number is needed"),
        (axis(low=0, high=4, log=True), "low 0 and log: true, but a logarithm needs low above 0"),
        (axis(low=-1.0, high=4, log=True), "a logarithm needs low above 0"),
        (axis(low=4), "has high None, but a number is needed"),
        (axis(low="a", high=4), "has low 'a', but a number is needed"),
        (axis(low=1, high=4, lgo=True), "unknown key 'lgo'; did you mean"),
        (axis(low=1, high=4, log="yes"), "has log 'yes'"),
        (axis(low=1, high=4, log=["yes"]), "has log \\['yes'\\]"),
        (axis(low=1, high=4, log=True, step=1), "has a step and log: true"),
        (axis(low=4, high=33, step=8), "has high 33, which steps of 8 from 4 do not reach; the last value is 28"),
        (axis(low=4, high=8, step=0), "has step 0, but an integer above 0"),
        (axis(low=4, high=8, step=0.5), "has step 0.5, but an integer above 0"),
        ({"search": None}, "is a range, which only a search can draw from; list its values, or add search"),
        ({"search": {"seeds": [7]}}, "search has no trials and the study has no budget"),
        ({"search": {"trials": 0, "seeds": [7]}}, "search.trials is 0"),
        ({"search": {"trials": 4}}, "search.seeds is missing"),
        ({"search": {"trials": 4, "seeds": [1, 7]}}, "the seed 1 is in seeds and in search.seeds"),
        ({"search": {"trials": 4, "seeds": [7, 7]}}, "each seed may occur once"),
        ({"search": {"trials": 4, "seeds": [7], "sampler": "cmaes"}}, "search.sampler is 'cmaes'; the choices are"),
        ({"search": {"trials": 4, "seeds": [7], "pruning": "median"}}, "search.pruning is 'median'"),
        ({"search": {"trials": 4, "seeds": [7], "prune": True}}, "unknown key 'prune'; did you mean 'pruning'"),
        ({"search": 20}, "search is 20, but options are needed"),
        ({"search": {"trials": 4, "seeds": [7], "sampler": "grid"}}, "grid, but the axis .*rate has no finite number"),
        (axis(low=1, high=3) | {"search": {"trials": 4, "seeds": [7]}}, "is 4, but the axes have only 3 config"),
        ({"reference": {"r": 4, "target_modules": "all-linear"}}, "has no value for the axis .*learning_rate"),
        (
            {"reference": {**REFERENCE, "target_modules": "attention"}},
            "no value for the axis model.lora.target_modules",
        ),
        ({"reference": {**REFERENCE, "r": "four"}}, "the reference has r 'four', but a number is needed"),
        ({"reference": {**REFERENCE, "rank": 4}}, "names the axis 'rank'"),
        ({"reference": "r = 4"}, "has no value for the axis"),
        ({"learning_rate": {"values": [0.1], "seeds": [5]}}, "learning_rate and search cannot be used together"),
        ({"budget": 0}, "budget is 0, but a number of hours above 0"),
        ({"budget": "1 h"}, "budget is '1 h'"),
        ({"budget": 10**400}, "budget is 1000"),
        ({"pruning": True}, "has pruning beside its axes, but it belongs into search"),
        ({"trials": 3}, "has trials beside its axes, but it belongs into search"),
    ],
)
def test_a_mistake_is_a_sentence(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        search_plan(tmp_path, **changes)
