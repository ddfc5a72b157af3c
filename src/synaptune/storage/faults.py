"""Errors of a database or a disk, worded for the person who can mend them."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from synaptune.errors import NO_SPACE, REFUSED, UserError, mistake

_SQLITE_HEADER = b"SQLite format 3\0"
_OURS = (sqlite3.Error, OSError, RuntimeError, ImportError)
_KEPT = "every finished trial is kept; give the same command afterwards"


def sqlite_path(url: str) -> Path | None:
    """The file of a SQLite URL; null for another database or one in memory."""
    for prefix in ("sqlite:///", "sqlite+pysqlite:///"):
        if url.startswith(prefix) and len(url) > len(prefix):
            return Path(url.removeprefix(prefix))
    return None


def check_readable(path: Path) -> None:
    """Raise UserError when a study's file is there but is no SQLite database that can be read."""
    try:
        with path.open("rb") as file:
            header = file.read(len(_SQLITE_HEADER))
    except FileNotFoundError:
        return
    except IsADirectoryError:
        raise _broken(path, "a folder") from None
    except OSError as error:
        raise mistake(got=f"{path}: {error.strerror}", expected="a study database that can be read", do="check its permissions") from error
    if header and header != _SQLITE_HEADER:
        raise _broken(path, "not a SQLite database")


@contextlib.contextmanager
def worded(url: str) -> Iterator[None]:
    """Turn the errors of a database, and of a full disk, into UserErrors."""
    import optuna
    import sqlalchemy.exc

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
        known = _explained(error, url)
        if known is None:
            raise
        raise known from error


def _explained(error: BaseException, url: str) -> UserError | None:
    place = sqlite_path(url) or url
    text = " ".join(str(link) for link in _chain(error)).lower()
    if isinstance(error, OSError):
        if error.errno in NO_SPACE:
            return mistake(got=f"a full disk at {error.filename or place}", expected="space for the study", do=f"make room; {_KEPT}")
        if error.errno in REFUSED:
            return mistake(
                got=f"{error.filename or place}: {error.strerror}", expected="a folder that can be written", do="choose study.dir"
            )
        return None
    if "disk is full" in text or "disk i/o error" in text:
        return mistake(got=f"a full or failing disk at {place}", expected="space for the study", do=f"make room; {_KEPT}")
    if any(sign in text for sign in ("not a database", "malformed", "file is encrypted")):
        return _broken(place, "damaged")
    if "readonly" in text or "unable to open" in text or "permission denied" in text:
        return mistake(
            got=f"{place}, which cannot be written", expected="a study database with write permission", do="check its permissions"
        )
    if "locked" in text:
        return mistake(got=f"{place}, locked by another program", expected="a database to write to", do=f"close the other one; {_KEPT}")
    if "alembic" in text or "schema" in text or "runtime optuna version" in text:
        upgrade = f"optuna storage upgrade --storage {url}"
        return mistake(got=f"{place}, written by another version of Optuna", expected="the schema of the installed one", do=upgrade)
    if isinstance(error, RuntimeError) and not _of_database(error):
        return None
    first = str(error.__cause__ or error).strip().splitlines()[0]
    return mistake(got=f"{place}: {first}", expected="a database that can be reached", do="check study.storage")


def _of_database(error: BaseException) -> bool:
    return any(type(link).__module__.split(".")[0] in ("sqlalchemy", "optuna", "sqlite3", "psycopg", "alembic") for link in _chain(error))


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _broken(place: object, what: str) -> UserError:
    return mistake(
        got=f"{place}, which is {what}",
        expected="the study database of an earlier run, or no file",
        do="restore it from a copy, or move it away (or set study.name) to begin anew",
    )
