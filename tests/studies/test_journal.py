"""The journal of a study: no trial is lost, none has two workers, and a killed worker leaves nothing behind."""

import errno
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lora_lightning.errors import TrainingError
from lora_lightning.studies.journal import StudyJournal
from lora_lightning.studies.journal_lock import JournalLock, cut_incomplete_line
from lora_lightning.studies.plan import StudyPlan, plan_study
from lora_lightning.studies.study_file import read_study_file
from lora_lightning.studies.study_folder import StudyFolder
from tests.studies.small_study import save_study


@pytest.fixture
def plan(tmp_path: Path) -> StudyPlan:
    return plan_study(read_study_file(save_study(tmp_path)))


@pytest.fixture
def folder(plan: StudyPlan, tmp_path: Path) -> StudyFolder:
    """A folder whose journal has the trials."""
    folder = StudyFolder(tmp_path / "studies" / "small")
    with folder.locked():
        StudyJournal(folder, folder.path.name).add_trials(plan.trials)
    return folder


def states(folder: StudyFolder, plan: StudyPlan) -> list[str]:
    found = StudyJournal(folder, folder.path.name).statuses(plan.trials)
    return [found[trial.id].state for trial in plan.trials]


def test_trials_are_added_once(folder: StudyFolder, plan: StudyPlan) -> None:
    with folder.locked():
        StudyJournal(folder, folder.path.name).add_trials(plan.trials)
    assert states(folder, plan) == ["waiting"] * 6
    assert folder.journal.read_text().count('"id"') == 6


def test_a_journal_is_read_without_its_lock_and_without_a_line_of_its_own(
    folder: StudyFolder, plan: StudyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(lock: JournalLock) -> bool:
        raise OSError(errno.EROFS, "Read-only file system", str(folder.journal))

    monkeypatch.setattr(JournalLock, "acquire", refuse)
    with folder.journal.open("ab") as file:
        file.write(b'{"op_code": 4')  # of a worker that is writing, or was killed
    before = folder.journal.read_bytes()
    found = StudyJournal(folder, folder.path.name, create=False)
    assert [status.state for status in found.statuses(plan.trials).values()] == ["waiting"] * 6
    assert folder.journal.read_bytes() == before
    with pytest.raises(TrainingError, match=r"Read-only file system.*; what was .* repeat the command; fit resumes"):
        StudyJournal(folder, folder.path.name)
    folder.journal.unlink()
    with pytest.raises(TrainingError, match="the trials of the study small are gone from"):
        StudyJournal(folder, folder.path.name, create=False)
    assert not folder.journal.exists()


def test_the_end_of_a_trial_does_not_depend_on_the_time_zone_of_its_worker(
    folder: StudyFolder, plan: StudyPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = StudyJournal(folder, folder.path.name)
    claim = journal.claim_next(plan.trials)
    assert claim
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Pacific/Kiritimati")  # 14 hours ahead
        time.tzset()
        journal.finish(claim, 1.0)
    time.tzset()
    ended_at = StudyJournal(folder, folder.path.name).statuses(plan.trials)[claim.trial.id].ended_at
    assert ended_at == pytest.approx(time.time(), abs=60)


def test_two_workers_share_the_trials(folder: StudyFolder, plan: StudyPlan) -> None:
    workers = [StudyJournal(folder, folder.path.name), StudyJournal(folder, folder.path.name)]
    claims = [workers[number % 2].claim_next(plan.trials) for number in range(7)]
    assert [claim.trial.id if claim else None for claim in claims] == [*(trial.id for trial in plan.trials), None]
    assert states(folder, plan) == ["running"] * 6
    for number, claim in enumerate(claims[:6]):
        assert claim
        workers[number % 2].finish(claim, float(number))
    assert states(folder, plan) == ["finished"] * 6
    assert [status.value for status in workers[0].statuses(plan.trials).values()] == [0, 1, 2, 3, 4, 5]
    assert workers[1].claim_next(plan.trials) is None


def test_an_interrupted_trial_is_taken_over_first(folder: StudyFolder, plan: StudyPlan) -> None:
    journal = StudyJournal(folder, folder.path.name)
    claim = journal.claim_next(plan.trials)
    assert claim
    claim.lock.release()  # as the system does for a killed process
    assert states(folder, plan)[:2] == ["interrupted", "waiting"]
    other = StudyJournal(folder, folder.path.name)
    again = other.claim_next(plan.trials)
    assert again
    assert again.trial == claim.trial
    assert folder.journal.read_text().count('"id"') == 6
    other.finish(again, 1.0)
    assert states(folder, plan)[:2] == ["finished", "waiting"]


def test_a_failed_trial_says_why_and_is_repeated_only_if_asked(folder: StudyFolder, plan: StudyPlan) -> None:
    journal = StudyJournal(folder, folder.path.name)
    claim = journal.claim_next(plan.trials)
    assert claim
    journal.fail(claim, "the loss is NaN")
    status = journal.statuses(plan.trials)[claim.trial.id]
    assert (status.state, status.error) == ("failed", "the loss is NaN")
    following = journal.claim_next(plan.trials)
    assert following
    assert following.trial == plan.trials[1]
    with folder.locked():
        journal.add_again(plan.trials)
        journal.add_again(plan.trials)  # it is waiting now
    assert states(folder, plan)[:3] == ["waiting", "running", "waiting"]
    again = StudyJournal(folder, folder.path.name).claim_next(plan.trials)
    assert again
    assert again.trial == claim.trial
    assert folder.journal.read_text().count('"id"') == 7


WORKER = """
import os, signal, sys
from pathlib import Path
from lora_lightning.studies.journal import StudyJournal
from lora_lightning.studies.study_folder import StudyFolder, load_plan
folder = StudyFolder(Path(sys.argv[1]))
claim = StudyJournal(folder, folder.path.name).claim_next(load_plan(folder.path).trials)
with folder.journal.open("a") as journal:
    journal.write('{"op_code": 6, "worker_id": "x", "tri')
    journal.flush()
    print(claim.trial.id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_killed_while_it_wrote_loses_nothing(folder: StudyFolder, plan: StudyPlan) -> None:
    folder.save(plan, "test/loss", "val/loss")
    ended = subprocess.run(
        [sys.executable, "-c", WORKER, str(folder.path)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert ended.stdout.strip() == plan.trials[0].id
    assert not folder.journal.read_text().endswith("\n")
    assert states(folder, plan) == ["interrupted", *["waiting"] * 5]
    journal = StudyJournal(folder, folder.path.name)
    claim = journal.claim_next(plan.trials)
    assert claim
    assert claim.trial == plan.trials[0]
    journal.finish(claim, 1.0)
    assert states(folder, plan) == ["finished", *["waiting"] * 5]


def test_a_damaged_journal_is_a_sentence(folder: StudyFolder) -> None:
    lines = folder.journal.read_text().splitlines(keepends=True)
    folder.journal.write_text("".join([*lines[:2], "no JSON\n", *lines[2:]]))
    with pytest.raises(TrainingError, match=r"journal\.jsonl is damaged .*; restore it"):
        StudyJournal(folder, folder.path.name)


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"", b""), (b"a\nb\n", b"a\nb\n"), (b"a\nb", b"a\n"), (b"abc", b""), (b"a\n" + b"b" * 9000, b"a\n")],
)
def test_an_incomplete_line_is_cut(before: bytes, after: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(before)
    cut_incomplete_line(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == after
    cut_incomplete_line(tmp_path / "missing")


def test_the_time_of_workers_that_are_stopped_counts(folder: StudyFolder, plan: StudyPlan) -> None:
    journal = StudyJournal(folder, folder.path.name)
    for seconds in (10.0, 20.0):
        claim = journal.claim_next(plan.trials)
        assert claim is not None
        assert claim.trial == plan.trials[0]
        journal.stop(claim, seconds)
        claim.lock.release()
    assert journal.spent_seconds() == [30.0]
    assert journal.spent_seconds(only_complete=True) == []
    claim = journal.claim_next(plan.trials)
    assert claim is not None
    journal.finish(claim, 1.0, 5.0)
    assert journal.spent_seconds() == journal.spent_seconds(only_complete=True) == [35.0]
