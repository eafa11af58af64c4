"""A study's folder: it is read back as it was, may gain values and seeds, and refuses what contradicts it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_lightning.errors import ConfigurationError
from lora_lightning.studies.former_options import with_former_options
from lora_lightning.studies.plan import StudyPlan, plan_study
from lora_lightning.studies.study_file import read_study_file
from lora_lightning.studies.study_folder import REMEDY, REPLACED, STUDY, StudyFolder, load_plan, load_tags
from lora_lightning.studies.trial_runs import run_options
from tests.studies.small_study import BASE, save_study


def plan(folder: Path, **changes: Any) -> StudyPlan:
    return plan_study(read_study_file(save_study(folder, **changes)))


def save(folder: StudyFolder, study: StudyPlan) -> None:
    with folder.locked():
        folder.save(study, "test/loss", "val/loss")


@pytest.fixture
def folder(tmp_path: Path) -> StudyFolder:
    folder = StudyFolder(tmp_path / "studies" / "small")
    save(folder, plan(tmp_path))
    return folder


def test_a_study_is_read_back(folder: StudyFolder, tmp_path: Path) -> None:
    changes = {"sequence": ["r = 2"], "costs": ["trainable_parameters", "seconds_per_step"], "direction": "lower"}
    changes |= {"further_seeds": {"r = 4": [3, 9]}}
    other = StudyFolder(tmp_path / "studies" / "other")
    study = plan(tmp_path, **changes)
    save(other, study)
    assert load_plan(other.path) == study
    assert load_plan(folder.path) == plan(tmp_path)
    assert load_tags(folder.path) == ("test/loss", "val/loss")


def test_a_base_file_is_saved_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(json.dumps(BASE))
    folder = StudyFolder(tmp_path / "studies" / "small")
    save(folder, plan(tmp_path, base="base.yaml"))
    assert load_plan(folder.path).study.base == (BASE,)
    save(folder, plan(tmp_path))  # the same content
    (tmp_path / "base.yaml").write_text(json.dumps(BASE | {"trainer": {"max_epochs": 7}}))
    with pytest.raises(ConfigurationError, match=r"trainer.max_epochs is 7 here and 2 there"):
        save(folder, plan(tmp_path, base="base.yaml"))


def test_a_study_may_gain_values_and_seeds(folder: StudyFolder, tmp_path: Path) -> None:
    save(folder, plan(tmp_path, seeds=[5, 1, 0], axes={"model.lora.r": [1, 2, 3, 4]}))
    assert len(load_plan(folder.path).trials) == 12
    more = {"seeds": [5, 1, 0], "axes": {"model.lora.r": [1, 2, 3, 4]}, "further_seeds": {"r = 4": [9]}}
    save(folder, plan(tmp_path, **more))
    assert len(load_plan(folder.path).trials) == 13


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"seeds": [0]},
            r"has 3 runs that the study no longer contains \(r = 1, seed 1; r = 2, seed 1; r = 4, seed 1\)",
        ),
        ({"axes": {"model.lora.r": [2, 4, 8]}}, r"has 2 runs .* \(r = 1, seed 0; r = 1, seed 1\)"),
        ({"derived": {"model.lora.lora_alpha": "2 * r"}}, "has 6 runs .*; and 3 more"),
        ({"derived": {"model.lora.lora_alpha": "min(r, 4)"}}, r"lora_alpha is 'min\(r,4\)' here and 'r' there"),
        ({"options": {"trainer.max_epochs": 9}}, "has 6 runs"),
        ({"margin": 0.25}, "margin is 0.25 here and 0.5 there"),
        ({"objective": "test/loss"}, "objective is 'test/loss' here and 'loss' there"),
        ({"reference": "r = 2"}, "reference"),
        ({"base": BASE | {"checkpoint": {"monitor": "val/loss", "mode": "max"}}}, "checkpoint.mode is 'max' here"),
    ],
)
def test_a_contradiction_is_refused(changes: Any, message: str, folder: StudyFolder, tmp_path: Path) -> None:
    before = (folder.path / STUDY).read_bytes()
    with pytest.raises(ConfigurationError, match=f"{message}.*{REMEDY}"):
        save(folder, plan(tmp_path, **changes))
    assert (folder.path / STUDY).read_bytes() == before


def test_null_is_not_what_is_left_out(tmp_path: Path) -> None:
    model = {**BASE["model"], "init_args": {**BASE["model"]["init_args"], "lora": None}}
    left_out = {**model, "init_args": {name: value for name, value in model["init_args"].items() if name != "lora"}}
    changes: dict[str, Any] = {"axes": {"model.optimization.weight_decay": [0.1]}, "derived": None, "reference": {}}
    full, lora = (plan(tmp_path, **changes, base=BASE | {"model": each}) for each in (model, left_out))
    folder = StudyFolder(tmp_path / "studies" / "full")
    save(folder, full)
    with pytest.raises(ConfigurationError, match=r"model.init_args.lora is '\(not set\)' here and None there"):
        folder.check(lora)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "it lacks 'schema_version'"),
        ([], "it lacks 'schema_version'"),
        ({"schema_version": 1}, "it lacks 'axes'|it lacks 'costs'"),
        ({"schema_version": "1"}, "damaged"),
    ],
)
def test_a_damaged_study_is_a_sentence(content: Any, message: str, folder: StudyFolder) -> None:
    (folder.path / STUDY).write_text(json.dumps(content))
    for read in (load_plan, load_tags):
        with pytest.raises(ConfigurationError, match=r"study\.json is damaged \(.*\); restore it"):
            read(folder.path)
    with pytest.raises(ConfigurationError, match=message):
        load_plan(folder.path)


def test_axes_of_a_damaged_study_are_no_traceback(folder: StudyFolder) -> None:
    saved = json.loads((folder.path / STUDY).read_text())
    for change in ({"axes": 3}, {"seeds": None}, {"further_seeds": []}, {"learning_rate": {}}):
        (folder.path / STUDY).write_text(json.dumps(saved | change))
        with pytest.raises(ConfigurationError, match=r"study\.json is damaged"):
            load_plan(folder.path)


def test_what_every_trial_replaces_may_differ_in_the_base(folder: StudyFolder, tmp_path: Path) -> None:
    logger = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "elsewhere", "name": "renamed"}}
    trainer = BASE["trainer"] | {"logger": logger, "enable_progress_bar": True}
    save(folder, plan(tmp_path, base=BASE | {"trainer": trainer, "seed_everything": 7, "test_after_fit": True}))
    save(folder, plan(tmp_path, base=BASE | {"trainer": BASE["trainer"] | {"logger": [logger, logger]}}))
    study = plan(tmp_path)
    assert set(REPLACED) <= run_options(folder, study.trials[0]).keys()
    other = BASE | {"trainer": trainer | {"log_every_n_steps": 1}}
    with pytest.raises(ConfigurationError, match=r"settings: trainer\.log_every_n_steps is 1 here and 2 there; r"):
        save(folder, plan(tmp_path, base=other))


def test_a_study_of_an_earlier_release_goes_on_with_what_that_read(tmp_path: Path) -> None:
    path, folder = save_study(tmp_path), StudyFolder(tmp_path / "studies" / "small")
    path.write_text(path.read_text() + "options: {data.a: '1e-5'}\n")
    words = ["data.b=1e-5", "data.c=[a,b]", "data.d=007", "data.e=Task # 3", "data.f=x"]
    new = read_study_file(path, settings=words)
    assert with_former_options(new, folder) == new
    read = {"data.a": 1e-5, "data.b": 1e-5, "data.c": ["a", "b"], "data.d": 7, "data.e": "Task", "data.f": "x"}
    base = BASE | {"trainer": BASE["trainer"] | {"gradient_clip_val": 1e-3}}
    save(folder, plan_study(replace(new, options=read, base=(base,))))
    with pytest.warns(
        UserWarning, match=r"data.d is '007', but the study in .*small goes on with 7, as which"
    ) as found:
        former = with_former_options(new, folder)
    assert len(found) == 5
    assert former.options == read
    quoted = BASE | {"trainer": BASE["trainer"] | {"gradient_clip_val": "1e-3"}}
    save(folder, plan_study(replace(former, base=(quoted,))))
    other = replace(read_study_file(path, settings=[*words[:-1], "data.f=y"]), base=(quoted,))
    with pytest.warns(UserWarning, match="007"), pytest.raises(ConfigurationError, match="no longer contains"):
        save(folder, plan_study(with_former_options(other, folder)))


def test_a_folder_of_something_else_or_of_a_newer_release_is_refused(folder: StudyFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not the folder of a study"):
        load_plan(tmp_path)
    content = json.loads((folder.path / STUDY).read_text())
    (folder.path / STUDY).write_text(json.dumps(content | {"schema_version": 99}))
    with pytest.raises(ConfigurationError, match="schema version 99, but this release reads 1"):
        load_plan(folder.path)


def test_a_rank_above_the_reference_would_replace_the_sequence_of_tests(folder: StudyFolder, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"the fixed sequence \['r = 2', 'r = 1'\], but with .* is \[\], so that"
    ):
        save(folder, plan(tmp_path, axes={"model.lora.r": [1, 2, 4, 8]}))
    save(folder, plan(tmp_path, axes={"model.lora.r": [1, 2, 3, 4]}))


def test_a_folder_that_was_renamed_does_not_start_again_under_its_new_name(folder: StudyFolder, tmp_path: Path) -> None:
    renamed = StudyFolder(folder.path.rename(folder.path.with_name("other")))
    with pytest.raises(
        ConfigurationError, match=r"other has the study 'small', and not 'other': .* was renamed or copied"
    ):
        save(renamed, plan(tmp_path, name="other"))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    save(StudyFolder(renamed.path.rename(moved / "small")), plan(tmp_path))
