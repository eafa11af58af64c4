"""Studies from Python: the same verdicts and files as the command, and errors before anything is trained."""

import json
import math
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from lora_lightning.cli.main import main
from lora_lightning.errors import ConfigurationError, TrialsFailed
from lora_lightning.runs.record import RunRecord
from lora_lightning.statistics import Verdict
from lora_lightning.studies import run_study
from lora_lightning.studies.api import _read
from lora_lightning.studies.study_folder import study_as_json
from tests.studies.small_study import BASE, STUDY, save_study

TWO = {**STUDY, "axes": {"model.lora.r": [2, 4]}}


@pytest.fixture(autouse=True)
def _without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training here, and is tested elsewhere."""
    monkeypatch.setattr("lora_lightning.reports.study_report.study_figures", lambda *_: [])


def test_a_study_from_python_is_that_of_the_command(tmp_path: Path) -> None:
    ended = []
    found = run_study(TWO, {"trainer.max_epochs": 1}, save_dir=tmp_path / "python", on_end=ended.append)
    path = save_study(tmp_path, axes=TWO["axes"])
    assert main(["study", "run", str(path), "--set=trainer.max_epochs=1", f"--save_dir={tmp_path / 'command'}"]) == 0
    other = tmp_path / "command" / "small"
    losses = {RunRecord.load(folder.parent).metrics["test"]["loss"] for folder in other.rglob("run.json")}
    assert {value for each in found.audit.results.configurations for value in each.values.values()} == losses
    assert len(ended) == len(losses) == 4
    assert found.audit.analysis.comparisons[0].verdict in set(Verdict)
    assert found.answer in unescape(found.page.read_text())
    assert len(found.table.read_text().splitlines()) == 5
    again = run_study(TWO, {"trainer.max_epochs": 1}, save_dir=tmp_path / "python", on_end=ended.append)
    assert len(ended) == 4
    assert again.answer == found.answer
    assert (found.recommended is None) == (not (other / "recommended.yaml").is_file())


def test_what_a_budget_leaves_out_is_no_success(tmp_path: Path) -> None:
    with pytest.raises(
        TrialsFailed, match=r"the budget of 1e-07 hours is spent, so that 3 of 4 runs .*; to train them, r"
    ):
        run_study({**TWO, "budget": 1e-7}, save_dir=tmp_path)
    assert "The budget of 1e-07 hours is spent" in unescape((tmp_path / "small/report/report.html").read_text())
    rates = {"learning_rate": {"values": [0.01, 0.02], "seeds": [5]}}
    with pytest.raises(TrialsFailed, match="budget of 1e-07 hours is spent"):
        run_study({**TWO, **rates, "name": "untested", "budget": 1e-7}, save_dir=tmp_path)


def test_a_report_does_not_replace_the_table_of_all_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_study({**TWO, "seeds": [0]}, save_dir=tmp_path)
    before = found.table.read_text()
    assert main(["study", "report", str(found.table.parent), f"--output={found.table.parent}"]) == 2
    assert f"the report would replace {found.table}" in capsys.readouterr().err
    assert found.table.read_text() == before


def test_a_study_may_have_another_name_base_and_objective(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(BASE | {"trainer": {"max_steps": 2, "accelerator": "cpu"}}))
    nowhere = {**TWO, "base": "nowhere.yaml", "seeds": [0], "objective": "accuracy", "margin": 5}
    given = _read(nowhere, [config], {}, "mine", "perplexity")
    assert (given.name, given.objective, given.margin) == ("mine", "perplexity", None)


@pytest.mark.parametrize("kind", [str, Path])
def test_a_base_may_be_one_path(kind: type, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(yaml.safe_dump(BASE | {"model": {"class_path": "NoTask"}}))
    with pytest.raises(ConfigurationError, match="NoTask"):
        run_study({**TWO, "base": "nowhere.yaml", "seeds": [0]}, base=kind(config), save_dir=tmp_path)


def test_settings_keep_their_types(tmp_path: Path) -> None:
    settings = {"model.optimization.learning_rate": 1e-05, "trainer.limit_train_batches": 2}
    settings |= {"trainer.gradient_clip_val": None}
    found = run_study({**TWO, "seeds": [0]}, settings, save_dir=tmp_path)
    config = yaml.safe_load(next(found.table.parent.rglob("config.yaml")).read_text())
    assert config["model"]["init_args"]["optimization"]["learning_rate"] == 1e-05
    assert config["trainer"]["limit_train_batches"] == 2
    assert config["trainer"]["gradient_clip_val"] is None


def test_what_is_given_in_python_reaches_the_runs_as_it_is(tmp_path: Path) -> None:
    settings = {"data.x": "\U0001f600", "data.y": "1e5", "data.z": math.inf, "data.p": Path("a/b"), "data.n": None}
    content = {**TWO, "options": {"data.q": Path("c"), "data.f": np.float64(0.5)}, "seeds": (0, 1)}
    study = _read(content, [], settings)
    assert study.options == {**settings, "data.p": "a/b", "data.q": "c", "data.f": 0.5}
    assert type(study.options["data.f"]) is float
    assert json.loads(json.dumps(study_as_json(study)))["options"] == study.options


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {1: 2}}, "options in the study has the name 1, but a text is needed"),
        ({1: 2}, "the study has the name 1, but a text is needed"),
        ({"axes": {"method": {1: {"data.x": 1}}}}, "method in axes in the study has the name 1"),
        ({"options": {"data.x": {"a"}}}, "data.x in options in the study is {'a'}, a set; give a text"),
        ({"options": {"data.x": np.int64(3)}}, r"data.x in .* is np.int64\(3\), a int64; give"),
    ],
)
def test_a_mapping_is_checked_like_a_file(changes: dict[Any, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        run_study({**TWO, **changes}, save_dir=tmp_path)
    endless: dict[str, Any] = {}
    endless["data.x"] = endless
    with pytest.raises(ConfigurationError, match="nested deeper than 30 levels"):
        run_study(TWO, endless, save_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_mapping_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the study has no name"):
        run_study({key: value for key, value in TWO.items() if key != "name"}, save_dir=tmp_path)
    with pytest.raises(ConfigurationError, match=r"learning_rat.*did you mean"):
        run_study({**TWO, "learning_rat": 1}, save_dir=tmp_path)
    assert not list(tmp_path.iterdir())
