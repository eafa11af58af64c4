"""A study's YAML: every key is used or refused in a sentence, before anything heavy is imported or trained."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lora_lightning.errors import ConfigurationError
from lora_lightning.studies.plan import plan_study
from lora_lightning.studies.study_file import read_study_file
from lora_lightning.studies.study_folder import study_as_json
from lora_lightning.training.api import option_arguments
from tests.studies.small_study import save_study


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axis": {"r": [1]}}, "unknown key 'axis'; did you mean 'axes'"),
        ({"axes": None}, "axes is missing"),
        ({"axes": []}, "axes is \\[\\], but lists of values"),
        ({"axes": {"model.lora.r": 4}}, "the axis model.lora.r is 4, but a list of values is needed"),
        ({"axes": {"model.lora.r": []}}, "a list of values is needed"),
        ({"axes": {"model.lora.r": [4, 4]}}, "has the value 4 twice"),
        ({"axes": {"model.lora.r": {"low": 1, "high": 8}}}, "is a range, which only a search can draw from"),
        ({"axes": {"the rank": [1, 4]}}, "'the rank' in axes is no option"),
        ({"axes": {"seed_everything": [1, 4]}}, "which the study sets for each run; give seeds"),
        ({"axes": {"trainer.logger.name": ["a"]}}, "which the study sets for each run; leave it out"),
        ({"axes": {"precision": {"a": {"trainer.logger": None}}}}, "the value 'a' of the axis precision sets"),
        ({"axes": {"a.r": [1], "b.r": [4]}}, "two axes end in 'r'"),
        ({"seeds": None}, "seeds is missing"),
        ({"seeds": 3}, "seeds is 3, but a list of integers"),
        ({"seeds": [0, 0]}, "each seed may occur once"),
        ({"seeds": [0, True]}, "the seed True must be an integer"),
        ({"seeds": [-1]}, "the seed -1 must be an integer in \\[0, 4294967296\\)"),
        ({"seeds": [0.5]}, "the seed 0.5 must be an integer"),
        ({"margin": 0}, "the margin is 0, but it must be a number above 0"),
        ({"margin": -1.0}, "the margin is -1.0"),
        ({"margin": float("nan")}, "the margin is nan"),
        ({"margin": 10**400}, "the margin is 1000"),
        ({"learning_rate": {"values": [10**400], "seeds": [7]}}, "learning_rate.values is .*, but a list of numbers"),
        ({"margin": "small"}, "the margin is 'small'"),
        ({"reference": None}, "reference is missing"),
        ({"reference": {"r": 3}}, "fits 0 configurations; it must fit exactly one of r = 1, r = 2, r = 4"),
        ({"reference": {"rank": 4}}, "the reference names the axis 'rank'; "),
        ({"reference": "r = 3"}, "the reference 'r = 3' is no configuration; did you mean"),
        ({"reference": 4}, "reference is 4, but the name of a configuration"),
        ({"objective": None}, "objective is missing"),
        ({"objective": 1}, "objective is 1, but a text"),
        ({"direction": ["lower"]}, "direction is \\['lower'\\]; "),
        ({"direction": "up"}, "direction is 'up'; "),
        ({"base": {"trainer": 3}}, "trainer in base of .*small.yaml is 3, but named options"),
        ({"costs": ["memory"]}, "there is no cost 'memory'"),
        ({"costs": "trainable_parameters"}, "a list is needed"),
        ({"name": "../up"}, "the name '../up' must be .*; write a name in the study, such as `name: ranks`"),
        ({"base": None}, "base is missing"),
        ({"base": 3}, "base is 3"),
        ({"base": "nowhere.yaml"}, "there is no base config .*nowhere.yaml"),
        ({"options": {"seed_everything": 1}}, "options sets seed_everything"),
        ({"derived": {"model.lora.lora_alpha": "2 * rank"}}, "names 'rank', but the axes are r"),
        ({"options_by_data": ["small"]}, "options_by_data is \\['small'\\], but options by data module are needed"),
        (
            {"options_by_data": {"PlantedRankDataModule": 3}},
            "options_by_data of Planted.* is 3, but values",
        ),
        (
            {"options_by_data": {"Clinc150DataModul": {"data.variant": "small"}}},
            "options of Clinc150DataModul, but the data module of the base is PlantedRankDataModule; correct",
        ),
        (
            {"options": {"data.x": 1}, "options_by_data": {"PlantedRankDataModule": {"data.x": 2}}},
            "data.x is in options and in options_by_data; leave one of both out",
        ),
        ({"sequence": ["r = 2", "r = 2"]}, "must name each configuration once"),
        ({"sequence": ["r = 4"]}, "and not the reference"),
        ({"sequence": ["r = 3"]}, "sequence names 'r = 3', which is no configuration"),
        ({"full_fine_tuning": "full"}, "full_fine_tuning names 'full', which is no configuration"),
        ({"axes": {"model.lora.r": {"a": {"x": 1}, "b": {"x": 1}}}, "derived": None}, "'a' and 'b' are the same"),
    ],
)
def test_a_mistake_is_a_sentence(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan_study(read_study_file(save_study(tmp_path, **changes)))


def test_a_file_that_is_no_yaml_or_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml cannot be read"):
        read_study_file(tmp_path / "nowhere.yaml")
    (tmp_path / "study.yaml").write_text("axes: [1\n")
    with pytest.raises(ConfigurationError, match="is not YAML"):
        read_study_file(tmp_path / "study.yaml")


def test_base_configs_are_relative_to_the_study_and_can_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "configs").mkdir()
    for name in ("base.yaml", "other.yaml"):
        (tmp_path / "configs" / name).write_text("model: {}\n")
    path = save_study(tmp_path / "configs", base=["base.yaml", "other.yaml"])
    found = read_study_file(path).base
    assert found == (tmp_path / "configs" / "base.yaml", tmp_path / "configs" / "other.yaml")
    mine = tmp_path / "mine.yaml"
    mine.write_text("model: {}\n")
    assert read_study_file(path, [mine]).base == (mine,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [1\n", "is not YAML"),
        ("", "contains nothing, but named options"),
        ("- model\n", "contains a list, but named options"),
        ("trainer: 3\n", "trainer in .* is 3, but named options"),
        ("model: {}\nmodel: {}\n", "'model' is a duplicate"),
    ],
)
@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_broken_base_config_is_a_sentence(text: str, message: str, is_replaced: bool, tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text(text)
    path = save_study(tmp_path) if is_replaced else save_study(tmp_path, base="base.yaml")
    with pytest.raises(ConfigurationError, match=message):
        read_study_file(path, [base] if is_replaced else [])


def test_a_missing_base_of_the_command_line_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"there is no base config none\.yaml; check the path of --base"):
        read_study_file(save_study(tmp_path), [Path("none.yaml")])


def test_dates_are_texts_as_in_fit_and_the_study_can_be_saved(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("data: {day: 2024-01-01}\n")
    path = save_study(tmp_path, base="base.yaml")
    path.write_text(path.read_text() + "options: {data.first: 2024-01-01, data.last: !!timestamp 2024-01-02}\n")
    study = read_study_file(path, settings=["data.time=2024-01-01 10:00:00"])
    assert study.options == {
        "data.first": "2024-01-01",
        "data.last": "2024-01-02",
        "data.time": "2024-01-01 10:00:00",
    }
    content = json.loads(json.dumps(study_as_json(study)))
    assert content["base"] == [{"data": {"day": "2024-01-01"}}]


@pytest.mark.parametrize(
    "typed",
    [
        *("Task # 3", "007", "1_000", "12:30:00", "0x10", "1e5678", "1e-5", "1e5", "True", "~", "a: b", " x", "'x'"),
        *("{a: 1, a: 2}", "[a,b]", "[a, b # c]", "!!set {a}", "!!set {a: null}", "!!binary aGk=", "&id001 [*id001]"),
        *("[1", 1500 * "[", "2024-13-45", "a\\nb", "\U0001f600"),
    ],
)
def test_a_setting_that_yaml_would_change_stays_as_it_was_typed(typed: str, tmp_path: Path) -> None:
    study = read_study_file(save_study(tmp_path), settings=[f"data.x={typed}"])
    assert study.options == {"data.x": typed}
    assert option_arguments(study.options) == [f"--data.x={typed}"]
    assert json.loads(json.dumps(study_as_json(study)))["options"] == study.options


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("0.2", 0.2),
        ("7", 7),
        ("true", True),
        ("null", None),
        ("[a, 4]", ["a", 4]),
        ("{a: 1}", {"a": 1}),
        ("a b", "a b"),
    ],
)
def test_a_setting_that_yaml_writes_as_typed_is_read(typed: str, value: Any, tmp_path: Path) -> None:
    study = read_study_file(save_study(tmp_path), settings=[f"data.x={typed}"])
    assert study.options == {"data.x": value}
    assert option_arguments(study.options) == [f"--data.x={typed}"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.x"], "--set 'data.x' has no value; write OPTION=VALUE"),
        (["data.x="], "--set 'data.x=' has no value; .*or OPTION=null for none"),
        (["data.x= "], "--set 'data.x= ' has no value"),
        (["data.x=1", "data.y=1", "data.x=1"], "--set gives data.x 2 times; leave out all but one"),
        ({"data x": 1}, "'data x' in settings is no option"),
        ({1: 1}, "settings has the name 1, but a text is needed"),
        ({"data.x": {1: 1}}, "data.x in settings has the name 1, but a text is needed"),
        ({"data.x": object}, "data.x in settings is <class 'object'>, a type; give a text"),
    ],
)
def test_a_wrong_setting_is_a_sentence(settings: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_study_file(save_study(tmp_path), settings=settings)


def test_a_quoted_text_stays_a_text(tmp_path: Path) -> None:
    path = save_study(tmp_path)
    path.write_text(path.read_text() + "options: {data.a: '1e5', data.b: 1e5, data.c: \"1e5678\", data.d: -1.5E-3}\n")
    assert read_study_file(path).options == {"data.a": "1e5", "data.b": 1e5, "data.c": "1e5678", "data.d": -0.0015}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([4, "4"], "'4' and \"'4'\" are the same for fit, in the axis model.lora.r"),
        ([True, "true"], "are the same for fit"),
        ([None, "null"], "are the same for fit"),
        ([1, 1.0], "are the same for fit"),
        ([["a", 4], "[a, 4]"], "are the same for fit"),
        ({"a": {"x": 4}, "b": {"x": "4"}}, "'a' and 'b' are the same for fit"),
    ],
)
def test_values_that_fit_cannot_tell_apart_are_refused(values: Any, message: str, tmp_path: Path) -> None:
    changes = {"axes": {"model.lora.r": values}, "derived": None}
    for search in (None, {"trials": 1, "seeds": [7]}):
        with pytest.raises(ConfigurationError, match=re.escape(message)):
            read_study_file(save_study(tmp_path, **changes, search=search))


def test_values_that_fit_can_tell_apart_are_kept(tmp_path: Path) -> None:
    values = ["4", 6, "05", "a", "", "~", None, True, "yes", 0.5, [4], 0.001]
    (axis,) = read_study_file(save_study(tmp_path, axes={"model.q": values}, derived=None)).axes
    assert list(axis.values.values()) == values


def test_without_a_name_the_file_names_the_study(tmp_path: Path) -> None:
    path = save_study(tmp_path, name=None)
    assert read_study_file(path).name == "small"
    with pytest.raises(ConfigurationError, match=r"the name 'a b' must be .*rename it, or add a name in the study"):
        read_study_file(path.rename(tmp_path / "a b.yaml"))


def test_options_of_one_kind_of_data_are_left_out_with_another_base(tmp_path: Path) -> None:
    path = save_study(tmp_path, options={"a.b": 1}, options_by_data={"PlantedRankDataModule": {"data.x": 2}})
    assert read_study_file(path).options == {"a.b": 1, "data.x": 2}
    assert read_study_file(path, settings=["data.x=3"]).options == {"a.b": 1, "data.x": 3}
    for text, options in (
        ("data: {class_path: lora_lightning.datamodules.GlueDataModule}", {"a.b": 1}),
        ("data: GlueDataModule", {"a.b": 1}),
        ("data: {class_path: lora_lightning.datamodules.PlantedRankDataModule}", {"a.b": 1, "data.x": 2}),
        ("trainer: {max_epochs: 1}", {"a.b": 1}),
    ):
        (other := tmp_path / "other.yaml").write_text(text)
        (later := tmp_path / "later.yaml").write_text("data: {init_args: {batch_size: 2}}")
        assert read_study_file(path, [other, later]).options == options


def test_another_objective_keeps_a_margin_of_the_same_unit(tmp_path: Path) -> None:
    path = save_study(tmp_path, objective="in_scope_accuracy", margin=2, direction="higher")
    for objective, margin, direction in (
        ("in_scope_accuracy", 2, "higher"),
        ("test/f1", 2, None),
        ("perplexity", None, None),
    ):
        found = read_study_file(path, objective=objective)
        assert (found.objective, found.margin, found.direction) == (objective, margin, direction)
    with pytest.raises(
        ConfigurationError, match=r"'loss' has no usual margin, .* is of in_scope_accuracy; copy the study"
    ):
        read_study_file(path, objective="loss")  # whose margin and direction would be dropped, wherever they are set
    with pytest.raises(ConfigurationError, match="whether a larger 'inaccuracy' is better; copy the study, and set"):
        read_study_file(path, objective="inaccuracy")
    claim = {"claim": "a tie", "source": "a paper", "quantity": "difference", "between": [-0.5, 0.5]}
    path = save_study(tmp_path, objective="in_scope_accuracy", margin=2, claims=[claim])
    assert read_study_file(path, objective="accuracy").claims
    with pytest.raises(ConfigurationError, match="the claim 'a tie' is in the unit of in_scope_accuracy, which is not"):
        read_study_file(path, objective="perplexity")


def test_another_name_is_checked_as_that_of_the_yaml(tmp_path: Path) -> None:
    assert read_study_file(save_study(tmp_path), name="other").name == "other"
    with pytest.raises(ConfigurationError, match=r"the name '../up' must be"):
        read_study_file(save_study(tmp_path), name="../up")
