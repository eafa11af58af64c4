"""Studies whose trials are in a database: real PostgreSQL, killed workers, folders that are not shared, refusals."""

import errno
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from study_kills import kill_workers, random_kills

from lora_lightning.cli.main import main
from lora_lightning.errors import ConfigurationError, TrainingError
from lora_lightning.studies.journal import StudyJournal
from lora_lightning.studies.open_study import open_study, start_study
from lora_lightning.studies.plan import StudyPlan, plan_study
from lora_lightning.studies.storage import (
    TIMEOUT,
    StorageFailed,
    _database_errors,
    _timeout,
    check_shared_folder,
    check_storage_url,
    storage_errors,
)
from lora_lightning.studies.study_file import read_study_file
from lora_lightning.studies.study_folder import StudyFolder
from lora_lightning.studies.trial_runs import CheckedStudy
from lora_lightning.studies.worker import is_no_fault_of_the_trial
from tests.studies.postgresql import Database, is_installed
from tests.studies.small_study import save_study

needs_postgresql = pytest.mark.skipif(not is_installed(), reason="PostgreSQL is not installed (Debian: postgresql)")


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    found = Database()
    yield found
    found.remove()


@pytest.fixture
def plan(tmp_path: Path) -> StudyPlan:
    return plan_study(read_study_file(save_study(tmp_path)))


def open_journal(path: Path, plan: StudyPlan, url: str) -> StudyJournal:
    folder = StudyFolder(path)
    with folder.locked():
        journal = StudyJournal(folder, folder.path.name, url)
        journal.add_trials(plan.trials)
    return journal


@needs_postgresql
def test_workers_share_trials_of_a_database(tmp_path: Path, plan: StudyPlan, database: Database) -> None:
    workers = [open_journal(tmp_path / "shared", plan, database.url) for _ in range(2)]
    claims = [workers[number % 2].claim_next(plan.trials) for number in range(7)]
    assert [claim.trial.id if claim else None for claim in claims] == [*(trial.id for trial in plan.trials), None]
    for number, claim in enumerate(claims[:6]):
        assert claim
        if number:
            workers[number % 2].finish(claim, float(number), 2.0)
        else:
            workers[0].fail(claim, "the loss is NaN", 1.0)
    statuses = workers[1].statuses(plan.trials)
    assert [status.state for status in statuses.values()] == ["failed"] + ["finished"] * 5
    assert [status.value for status in statuses.values()] == [None, 1, 2, 3, 4, 5]
    assert statuses[plan.trials[0].id].error == "the loss is NaN"
    assert sum(workers[0].spent_seconds()) == 11
    assert not (tmp_path / "shared/journal.jsonl").exists()


@needs_postgresql
def test_workers_that_do_not_share_the_folder_are_refused(tmp_path: Path, plan: StudyPlan, database: Database) -> None:
    open_journal(tmp_path / "here/token", plan, database.url)
    open_journal(tmp_path / "here/token", plan, database.url)
    with pytest.raises(
        ConfigurationError, match=r"whose workers use another folder than .*there/token, but all workers"
    ):
        open_journal(tmp_path / "there/token", plan, database.url)
    shutil.copytree(tmp_path / "here", tmp_path / "there", dirs_exist_ok=True)  # as on a shared file system
    open_journal(tmp_path / "there/token", plan, database.url)


def test_the_remedy_for_another_folder_is_a_complete_command(tmp_path: Path) -> None:
    study, url = optuna.create_study(study_name="ranks"), "postgresql+psycopg://me@host/study?a=1&b=2"
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    check_shared_folder(study, StudyFolder(tmp_path / "here"), url)
    with pytest.raises(ConfigurationError) as caught:
        check_shared_folder(study, StudyFolder(tmp_path / "there"), url)
    assert str(caught.value).endswith(f"`optuna delete-study --study-name ranks --storage '{url}'`")


@needs_postgresql
def test_a_database_that_stops_answering_is_no_fault_of_the_trial(tmp_path: Path, plan: StudyPlan) -> None:
    database = Database()
    try:
        journal = open_journal(tmp_path / "stopping", plan, database.url)
        claim = journal.claim_next(plan.trials)
        assert claim
        database.stop()
        with pytest.raises(StorageFailed, match=r"does not answer any more .*; what was saved is intact, and the same"):
            journal.fail(claim, "something")
        claim.lock.release()
        database.start()
        again = journal.claim_next(plan.trials)
        assert again
        assert again.trial == claim.trial
    finally:
        database.remove()


@needs_postgresql
def test_three_killed_workers_of_a_database_run_each_trial_once(tmp_path: Path, database: Database) -> None:
    kills = random_kills(3, 3, random.Random(0))  # noqa: S311
    found = kill_workers(tmp_path, 3, kills, seeds=[0, 1], ranks=[2, 4], storage=database.url)
    assert found["wrong"] == []
    assert found["kills"] == 3
    assert found["resumptions"] > 0


def test_a_storage_that_does_not_answer_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_study(tmp_path, storage="postgresql+psycopg://study@127.0.0.1:1/study")
    assert main(["study", "run", str(path), f"--save_dir={tmp_path / 'studies'}"]) == 2
    said = capsys.readouterr().err
    assert "the storage postgresql+psycopg://study@127.0.0.1:1/study does not answer (connection " in said
    assert "start the database, correct the URL, or leave storage out" in said
    assert len(said.splitlines()) == 1
    assert main(["study", "run", str(path), "--dry-run", f"--save_dir={tmp_path / 'studies'}"]) == 2
    assert "does not answer" in capsys.readouterr().err
    assert not (tmp_path / "studies").exists()


def test_a_wrong_storage_can_be_corrected(tmp_path: Path, plan: StudyPlan) -> None:
    folder, checked = StudyFolder(tmp_path / "study"), CheckedStudy("test/loss", "val/loss", "r = 4", 1, 1, "rows")
    wrong = plan_study(read_study_file(save_study(tmp_path, storage="postgresql+psycopg://study@127.0.0.1:1/study")))
    with pytest.raises(ConfigurationError, match="does not answer"):
        start_study(wrong, folder, checked)
    assert len(start_study(plan, folder, checked).statuses()) == 6


def test_an_error_of_the_journal_file_is_no_fault_of_the_trial(tmp_path: Path) -> None:
    with pytest.raises(StorageFailed, match="No locks available") as caught, storage_errors(StudyFolder(tmp_path)):
        raise OSError(errno.ENOLCK, "No locks available")
    assert is_no_fault_of_the_trial(caught.value)
    outer = TrainingError("a callback failed")
    outer.__cause__ = caught.value
    assert is_no_fault_of_the_trial(outer)
    assert is_no_fault_of_the_trial(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_no_fault_of_the_trial(OSError(errno.ENOENT, "No such file or directory"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:///study.db", "is SQLite, which may give one waiting trial to two workers"),
        ("sqlite+pysqlite:///study.db", "is SQLite"),
        ("study.db", "'study.db' is no URL of a database"),
        ("postgresql://me:secret@host/study", r"the storage postgresql://me:\*\*\*@host/study has a password"),
        ("postgresql://me@host/study?password=secret", r"@host/study\?password=\.\.\. has a password"),
        ("mysql+pymysql://me@host/study?passwd=secret&charset=utf8", "has a password"),
        ("postgresql://me@host/study?sslpassword=secret", "has a password"),
        ("mssql+pyodbc:///?odbc_connect=Server%3Dx%3BPWD%3Dsecret", "has a password"),
        ("sqlite:///study.db?password=secret", "is SQLite"),
        ("postgresql://me@host:abc/study", r"'postgresql://\*\*\*@host:abc/study' is no URL of a database"),
        ("postgresql://me:secret@host:abc/study", "is no URL of a database"),
    ],
)
def test_urls_that_are_refused(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_study_file(save_study(tmp_path, storage=url))
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError):
        check_storage_url(url)


def test_urls_without_a_password_are_taken() -> None:
    for query in ("", "?passfile=/home/me/.pgpass", "?sslmode=require&sslrootcert=/etc/secrets/ca.pem"):
        check_storage_url(f"postgresql+psycopg://me@host/study{query}")


def test_only_drivers_that_know_it_get_a_timeout() -> None:
    assert _timeout("postgresql+psycopg://host/study") == {"connect_args": {"connect_timeout": TIMEOUT}}
    assert _timeout("mysql+pymysql://host/study") != {}
    assert _timeout("postgresql+pg8000://host/study") == _timeout("postgresql+asyncpg://host/study") == {}


@pytest.mark.parametrize("error", [TypeError("connect() got an unexpected keyword argument 'x'"), ValueError("no")])
def test_a_parameter_that_a_driver_does_not_know_is_a_sentence(error: Exception) -> None:
    with pytest.raises(ConfigurationError, match="correct the URL"), _database_errors("mysql://host/study?x=1"):
        raise error


def test_an_unknown_database_or_a_missing_driver_is_a_sentence(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    with folder.locked():
        for url in ("nodatabase://host/study", "mysql+oursql://host/study"):
            with pytest.raises(ConfigurationError, match=r"the storage .*://host/study "):
                StudyJournal(folder, folder.path.name, url)


def test_another_storage_is_refused(tmp_path: Path, plan: StudyPlan) -> None:
    folder = StudyFolder(tmp_path / "study")
    with folder.locked():
        folder.save(plan, "test/loss", "val/loss")
    other = plan_study(read_study_file(save_study(tmp_path, storage="postgresql+psycopg://study@host/study")))
    with pytest.raises(ConfigurationError, match="in its journal file, and not in postgresql"):
        folder.check(other)


def test_a_study_of_a_former_release_goes_on_without_its_password(tmp_path: Path, plan: StudyPlan) -> None:
    folder = StudyFolder(tmp_path / "study")
    url = "postgresql+psycopg://study@localhost:1/study"
    with folder.locked():
        folder.save(replace(plan, study=replace(plan.study, storage=f"{url}?password=secret")), "test/loss", "val/loss")
    with pytest.raises(ConfigurationError, match=r"password=\.\.\. (does not answer|needs a driver)") as caught:
        open_study(folder.path)
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"in .*password=\.\.\., and not in its journal file"):
        folder.check(plan)
    with folder.locked():
        folder.save(replace(plan, study=replace(plan.study, storage=url)), "test/loss", "val/loss")
    assert "secret" not in (folder.path / "study.json").read_text()
