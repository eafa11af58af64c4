"""Where the trials of a study are recorded: a journal file in its folder, or a database that many machines reach."""

import re
import secrets
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.engine import URL, create_engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from lora_lightning.errors import ConfigurationError, TrainingError
from lora_lightning.runs.files import write_error, write_text_atomically
from lora_lightning.studies.journal_lock import JournalLock
from lora_lightning.studies.study_folder import StudyFolder

TOKEN = "token"  # noqa: S105  # an attribute of the study in a database, and a file in its folder
TIMEOUT = 10  # seconds to wait for a connection
DRIVERS = {"postgresql": "psycopg[binary]", "mysql": "pymysql", "mariadb": "pymysql"}  # what pip installs
WITH_TIMEOUT = {"psycopg", "psycopg2", "pymysql", "mysqldb"}  # others call the timeout of a connection otherwise
SECRET = re.compile(r"passw(or)?d|pwd|secret", re.IGNORECASE)  # in the name of a parameter; a `passfile` is none
USER_AND_PASSWORD = re.compile(r"(?<=://)[^@]*(?=@)")


class StorageFailed(TrainingError):  # noqa: N818  # no fault of a trial
    """The storage of a study did not answer, which says nothing about the trial that was running."""


def check_storage_url(url: str) -> None:
    """Checks a database's URL without connecting.

    Args:
        url: Such as `postgresql+psycopg://user@host/database`.

    Raises:
        ConfigurationError: If it is no URL, has a password, or names SQLite.
    """
    parsed = _parse(url)
    if parsed.password is not None or _secrets_in_query(parsed):
        msg = f"the storage {shown_url(url)} has a password, which everyone could read in the study's folder; leave it "
        msg += "out, and put it into ~/.pgpass or PGPASSWORD, or the like of your database"
        raise ConfigurationError(msg)


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:  # such as a port that is no number
        msg = f"the storage {shown_url(url)!r} is no URL of a database; write it as "
        msg += "postgresql+psycopg://USER@HOST/DATABASE, or leave storage out for a journal file in the study's folder"
        raise ConfigurationError(msg) from error
    if parsed.get_backend_name() == "sqlite":
        msg = f"the storage {shown_url(url)} is SQLite, which may give one waiting trial to two workers; leave storage "
        msg += "out for a journal file in the study's folder, or use PostgreSQL"
        raise ConfigurationError(msg)
    return parsed


def shown_url(url: str) -> str:
    """Returns a URL as messages may show it, without its passwords.

    Args:
        url: Of a database, also one that is wrong.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return USER_AND_PASSWORD.sub("***", url)
    hidden = dict.fromkeys(_secrets_in_query(parsed), "...")
    return parsed.update_query_dict(hidden).render_as_string(hide_password=True)


def is_same_storage(one: str | None, other: str | None) -> bool:
    """Whether two URLs are of one database, be it with a password that a former release took in the query.

    Args:
        one: A URL; `None` for the journal file.
        other: Another one.
    """
    if one is None or other is None:
        return one is other
    first, second = (make_url(url).difference_update_query(_secrets_in_query(make_url(url))) for url in (one, other))
    return first == second


def _secrets_in_query(url: URL) -> list[str]:
    """The parameters behind the `?` that hold a password, which drivers take there, too."""
    values = {name: " ".join([value] if isinstance(value, str) else value) for name, value in url.query.items()}
    return [
        name
        for name, value in values.items()
        if SECRET.search(name) or (name == "odbc_connect" and SECRET.search(value))
    ]


def open_storage(folder: StudyFolder, url: str | None, *, writes: bool = True) -> BaseStorage:
    """Opens the storage of a study.

    Args:
        folder: The study's folder, which exists.
        url: Of a database; `None` for the journal file.
        writes: Whether to repair the journal; otherwise it is only read, as in a folder of somebody else.

    Returns:
        The storage.

    Raises:
        ConfigurationError: If the database does not answer, or its driver is missing.
        TrainingError: If the journal is damaged, or cannot be written.
    """
    if url is not None:
        return _open_database(url)
    try:
        lock = JournalLock(folder.journal)
        if writes:
            lock.acquire()  # cuts an incomplete line, to which nothing may be appended
            lock.release()
        return JournalStorage(JournalFileBackend(str(folder.journal), lock_obj=lock))
    except ValueError as error:
        msg = f"the journal {folder.journal} is damaged ({error}); restore it, or give the study another name"
        raise TrainingError(msg) from error
    except OSError as error:
        raise write_error(folder.journal, error) from error


def check_storage_answers(url: str) -> None:
    """Connects to a database, and changes nothing there.

    Args:
        url: Of the database.

    Raises:
        ConfigurationError: If the database does not answer, or its driver is missing.
    """
    check_storage_url(url)
    with _database_errors(url):
        engine = create_engine(url, **_timeout(url))
        engine.connect().close()
        engine.dispose()


def _open_database(url: str) -> BaseStorage:
    _parse(url)  # a study of a former release may have a password
    with _database_errors(url):
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True, **_timeout(url)})


def _timeout(url: str) -> dict[str, Any]:
    has_timeout = make_url(url).get_driver_name() in WITH_TIMEOUT
    return {"connect_args": {"connect_timeout": TIMEOUT}} if has_timeout else {}


@contextmanager
def _database_errors(url: str) -> Iterator[None]:
    """Replaces what is wrong with a database, or its URL, by a sentence."""
    try:
        yield
    except ImportError as error:
        msg = f"the storage {shown_url(url)} needs a driver that is not installed ({error}); run pip install "
        backend = make_url(url).get_backend_name()
        msg += f"'{DRIVERS.get(backend, backend)}'"
        raise ConfigurationError(msg) from error
    except (SQLAlchemyError, StorageInternalError, TypeError, ValueError) as error:  # or a parameter is unknown
        msg = f"the storage {shown_url(url)} does not answer ({_reason(error)}); start the database, correct the URL, "
        msg += "or leave storage out for a journal file in the study's folder"
        raise ConfigurationError(msg) from error


def check_shared_folder(study: optuna.Study, folder: StudyFolder, url: str) -> None:
    """Checks that all workers of a study in a database share its folder, by a token in both.

    Args:
        study: The study in the database.
        folder: The folder of this worker.
        url: Of the database, for messages.

    Raises:
        ConfigurationError: If the study was started with another folder.
    """
    token = read_token(folder)
    with storage_errors(folder):
        if TOKEN not in study.user_attrs:
            study.set_user_attr(TOKEN, token)
        if study.user_attrs[TOKEN] != token:
            msg = f"the storage has a study {study.study_name!r} whose workers use another folder than {folder.path}, "
            msg += "but all workers must share one; use the same folder on a shared file system, give the study "
            msg += "another name, or remove the former one with "
            msg += f"`optuna delete-study --study-name {study.study_name} --storage {shlex.quote(url)}`"
            raise ConfigurationError(msg)


def read_token(folder: StudyFolder) -> str:
    """Reads the token of a study's folder, which is made if there is none. To be called while the folder is locked."""
    path = folder.path / f".{TOKEN}"
    try:
        if not path.is_file():
            write_text_atomically(path, secrets.token_hex(16))
        return path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise write_error(path, error) from error


@contextmanager
def storage_errors(folder: StudyFolder) -> Iterator[None]:
    """Replaces errors of the system, or of a database, by a sentence."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(str(write_error(folder.journal, error))) from error
    except (SQLAlchemyError, StorageInternalError) as error:
        msg = f"the storage of the study {folder.path} does not answer any more ({_reason(error)}); what was saved is "
        msg += "intact, and the same command resumes"
        raise StorageFailed(msg) from error


def _reason(error: BaseException) -> str:
    """The first line of the innermost error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]
