"""Conversion of database and disk errors to UserError."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from synaptune.core.errors import NO_SPACE, NOT_WRITABLE, UserError, user_error
from synaptune.study.database.connection import (
    get_error_message,
    get_sqlite_path,
    is_transient,
    redact_url,
    walk_causes,
)

KEPT_HINT = "every finished trial is kept; give the same command afterwards"
_DRIVER_INSTALL = {
    "psycopg": "pip install 'synaptune[postgres]'",
    "pymysql": "pip install 'synaptune[mysql]'",
}


class DatabaseUnavailable(UserError):
    """A database does not answer, or another program locks it. The same call can succeed later.

    Attributes:
        cause: message of the database in one line.
    """

    def __init__(self, address: str, cause: str) -> None:
        error = user_error(
            got=f"{address}: {cause}",
            expected="a database that answers",
            do=f"start it, or check study.storage; {KEPT_HINT}",
        )
        super().__init__(str(error))
        self.cause = cause


def check_readable(path: Path) -> None:
    """Raise UserError if the file of a study exists but is a folder or cannot be read.

    The function never opens the file. Closing a second handle of the file would drop all locks that
    this process holds on it through SQLite (sqlite.org/howtocorrupt.html, section 2.2). The first
    query detects a file that is not a database.
    """
    if path.is_dir():
        raise _make_broken_error(path, "a folder")
    if path.exists() and not os.access(path, os.R_OK):
        raise user_error(
            got=f"{path}: cannot be read",
            expected="a study database that can be read",
            do="check its permissions",
        )


@contextlib.contextmanager
def as_user_errors(url: str) -> Iterator[None]:
    """Convert the errors of a database or a full disk to UserError.

    A transient error becomes DatabaseUnavailable. An invalid URL is refused before the context
    runs.
    """
    import optuna
    import sqlalchemy.exc

    try:
        sqlalchemy.make_url(url)
    # A port that is not a number raises ValueError.
    except (sqlalchemy.exc.ArgumentError, ValueError) as error:
        raise user_error(
            got=f"the database address {redact_url(url)}",
            expected="dialect://user@host:port/database",
            do="check study.storage",
        ) from error
    try:
        yield
    except (
        sqlalchemy.exc.SQLAlchemyError,
        optuna.exceptions.StorageInternalError,
        sqlite3.Error,
        OSError,
        RuntimeError,
        ImportError,
    ) as error:
        translated = _translate_error(error, url)
        if translated is None:
            raise
        raise translated from error


def _translate_error(error: BaseException, url: str) -> UserError | None:
    location = redact_url(url)
    if is_transient(error):
        return DatabaseUnavailable(location, get_error_message(error))
    text = " ".join(str(link) for link in walk_causes(error)).lower()
    if isinstance(error, ImportError):
        driver = next((name for name in _DRIVER_INSTALL if name in text), None)
        if driver is not None:
            return user_error(
                got=f"{location}, and no driver for it",
                expected=f"the driver {driver}",
                do=_DRIVER_INSTALL[driver],
            )
    if isinstance(error, OSError):
        if error.errno in NO_SPACE:
            return user_error(
                got=f"a full disk at {error.filename or location}",
                expected="space for the study",
                do=f"make room; {KEPT_HINT}",
            )
        if error.errno in NOT_WRITABLE:
            return user_error(
                got=f"{error.filename or location}: {error.strerror}",
                expected="a folder that can be written",
                do="choose study.dir",
            )
        return None
    if any(sign in text for sign in ("disk is full", "disk i/o error", "no space left")):
        return user_error(
            got=f"a full or failing disk at {location}",
            expected="space for the study",
            do=f"make room; {KEPT_HINT}",
        )
    if "not a database" in text or "file is encrypted" in text:
        return _make_broken_error(location, "not a SQLite database")
    if "no such table" in text:  # before the check for "schema", which the query can contain
        return _make_broken_error(location, "a database without studies")
    if "malformed" in text:
        return _make_broken_error(location, "damaged")
    if "readonly" in text or "unable to open" in text or "permission denied" in text:
        return user_error(
            got=f"{location}, which cannot be written",
            expected="a study database with write permission",
            do="check its permissions",
        )
    if "alembic" in text or "schema" in text or "runtime optuna version" in text:
        upgrade = "optuna storage upgrade --storage " + (url if get_sqlite_path(url) else location)
        return user_error(
            got=f"{location}, written by another version of Optuna",
            expected="the schema of the installed one",
            do=upgrade,
        )
    if isinstance(error, RuntimeError) and not _is_database_error(error):
        return None
    return user_error(
        got=f"{location}: {get_error_message(error)}",
        expected="a database that can be reached",
        do="check study.storage",
    )


def _is_database_error(error: BaseException) -> bool:
    return any(
        type(link).__module__.split(".")[0]
        in ("sqlalchemy", "optuna", "sqlite3", "psycopg", "alembic")
        for link in walk_causes(error)
    )


def _make_broken_error(location: object, what: str) -> UserError:
    return user_error(
        got=f"{location}, which is {what}",
        expected="the study database of an earlier run, or no file",
        do="restore it from a copy, or move it away (or set study.name) to start a new study",
    )
