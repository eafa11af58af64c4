"""Studies from Python: the same verdicts and files as the command, and errors before anything is trained."""

from html import unescape
from pathlib import Path

import pytest
import yaml

from lora_lightning.cli.main import main
from lora_lightning.errors import ConfigurationError
from lora_lightning.runs.record import RunRecord
from lora_lightning.statistics import Verdict
from lora_lightning.studies import run_study
from tests.studies.small_study import STUDY, save_study

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


def test_settings_keep_their_types(tmp_path: Path) -> None:
    settings = {"model.optimization.learning_rate": 1e-05, "trainer.limit_train_batches": 2}
    settings |= {"trainer.gradient_clip_val": None}
    found = run_study({**TWO, "seeds": [0]}, settings, save_dir=tmp_path)
    config = yaml.safe_load(next(found.table.parent.rglob("config.yaml")).read_text())
    assert config["model"]["init_args"]["optimization"]["learning_rate"] == 1e-05
    assert config["trainer"]["limit_train_batches"] == 2
    assert config["trainer"]["gradient_clip_val"] is None


def test_a_mapping_needs_a_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the study has no name"):
        run_study({key: value for key, value in TWO.items() if key != "name"}, save_dir=tmp_path)
    with pytest.raises(ConfigurationError, match=r"learning_rat.*did you mean"):
        run_study({**TWO, "learning_rat": 1}, save_dir=tmp_path)
    assert not list(tmp_path.iterdir())
