"""Errors of a database or a disk, worded for the person who can mend them."""

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
_DRIVER_INSTALL = {"psycopg": "pip install 'synaptune[postgres]'", "pymysql": "pip install pymysql"}


class DatabaseUnavailable(UserError):
    """A database did not answer, or another program locks it: the same call may succeed later.

    cause: what it said, in one line.
    """

    def __init__(self, address: str, cause: str) -> None:
        wanted = user_error(
            got=f"{address}: {cause}",
            expected="a database that answers",
            do=f"start it, or check study.storage; {KEPT_HINT}",
        )
        super().__init__(str(wanted))
        self.cause = cause


def check_readable(path: Path) -> None:
    """Raise UserError when a study's file is there but is a folder, or cannot be read.

    It never opens the file: closing a second handle of it would drop every lock that this process holds on it through SQLite
    (sqlite.org/howtocorrupt.html, section 2.2). What is no database, the first query says.
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
    """Turn the errors of a database, and of a full disk, into UserErrors: Unanswered for those that pass by themselves.

    An address that cannot be read is refused before anything is asked of it.
    """
    import optuna
    import sqlalchemy.exc

    try:
        sqlalchemy.make_url(url)
    except (
        sqlalchemy.exc.ArgumentError,
        ValueError,
    ) as error:  # a port that is no number is a ValueError
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
        known = _translate_error(error, url)
        if known is None:
            raise
        raise known from error


def _translate_error(error: BaseException, url: str) -> UserError | None:
    place = redact_url(url)
    if is_transient(error):
        return DatabaseUnavailable(place, get_error_message(error))
    text = " ".join(str(link) for link in walk_causes(error)).lower()
    if isinstance(error, ImportError):
        driver = next((name for name in _DRIVER_INSTALL if name in text), None)
        if driver is not None:
            return user_error(
                got=f"{place}, and no driver for it",
                expected=f"{driver}, which speaks to it",
                do=_DRIVER_INSTALL[driver],
            )
    if isinstance(error, OSError):
        if error.errno in NO_SPACE:
            return user_error(
                got=f"a full disk at {error.filename or place}",
                expected="space for the study",
                do=f"make room; {KEPT_HINT}",
            )
        if error.errno in NOT_WRITABLE:
            return user_error(
                got=f"{error.filename or place}: {error.strerror}",
                expected="a folder that can be written",
                do="choose study.dir",
            )
        return None
    if any(sign in text for sign in ("disk is full", "disk i/o error", "no space left")):
        return user_error(
            got=f"a full or failing disk at {place}",
            expected="space for the study",
            do=f"make room; {KEPT_HINT}",
        )
    if "not a database" in text or "file is encrypted" in text:
        return _make_broken_error(place, "not a SQLite database")
    if "no such table" in text:  # before the schema, which the query names
        return _make_broken_error(place, "a database without studies")
    if "malformed" in text:
        return _make_broken_error(place, "damaged")
    if "readonly" in text or "unable to open" in text or "permission denied" in text:
        return user_error(
            got=f"{place}, which cannot be written",
            expected="a study database with write permission",
            do="check its permissions",
        )
    if "alembic" in text or "schema" in text or "runtime optuna version" in text:
        upgrade = "optuna storage upgrade --storage " + (url if get_sqlite_path(url) else place)
        return user_error(
            got=f"{place}, written by another version of Optuna",
            expected="the schema of the installed one",
            do=upgrade,
        )
    if isinstance(error, RuntimeError) and not _is_database_error(error):
        return None
    return user_error(
        got=f"{place}: {get_error_message(error)}",
        expected="a database that can be reached",
        do="check study.storage",
    )


def _is_database_error(error: BaseException) -> bool:
    return any(
        type(link).__module__.split(".")[0]
        in ("sqlalchemy", "optuna", "sqlite3", "psycopg", "alembic")
        for link in walk_causes(error)
    )


def _make_broken_error(place: object, what: str) -> UserError:
    return user_error(
        got=f"{place}, which is {what}",
        expected="the study database of an earlier run, or no file",
        do="restore it from a copy, or move it away (or set study.name) to begin anew",
    )
