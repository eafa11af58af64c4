"""Each setting of a trial has a column of its own, with the value of this trial."""

from pathlib import Path
from typing import Any

import pytest

from lora_lightning.errors import ConfigurationError
from lora_lightning.studies.plan import StudyPlan, plan_study
from lora_lightning.studies.search import Suggestion, search_trial
from lora_lightning.studies.specification import FACTS_OF_TRIALS, Axis
from lora_lightning.studies.study_file import read_study_file
from lora_lightning.studies.trial_table import short_settings
from tests.studies.small_study import save_study

METHODS = {"full": {"model.lora": None}, "LoRA": {"model.lora.r": 8}}


def plan(folder: Path, **changes: Any) -> StudyPlan:
    return plan_study(read_study_file(save_study(folder, **{"derived": None, "seeds": [0], **changes})))


def test_a_value_that_only_leaves_an_option_out_does_not_fit_other_trials(tmp_path: Path) -> None:
    found = plan(tmp_path, axes={"method": METHODS}, reference="full")
    assert [short_settings(found, trial) for trial in found.trials] == [{"method": "full"}, {"method": "LoRA"}]


def test_the_trials_of_a_search_have_the_labels_of_their_suggestion(tmp_path: Path) -> None:
    axes = {"method": METHODS, "model.optimization.weight_decay": {"low": 0.1, "high": 0.5}}
    changes: dict[str, Any] = {"axes": axes, "search": {"trials": 2, "seeds": [7]}}
    found = plan(tmp_path, **changes, reference={"method": "full", "weight_decay": 0.1})
    values = {"method": "LoRA", "model.optimization.weight_decay": 0.25}
    trial = search_trial(found.study, Suggestion(0, values, 7))
    assert short_settings(found, trial) == {"method": "LoRA", "weight_decay": 0.25}
    assert short_settings(found, found.trials[0]) == {"method": "full", "weight_decay": 0.1}


def test_a_setting_that_is_called_like_another_column_has_its_full_name(tmp_path: Path) -> None:
    axes = {"data.seed": [3, 4], "data.r": [1, 2], "model.lora.lora_alpha": [8]}
    found = plan(tmp_path, axes=axes, reference={"seed": 3, "r": 1, "lora_alpha": 8})
    assert short_settings(found, found.trials[0]) == {"data.seed": 3, "data.r": 1, "lora_alpha": 8}
    assert "data.lora_alpha" not in short_settings(found, found.trials[0])
    assert "model.lora.lora_alpha" in short_settings(found, found.trials[0], {"lora_alpha"})
    again = plan(tmp_path, axes={"model.init_args.lora.r": [1, 2]}, reference={"r": 1})
    assert short_settings(again, again.trials[0]) == {"r": 1}


@pytest.mark.parametrize("name", FACTS_OF_TRIALS)
def test_a_named_axis_called_like_a_column_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"the axis {name} is called like a column of results.csv; give it an"):
        plan(tmp_path, axes={name: METHODS}, reference="full")


def test_a_study_of_an_older_release_with_such_an_axis_has_a_prefix(tmp_path: Path) -> None:
    found = plan(tmp_path, axes={"method": METHODS}, reference="full")
    axis = Axis("seed", found.study.axes[0].values, is_named=True)
    object.__setattr__(found.study, "axes", (axis,))
    older = plan_study(found.study)
    assert [short_settings(older, trial) for trial in older.trials] == [{"axis.seed": "full"}, {"axis.seed": "LoRA"}]
