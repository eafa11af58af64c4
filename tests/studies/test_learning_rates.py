"""Learning rates are chosen on validation, from runs that have ended, and never from one that failed."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lora_lightning.errors import ConfigurationError
from lora_lightning.studies.journal import TrialStatus
from lora_lightning.studies.learning_rates import (
    chosen_rates,
    configurations_without_rate,
    further_trials,
    notes_on_rates,
    tried_rates,
)
from lora_lightning.studies.open_study import OpenStudy
from lora_lightning.studies.plan import StudyPlan, plan_study
from lora_lightning.studies.study_file import read_study_file
from lora_lightning.studies.study_folder import StudyFolder
from lora_lightning.studies.trials import Trial
from tests.studies.small_study import save_study

RATES = {"values": [0.001, 0.01, 0.1], "seeds": [7, 8]}


def plan(folder: Path, **changes: Any) -> StudyPlan:
    changes = {"axes": {"model.lora.r": [2, 4]}, "learning_rate": RATES} | changes
    return plan_study(read_study_file(save_study(folder, **changes)))


def statuses(study: StudyPlan, losses: dict[str, dict[float, float]]) -> dict[str, TrialStatus]:
    """Finished trials; their loss depends on configuration, rate and seed."""
    return {
        trial.id: TrialStatus(
            "finished", losses[trial.configuration][trial.rate or 0] + (0.2 if trial.seed == 7 else -0.2)
        )
        for trial in study.trials
    }


LOSSES = {"r = 2": {0.001: 3.0, 0.01: 2.0, 0.1: 2.5}, "r = 4": {0.001: 1.5, 0.01: 1.4, 0.1: 0.2}}


def test_trials_that_try_rates_come_first_and_tested_ones_follow(tmp_path: Path) -> None:
    study = plan(tmp_path)
    assert len(study.trials) == 12
    assert study.tested == ()
    assert study.size == 16
    assert {trial.seed for trial in study.trials} == {7, 8}
    assert study.trials[1].options["model.optimization.learning_rate"] == 0.01
    assert study.trials[1].title == "r = 2, learning rate 0.01, seed 7"
    grown = study.with_rates({"r = 4": 0.1})
    assert [trial.title for trial in grown.tested] == ["r = 4, seed 0", "r = 4, seed 1"]
    assert grown.tested[0].options["model.optimization.learning_rate"] == 0.1
    assert grown.size == 16
    assert len({trial.id for trial in grown.trials}) == 14


def test_each_configuration_gets_its_best_rate(tmp_path: Path) -> None:
    study = plan(tmp_path)
    found = statuses(study, LOSSES)
    assert chosen_rates(study, found, higher_is_better=False) == {"r = 2": 0.01, "r = 4": 0.1}
    assert chosen_rates(study, found, higher_is_better=True) == {"r = 2": 0.001, "r = 4": 0.001}
    notes = notes_on_rates(study, {"r = 2": 0.01, "r = 4": 0.1}, found)
    assert notes[0] == "Learning rates, chosen on validation, with 2 seeds of their own: 0.01 for r = 2, 0.1 for r = 4."
    assert "The learning rate of r = 4 is the smallest or the largest" in notes[1]
    assert notes[1].endswith("in learning_rate, in a study with another name.")


def test_a_shared_rate_is_the_best_on_average(tmp_path: Path) -> None:
    study = plan(tmp_path, learning_rate=RATES | {"shared": True})
    found = statuses(study, LOSSES)
    assert chosen_rates(study, found, higher_is_better=False) == {"r = 2": 0.1, "r = 4": 0.1}
    first = next(trial for trial in study.trials if trial.configuration == "r = 4")
    assert chosen_rates(study, found | {first.id: TrialStatus("running")}, higher_is_better=False) == {}


def test_only_ended_runs_count_and_a_failed_one_rules_its_rate_out(tmp_path: Path) -> None:
    study = plan(tmp_path)
    found = statuses(study, LOSSES)
    for state in ("waiting", "running", "interrupted"):
        open_trial = {study.trials[0].id: TrialStatus(state)}  # type: ignore[arg-type]
        assert chosen_rates(study, found | open_trial, higher_is_better=False) == {"r = 4": 0.1}
    failed = {trial.id: TrialStatus("failed") for trial in study.trials if trial.rate == 0.1 and trial.seed == 8}
    assert chosen_rates(study, found | failed, higher_is_better=False) == {"r = 2": 0.01, "r = 4": 0.01}
    failed = {trial.id: TrialStatus("failed") for trial in study.trials if trial.configuration == "r = 2"}
    assert chosen_rates(study, found | failed, higher_is_better=False) == {"r = 4": 0.1}
    shared = plan(tmp_path, learning_rate=RATES | {"shared": True})
    assert chosen_rates(shared, found | failed, higher_is_better=False) == {}


def fail_rates(study: StudyPlan, found: dict[str, TrialStatus], name: str) -> dict[str, TrialStatus]:
    """All runs of a configuration with one seed have failed."""
    failed = [trial for trial in study.trials if trial.configuration == name and trial.seed == 8]
    return found | {trial.id: TrialStatus("failed") for trial in failed}


def test_a_configuration_whose_rates_all_failed_is_not_waited_for(tmp_path: Path) -> None:
    study = plan(tmp_path)
    found = statuses(study, LOSSES)
    assert configurations_without_rate(study, found) == ()
    failed = fail_rates(study, found, "r = 2")
    assert configurations_without_rate(study, failed) == ("r = 2",)
    first = next(trial for trial in study.trials if trial.configuration == "r = 2" and trial.seed == 7)
    assert configurations_without_rate(study, failed | {first.id: TrialStatus("running")}) == ()
    rates = chosen_rates(study, failed, higher_is_better=False)
    grown = study.with_rates(rates, configurations_without_rate(study, failed))
    assert grown.size == len(grown.trials) == 12 + 2
    notes = notes_on_rates(grown, rates, failed | statuses_of_tested(grown))
    assert any(note.startswith("r = 2: each learning rate has a failed run") for note in notes)
    assert not any("failed run" in note for note in notes_on_rates(study, rates, found))


def statuses_of_tested(study: StudyPlan) -> dict[str, TrialStatus]:
    return {trial.id: TrialStatus("waiting") for trial in study.tested}


def test_rates_that_a_failed_run_rules_out_are_named(tmp_path: Path) -> None:
    study = plan(tmp_path)
    found = statuses(study, LOSSES)
    own = [trial for trial in study.trials if trial.configuration == "r = 4" and trial.rate != 0.001]
    failed = found | {trial.id: TrialStatus("failed") for trial in own}
    rates = chosen_rates(study, failed, higher_is_better=False)
    assert rates == {"r = 2": 0.01, "r = 4": 0.001}
    (note,) = [note for note in notes_on_rates(study, rates, failed) if "failed run" in note]
    assert note == (
        "A learning rate with a failed run is not chosen, even if it might have been the best one: 0.01, 0.1 for r = 4."
    )


def test_a_shared_rate_that_none_survives_leaves_all_configurations_untested(tmp_path: Path) -> None:
    study = plan(tmp_path, learning_rate=RATES | {"shared": True})
    failed = fail_rates(study, statuses(study, LOSSES), "r = 2")
    assert configurations_without_rate(study, failed) == ("r = 2", "r = 4")
    grown = study.with_rates({}, ("r = 2", "r = 4"))
    assert grown.size == len(grown.trials) == 12
    (note,) = notes_on_rates(grown, {}, failed)
    assert note.startswith("r = 2, r = 4: each learning rate has a failed run")
    assert configurations_without_rate(study, failed | {study.trials[-1].id: TrialStatus("waiting")}) == ()


def test_equally_good_rates_give_the_smallest(tmp_path: Path) -> None:
    study = plan(tmp_path)
    same = {name: dict.fromkeys(RATES["values"], 1.0) for name in LOSSES}
    assert set(chosen_rates(study, statuses(study, same), higher_is_better=False).values()) == {0.001}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.01}, "learning_rate is 0.01, but `values` and `seeds` are needed"),
        ({"learning_rate": RATES | {"share": True}}, "`values` and `seeds` are needed"),
        ({"learning_rate": RATES | {"seeds": [1, 7]}}, "the seed 1 is tested and in learning_rate.seeds"),
        ({"learning_rate": RATES | {"seeds": 7}}, "learning_rate.seeds is 7"),
        ({"learning_rate": RATES | {"values": [0.1, 0.01, 1e-1]}}, "each learning rate may occur once"),
        ({"learning_rate": RATES | {"values": [1, 1.0]}}, "each learning rate may occur once"),
        ({"learning_rate": RATES | {"shared": "no way"}}, "learning_rate.shared is 'no way', but it must be true"),
        ({"learning_rate": RATES | {"shared": 1}}, "learning_rate.shared is 1, but it must be true"),
        ({"learning_rate": RATES | {"values": [0.0, 1.0]}}, "a list of numbers above 0"),
        (
            {"options": {"model.optimization.learning_rate": 0.1}},
            "options or --set and learning_rate set model.optimization.learning_rate",
        ),
    ],
)
def test_a_mistake_is_a_sentence(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan(tmp_path, **changes)


class FakeJournal:
    """Runs what a study adds, until it adds nothing; the loss is a parabola in log rate with its minimum at `best`."""

    def __init__(self, study: StudyPlan, best: dict[str, float], states: dict[str, TrialStatus] | None = None) -> None:
        self.study, self.best, self.states = study, best, states or {}
        self.known = {trial.id for trial in study.trials}

    def statuses_of(self, trials: Sequence[Trial]) -> dict[str, TrialStatus]:
        return {trial.id: self.status(trial) if trial.id in self.known else TrialStatus("waiting") for trial in trials}

    def status(self, trial: Trial) -> TrialStatus:
        loss = math.log((trial.rate or 1) / self.best[trial.configuration]) ** 2
        return self.states.get(trial.id, TrialStatus("finished", loss))

    def run(self) -> list[tuple[str, float | None, int]]:
        further: tuple[Trial, ...] = ()
        for _ in range(20):
            further = further_trials(self.study, self.statuses_of, higher_is_better=False)
            if {trial.id for trial in further} <= self.known:
                return [(trial.configuration, trial.rate, trial.seed) for trial in further]
            assert not any(trial.is_tested for trial in further)
            self.known |= {trial.id for trial in further}
        raise AssertionError


def test_rates_are_tried_beyond_the_end_at_which_the_best_one_lies(tmp_path: Path) -> None:
    rates = {"values": [0.001, 0.002, 0.004], "seeds": [7, 8], "extend": 3}
    study = plan(tmp_path, learning_rate=rates)
    assert FakeJournal(study, {"r = 2": 0.002, "r = 4": 0.002}).run() == []
    below = [("r = 2", rate, seed) for rate in (0.0005, 0.00025) for seed in (7, 8)]
    above = [("r = 4", rate, seed) for rate in (0.008, 0.016) for seed in (7, 8)]
    assert FakeJournal(study, {"r = 2": 0.0005, "r = 4": 0.008}).run() == below + above
    most = FakeJournal(study, {"r = 2": 1e-9, "r = 4": 0.002}).run()
    assert [rate for _, rate, _ in most[::2]] == [0.0005, 0.00025, 0.000125]
    without = plan(tmp_path, learning_rate=rates | {"extend": 0})
    assert FakeJournal(without, {"r = 2": 1e-9, "r = 4": 1e-9}).run() == []


def test_a_rate_beyond_is_tried_only_when_all_others_have_ended(tmp_path: Path) -> None:
    study = plan(tmp_path, learning_rate={"values": [0.001, 0.002], "seeds": [7, 8], "extend": 3})
    running = {study.trials[-1].id: TrialStatus("running")}
    found = FakeJournal(study, {"r = 2": 1e-9, "r = 4": 1e-9}, running).run()
    assert {name for name, _, _ in found} == {"r = 2"}


def test_a_rate_whose_run_failed_is_no_better_end(tmp_path: Path) -> None:
    study = plan(tmp_path, learning_rate={"values": [0.001, 0.002], "seeds": [7], "extend": 3})
    failed = {trial.id: TrialStatus("failed") for trial in study.trials if trial.rate == 0.002}
    journal = FakeJournal(study, {"r = 2": 1.0, "r = 4": 1.0}, failed)
    # 0.001 was the smallest, and is the best beside 0.0005 and a failed rate.
    assert journal.run() == [("r = 2", 0.0005, 7), ("r = 4", 0.0005, 7)]
    further = study.with_further_rates(further_trials(study, journal.statuses_of, higher_is_better=False))
    found = tried_rates(further, "r = 2", journal.statuses_of(further.trials))
    assert found[0.002] == {}
    assert found[0.001].keys() == {7}


def test_rates_that_were_tried_beyond_stay_when_a_failed_run_is_repeated(tmp_path: Path) -> None:
    """At first the largest rate fails, and a smaller one is tried; repeated, the largest is the best of the study's."""
    study = plan(tmp_path, learning_rate={"values": [0.001, 0.002], "seeds": [7], "extend": 3})
    failed = {trial.id: TrialStatus("failed") for trial in study.trials if trial.rate == 0.002}
    journal = FakeJournal(study, {"r = 2": 0.003, "r = 4": 0.003}, failed)
    assert [rate for _, rate, _ in journal.run()] == [0.0005, 0.0005]
    journal.states = {}
    assert journal.run() == [(name, rate, 7) for name in ("r = 2", "r = 4") for rate in (0.0005, 0.004, 0.008)]


def test_one_look_at_the_journal_decides_on_rates(tmp_path: Path) -> None:
    """A run that ends between two looks would be the best before the rates beyond it are tried."""
    study = plan(tmp_path, learning_rate={"values": [0.001, 0.002, 0.004], "seeds": [7], "extend": 3})
    looks = [{study.trials[-1].id: TrialStatus("running")}, {}]

    class Journal:
        def snapshot(self) -> Callable[[Sequence[Trial]], dict[str, TrialStatus]]:
            states = looks.pop(0)
            return FakeJournal(study, {"r = 2": 0.002, "r = 4": 1.0}, states).statuses_of

    class Study(OpenStudy):
        higher_is_better = False  # type: ignore[assignment]

    opened = Study(study, StudyFolder(tmp_path), Journal(), "test/loss", "val/loss")  # type: ignore[arg-type]
    assert {trial.configuration for trial in opened.plan.tested} == {"r = 2"}
    second = opened.plan
    assert {trial.configuration for trial in second.tested} == {"r = 2"}
    assert 0.008 in {trial.rate for trial in second.trials}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extend": -1}, "an integer from 0 to 10 is needed"),
        ({"extend": 11}, "an integer from 0 to 10 is needed"),
        ({"extend": True}, "an integer from 0 to 10 is needed"),
        ({"extend": 2, "shared": True}, "only the rates of each configuration can be extended"),
        ({"extend": 2, "values": [0.1]}, "two values are needed"),
    ],
)
def test_an_extension_that_makes_no_sense_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan(tmp_path, learning_rate=RATES | change)
