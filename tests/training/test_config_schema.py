"""The schema file describes today's options: those that the parser has, no more and no less."""

import io
import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from lora_lightning.configuration.schema_file import SCHEMA_FILE, all_options, class_names, option_names
from lora_lightning.runs.settings import flatten
from lora_lightning.training.commands import prepare_command
from tests.test_configs import CONFIGS, OF_FIT

FOLLOWERS = {"data.backbone", "early_stopping.monitor", "early_stopping.mode"}  # set by other options
WITHOUT_OPTIONS = {"model.class_path", "data.class_path", "trainer.logger", "trainer.callbacks"}


SCHEMA = json.loads(SCHEMA_FILE.read_text())


def problems(config: Any) -> list[str]:
    errors = [*Draft202012Validator(SCHEMA).iter_errors(config)]
    for error in errors:
        errors += error.context or []  # of each form that an option may have
    return [f"{error.json_path}: {error.message}" for error in errors]


def test_it_is_a_schema() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", OF_FIT, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_names_the_schema_and_follows_it(path: Path) -> None:
    (target,) = re.findall(r"^# yaml-language-server: \$schema=(.*)$", path.read_text(), re.MULTILINE)
    assert (path.parent / target).resolve() == SCHEMA_FILE
    assert problems(yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("model.init_args.lora.rank", 4, "'rank' was unexpected"),
        ("model.init_args.lora.r", "four", "'four'"),
        ("model.init_args.optimization.schedule", "cosin", "'cosin' is not one of"),
        ("data.init_args.batch_sizes", 4, "'batch_sizes' was unexpected"),
        ("trainer.max_epoch", 4, "'max_epoch' does not match any of the regexes"),
        ("trainer.callbacks", [{"class_path": "AdapterNormMonitor", "init_args": {"every": 1}}], "is not valid"),
        ("optimizer", {}, "'optimizer' was unexpected"),
    ],
)
def test_an_editor_shows_a_mistake(option: str, value: Any, problem: str) -> None:
    config = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())
    *groups, last = option.split(".")
    holder = config
    for group in groups:
        holder = holder[group]
    holder[last] = value
    assert any(problem in found for found in problems(config)), problems(config)


def test_a_class_of_ones_own_is_allowed() -> None:
    own = {"class_path": "my_module.MyClass", "init_args": {"anything": 1}}
    config = {"model": own, "data": own, "trainer": {"callbacks": own, "logger": own, "callbacks+": [own]}}
    assert problems(config) == []


def leaves(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}".removeprefix(".")
        if isinstance(value, dict) and name not in WITHOUT_OPTIONS and value:
            yield from leaves(value, name)
        else:
            yield name


@pytest.mark.parametrize(("model", "data"), [("SequenceClassificationTask", "TextClassificationDataModule")])
def test_the_options_are_those_of_the_parser(model: str, data: str) -> None:
    words = [f"--model={model}", "--model.backbone=x", "--model.quantization.bits=4", f"--data={data}"]
    words += ["--model.lora.adalora.init_r=12", "--model.lora.eva_config.rho=2"]
    with redirect_stdout(io.StringIO()) as printed, pytest.raises(SystemExit):
        prepare_command("fit", [*words, "--print_config"])
    config = yaml.safe_load(printed.getvalue())
    assert problems(config) == []
    parsed = {*leaves(config)} - FOLLOWERS - {"model.class_path", "data.class_path"}
    assert parsed <= option_names()
    mine = [option for option in all_options() if option.owner in {"", model, data}]
    groups = {option.name.rpartition(".")[0] for option in mine}
    described = {option.name for option in mine} - groups
    internal = {name for name in described if name.startswith("model.label_space.")}
    assert described - internal - parsed == {"trainer.callbacks+"}, described - parsed
    given = {name.replace(".init_args", ""): value for name, value in flatten(config).items()}
    shown = {option.name: option.default for option in mine if option.default and option.name in given}
    set_here = {"model.quantization.bits", "model.lora.eva_config.rho", "model.lora.adalora.init_r"}
    written = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    wrong = {name: (text, written[name]) for name, text in shown.items() if text != written[name]}
    assert not {name: value for name, value in wrong.items() if name not in set_here}


def test_classes_are_those_that_a_config_may_name() -> None:
    assert set(class_names("data")) >= {"TextClassificationDataModule", "InstructionDataModule"}
    assert "TextDataModule" not in class_names("data")
    assert "AdaptationTask" not in class_names("model")
    assert "RankUtilizationMonitor" in class_names("trainer.callbacks")
