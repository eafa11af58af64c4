"""What is shown of running trials."""

import json
import math
from pathlib import Path

import pytest
from rich.console import Console

from lora_lightning.cli.study_progress import StudyProgress
from lora_lightning.studies.journal import StudyJournal, TrialStatus
from lora_lightning.studies.open_study import OpenStudy
from lora_lightning.studies.plan import plan_study
from lora_lightning.studies.study_file import read_study_file
from lora_lightning.studies.study_folder import StudyFolder
from lora_lightning.studies.trial_progress import Progress, TrialProgress, estimate_seconds_left, read_progress
from lora_lightning.training.api import train
from tests.studies.small_study import BASE, save_study

HALF = Progress("training", step=50, steps=100, first_step=0, seconds=20.0)


@pytest.fixture
def study(tmp_path: Path) -> OpenStudy:
    """Six trials, none of which has begun."""
    plan = plan_study(read_study_file(save_study(tmp_path)))
    folder = StudyFolder(tmp_path / "small")
    with folder.locked():
        folder.save(plan, "test/loss", "val/loss")
        journal = StudyJournal(folder, folder.path.name)
        journal.add_trials(plan.trials)
    return OpenStudy(plan, folder, journal, "test/loss", "val/loss")


def test_time_left_counts_from_where_this_worker_began() -> None:
    resumed = Progress("training", step=75, steps=100, first_step=50, seconds=10.0)
    assert (resumed.complete_seconds, resumed.seconds_left) == (40.0, 10.0)
    assert math.isnan(Progress("training", 0, 100, 0, 0.1).seconds_left)
    assert math.isnan(Progress("training", 7, 0, 0, 9.0).seconds_left)  # no last step


def test_workers_share_what_is_left() -> None:
    states = {"a": "finished", "b": "running", "c": "running", "d": "failed"}
    statuses = {name: TrialStatus(state) for name, state in states.items()}  # type: ignore[arg-type]
    assert estimate_seconds_left(6, statuses, {"b": HALF}, []) == (2 * 40 + 20 + 40) / 2
    assert estimate_seconds_left(6, statuses, {"b": HALF}, [10.0]) == (2 * 10 + 20 + 10) / 2
    assert math.isnan(estimate_seconds_left(6, statuses, {}, []))
    assert estimate_seconds_left(2, {"a": statuses["a"], "d": statuses["d"]}, {}, [10.0]) == 0


def test_a_run_writes_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lora_lightning.studies.trial_progress.INTERVAL", 0.0)
    seen: list[Progress] = []

    class Recorded(TrialProgress):
        def _write(self, *given: object) -> None:
            super()._write(*given)  # type: ignore[arg-type]
            seen.append(Progress(**json.loads(self.path.read_text())))

    train(BASE, callbacks=[Recorded(tmp_path / "progress.json")])  # 2 epochs of 4 steps
    assert [found.step for found in seen] == [*range(9), 8]
    assert {found.steps for found in seen} == {8}
    assert [found.phase for found in seen] == ["training"] * 9 + ["testing"]


def test_all_running_trials_are_drawn(study: OpenStudy) -> None:
    first, second = (study.journal.claim_next(study.plan.trials) for _ in range(2))
    assert first is not None
    assert second is not None
    study.folder.progress(first.trial).write_text(json.dumps(HALF.__dict__))
    study.folder.progress(second.trial).write_text("half a li")  # killed while it wrote
    console = Console(width=100, record=True, force_terminal=True)
    console.print(StudyProgress(study).draw())
    lines = [line.split() for line in console.export_text().splitlines()]
    assert (lines[0][0], lines[0][-7:]) == ("trials", ["0", "of", "6;", "about", "2", "min", "left"][-7:])
    assert (lines[1][:5], lines[1][-4:]) == (["r", "=", "1,", "seed", "0"], ["step", "50", "of", "100"])
    assert (lines[2][:5], lines[2][-1]) == (["r", "=", "2,", "seed", "0"], "starting")
    assert read_progress(study.folder, second.trial) is None
    for claim in (first, second):
        claim.lock.release()
