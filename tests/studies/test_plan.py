"""From axes to configurations and trials: names, derived values, order, ids, reference and sequence."""

from pathlib import Path
from typing import Any

import pytest

from lora_lightning.errors import ConfigurationError
from lora_lightning.studies.plan import StudyPlan, beside_rank, plan_study, rank_axis, rank_of
from lora_lightning.studies.study_file import read_study_file
from tests.studies.small_study import save_study


def plan(folder: Path, **changes: Any) -> StudyPlan:
    return plan_study(read_study_file(save_study(folder, **changes)))


def test_ranks_are_tested_from_the_largest_down(tmp_path: Path) -> None:
    found = plan(tmp_path)
    assert [each.name for each in found.configurations] == ["r = 1", "r = 2", "r = 4"]
    assert [each.options for each in found.configurations][1] == {"model.lora.r": 2, "model.lora.lora_alpha": 2}
    assert found.reference == "r = 4"
    assert found.sequence == ("r = 2", "r = 1")


@pytest.mark.parametrize("name", ["model.lora.r", "model.init_args.lora.r"])
def test_both_names_of_the_rank_give_the_fixed_sequence(name: str, tmp_path: Path) -> None:
    found = plan(tmp_path, axes={name: [2, 16, 8]}, reference={"r": 16})
    assert found.sequence == ("r = 8", "r = 2")
    assert rank_axis(found.study) == name


def test_ranks_that_are_no_numbers_are_left_to_the_check_of_options(tmp_path: Path) -> None:
    assert plan(tmp_path, axes={"model.lora.r": ["a", 4]}, derived=None).sequence == ()
    assert rank_axis(plan(tmp_path, axes={"model.q": [1, 4]}, derived=None, reference={"q": 4}).study) is None


def test_other_axes_have_no_sequence_unless_one_is_given(tmp_path: Path) -> None:
    rates = {"model.optimization.learning_rate": [1e-3, 1e-2]}
    assert plan(tmp_path, reference={"r": 2}).sequence == ()  # not the largest rank
    found = plan(tmp_path, axes=rates, derived=None, reference={"learning_rate": 1e-2})
    assert (found.reference, found.sequence) == ("learning_rate = 0.01", ())
    assert plan(tmp_path, sequence=["r = 1", "r = 2"]).sequence == ("r = 1", "r = 2")


@pytest.mark.parametrize("search", [None, {"trials": 1, "seeds": [7]}])
@pytest.mark.parametrize("values", [["1", "a"], [1, "a"]])
def test_a_reference_may_be_a_text_that_is_a_number(values: list[Any], search: Any, tmp_path: Path) -> None:
    axes = {"axes": {"data.x": values}, "derived": None, "search": search}
    label = "1" if values[0] == 1 else "'1'"
    for reference in ({"x": values[0]}, {"x": "1"}):
        assert plan(tmp_path, **axes, reference=reference).reference == f"x = {label}"
    assert plan(tmp_path, **axes, reference={"x": "a"}).reference == "x = a"


def test_all_combinations_are_trained_seed_by_seed(tmp_path: Path) -> None:
    axes = {"model.lora.r": [2, 4], "model.lora.target_modules": ["all-linear", ["query", "value"]]}
    found = plan(tmp_path, axes=axes, reference={"r": 4, "target_modules": "all-linear"})
    assert [each.name for each in found.configurations] == [
        "r = 2, target_modules = all-linear",
        "r = 2, target_modules = [query, value]",
        "r = 4, target_modules = all-linear",
        "r = 4, target_modules = [query, value]",
    ]
    assert [trial.seed for trial in found.trials] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert found.trials[1].options["model.lora.target_modules"] == ["query", "value"]
    assert len({trial.id for trial in found.trials}) == 8


def test_named_values_set_several_options(tmp_path: Path) -> None:
    methods = {"full": {"model.lora": None}, "LoRA": {"model.lora.r": 4}, "NF4": {"model.quantization": {"bits": 4}}}
    found = plan(tmp_path, axes={"method": methods}, derived=None, reference="full", full_fine_tuning="full")
    assert [each.name for each in found.configurations] == ["full", "LoRA", "NF4"]
    assert [each.options for each in found.configurations] == list(methods.values())
    assert found.configurations[0].labels == {"method": "full"}


def test_named_values_may_be_called_like_the_ends_of_a_range(tmp_path: Path) -> None:
    axes = {"quality": {"low": {"model.lora.r": 1}, "high": {"model.lora.r": 4}}}
    found = plan(tmp_path, axes=axes, derived=None, reference="high")
    assert [each.name for each in found.configurations] == ["low", "high"]


def test_ranks_by_layer_are_no_rank(tmp_path: Path) -> None:
    values = {
        "uniform": {"model.lora.r": 8, "model.lora.rank_pattern": None},
        "allocated": {"model.lora.r": 1, "model.init_args.lora.rank_pattern": {"query": 16}},
        "AdaLoRA": {"model.lora.r": 8, "model.lora.adalora": {"target_r": 8}},
        "pruned": {"model.lora.r": 8, "model.lora.adalora.target_r": 8},
    }
    found = plan(tmp_path, axes={"ranks": values}, derived=None, reference="uniform")
    assert [rank_of(each) for each in found.configurations] == [8, None, None, None]


def test_what_differs_beside_the_rank(tmp_path: Path) -> None:
    methods = {
        "attention": {"model.lora.r": 10, "model.lora.lora_alpha": 20, "model.lora.target_modules": "attention"},
        "all": {"model.lora.r": 8, "model.lora.lora_alpha": 16},
        "all, small": {"model.lora.r": 4, "model.init_args.lora.lora_alpha": 8},
    }
    found = plan(tmp_path, axes={"method": methods}, derived=None, reference="all")
    assert [beside_rank(found.study, each) for each in found.configurations] == ["target_modules = attention", "", ""]
    axes = {"model.lora.r": [4, 8], "model.lora.lora_dropout": [0.0, 0.1]}
    found = plan(
        tmp_path, axes=axes, derived={"model.lora.lora_alpha": "2 * r"}, reference={"r": 8, "lora_dropout": 0.0}
    )
    assert [beside_rank(found.study, each) for each in found.configurations] == [
        "lora_dropout = 0.0",
        "lora_dropout = 0.1",
    ] * 2


def test_derived_values_may_use_earlier_ones(tmp_path: Path) -> None:
    derived = {"model.lora.lora_alpha": "2 * r", "model.optimization.learning_rate": "0.064 / lora_alpha"}
    options = plan(tmp_path, derived=derived).configurations[2].options
    assert options == {
        "model.lora.r": 4,
        "model.lora.lora_alpha": 8,
        "model.optimization.learning_rate": 0.008,
    }


def test_an_id_depends_on_options_and_seed_alone(tmp_path: Path) -> None:
    one, more = plan(tmp_path), plan(tmp_path, seeds=[1, 0, 7], axes={"model.lora.r": [4, 2, 1, 3]})
    assert {trial.id for trial in one.trials} < {trial.id for trial in more.trials}
    other = plan(tmp_path, options={"trainer.max_epochs": 3})
    assert not {trial.id for trial in one.trials} & {trial.id for trial in other.trials}
    assert one.trials[0].id.startswith("r_1_seed_0_")


def test_a_text_of_several_lines_has_a_name_of_one_and_its_former_id(tmp_path: Path) -> None:
    texts = ["one\ntwo", "one\n  two", "one two", "one\rtwo", "one\u2028two"]
    found = plan(tmp_path, axes={"data.prompt": texts}, derived=None, reference={"prompt": texts[0]})
    names = [each.name for each in found.configurations]
    assert all(name.isprintable() and len(name.splitlines()) == 1 for name in names)
    assert len({*names}) == len(texts)
    assert [each.options["data.prompt"] for each in found.configurations] == texts
    assert found.trials[0].id.startswith("prompt_one_two_seed_0_")  # as if the name had its line break
    named = {"one\ntwo": {"data.prompt": "a"}, "other": {"data.prompt": "b"}}
    found = plan(tmp_path, axes={"prompt": named}, derived=None, reference="other")
    assert found.configurations[0].name == "one\u21b5two"


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    path = save_study(
        tmp_path, axes={"model.optimization.learning_rate": ["RATE"]}, reference={"learning_rate": "RATE"}
    )
    path.write_text(path.read_text().replace("RATE", "1e-3").replace("alpha: r", "alpha: 8000 * learning_rate"))
    (found,) = plan_study(read_study_file(path)).configurations
    assert found.name == "learning_rate = 0.001"
    assert found.options == {"model.optimization.learning_rate": 1e-3, "model.lora.lora_alpha": 8}


@pytest.mark.parametrize(
    ("changes", "where", "option"),
    [
        ({"options": {"model.lora.r": 8}}, "options or --set and the axis model.lora.r", "model.lora.r"),
        (
            {"options": {"model.init_args.lora.r": 8}},
            "options or --set and the axis",
            "model.init_args.lora.r and model",
        ),
        ({"options": {"model.lora": None}}, "options or --set and derived", "model.lora and model.lora.lora_alpha"),
        ({"options": {"model.lora.lora_alpha": 3}}, "options or --set and derived", "model.lora.lora_alpha"),
        ({"derived": {"model.lora.r": "2"}}, "derived and the axis model.lora.r", "model.lora.r"),
        (
            {"options": {"data.in_features": 8, "data.init_args.in_features": 9}},
            "options or --set sets",
            "data.in_features and data.init_args.in_features",
        ),
        (
            {"axes": {"model.lora.r": [1, 4], "other": {"a": {"model.lora.r": 2}, "b": {}}}, "reference": "r = 4, b"},
            "the axis model.lora.r and the axis other",
            "model.lora.r",
        ),
        (
            {"axes": {"method": {"a": {"model.lora": None, "model.lora.r": 2}, "b": {}}}, "reference": "b"},
            "the value 'a' of the axis method sets",
            "model.lora and model.lora.r",
        ),
        (
            {"options": {"model.optimization": {}}, "learning_rate": {"values": [0.1], "seeds": [7]}},
            "options or --set and learning_rate",
            "model.optimization and model.optimization.learning_rate",
        ),
    ],
)
def test_an_option_that_is_set_twice_is_refused(
    tmp_path: Path, changes: dict[str, Any], where: str, option: str
) -> None:
    changes = {"derived": None} | changes if "axes" in changes else changes
    with pytest.raises(ConfigurationError) as error:
        plan_study(read_study_file(save_study(tmp_path, **changes)))
    assert where in str(error.value)
    assert option in str(error.value)


@pytest.mark.parametrize(
    "derived",
    [
        {"data.r": "2 * r", "model.lora.lora_alpha": "2 * r"},
        {"model.lora.lora_alpha": "2 * r", "data.lora_alpha": "lora_alpha"},
    ],
)
def test_expressions_must_be_able_to_tell_names_apart(derived: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"both end in '(r|lora_alpha)', so that an expression with"):
        plan(tmp_path, derived=derived)


def test_values_of_one_axis_may_set_the_same_options(tmp_path: Path) -> None:
    methods = {"full": {"model.lora": None}, "small": {"model.lora.r": 1}, "large": {"model.lora.r": 4}}
    path = save_study(tmp_path, axes={"method": methods}, derived=None, reference="full")
    assert len(plan_study(read_study_file(path)).configurations) == 3


def test_further_seeds_of_a_configuration_come_last(tmp_path: Path) -> None:
    found = plan(tmp_path, axes={"model.lora.r": [2, 4]}, seeds=[0], further_seeds={"r = 4": [5, 7]})
    assert [(trial.configuration, trial.seed) for trial in found.trials] == [
        ("r = 2", 0),
        ("r = 4", 0),
        ("r = 4", 5),
        ("r = 4", 7),
    ]
    assert (found.size, found.runs_of("r = 2"), found.runs_of("r = 4")) == (4, 1, 3)
    rates = {"values": [1e-3, 1e-2], "seeds": [9]}
    chosen = plan(tmp_path, axes={"model.lora.r": [2, 4]}, seeds=[0], further_seeds={"r = 4": [5]}, learning_rate=rates)
    assert (len(chosen.trials), chosen.size) == (4, 7)
    tested = chosen.with_rates({"r = 2": 1e-3, "r = 4": 1e-2}).tested
    assert [(trial.configuration, trial.seed) for trial in tested] == [("r = 2", 0), ("r = 4", 0), ("r = 4", 5)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"further_seeds": {"r = 3": [5]}}, "further_seeds names 'r = 3', which is no configuration"),
        ({"further_seeds": {"r = 4": [1]}}, "the seed 1 is in seeds and in further_seeds of r = 4"),
        ({"further_seeds": {"r = 4": []}}, "further_seeds of r = 4 is \\[\\], but a list of integers is needed"),
        ({"further_seeds": [1]}, "further_seeds is \\[1\\], but lists of seeds by configuration are needed"),
        (
            {"further_seeds": {"r = 4": [9]}, "learning_rate": {"values": [1e-3], "seeds": [9]}},
            "the seed 9 is tested and in learning_rate.seeds",
        ),
    ],
)
def test_wrong_further_seeds_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        plan(tmp_path, **changes)
