"""The errors of a study: those of its database and disk, and of another configuration."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from synaptune.core.errors import UserError, explain_disk_error, user_error
from synaptune.core.text import show_path
from synaptune.search.space.values import Value, is_same
from synaptune.study.database.connection import (
    get_error_message,
    get_sqlite_path,
    is_transient,
    redact_url,
    walk_causes,
)

_MAX_SHOWN_DIFFERENCES = 20
KEPT_HINT = "every finished trial is kept; give the same command afterwards"
_DRIVER_INSTALL = {
    "psycopg": "pip install 'synaptune[postgres]'",
    "pymysql": "pip install 'synaptune[mysql]'",
}
_EXPECTED_FILE = (
    "the study database of an earlier run, or no file",
    "restore it from a copy, or move it away (or set study.name) to start a new study",
)
# Phrases in the messages of an error; then what was got, what was expected and what to do. The
# first entry with a phrase that occurs is used.
_ERRORS = (
    (
        ("disk is full", "disk i/o error", "no space left"),
        "a full or failing disk at {location}",
        "space for the study",
        f"make room; {KEPT_HINT}",
    ),
    (
        ("not a database", "file is encrypted"),
        "{location}, which is not a SQLite database",
        *_EXPECTED_FILE,
    ),
    # The query in this message can contain "schema", a phrase of the last entry.
    (("no such table",), "{location}, which is a database without studies", *_EXPECTED_FILE),
    (("malformed",), "{location}, which is damaged", *_EXPECTED_FILE),
    (
        ("readonly", "unable to open", "permission denied"),
        "{location}, which cannot be written",
        "a study database with write permission",
        "check its permissions, or work on a copy of its folder",
    ),
    (
        ("alembic", "schema", "runtime optuna version"),
        "{location}, written by another version of Optuna",
        "the schema of the installed one",
        "optuna storage upgrade --storage {url}",
    ),
)


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


def check_kept(url: str) -> None:
    """Check that the file of an open database is still there: SQLite writes on without it.

    Raises:
        UserError: the file was removed or moved.
    """
    path = get_sqlite_path(url)
    with contextlib.suppress(OSError):  # the file system does not answer
        if path is not None and not path.exists():
            raise user_error(
                got=f"no {show_path(path)}, which was removed or moved while the study was running",
                expected="the file until the end, because it holds all trials",
                do="move it back, or start the study again; nothing was stored after that",
            )


def check_readable(path: Path) -> None:
    """Raise UserError if the file of a study exists but is a folder or cannot be read.

    The function never opens the file. Closing a second handle of the file would drop all locks that
    this process holds on it through SQLite (sqlite.org/howtocorrupt.html, section 2.2). The first
    query detects a file that is not a database.
    """
    if path.is_dir():
        expected, remedy = _EXPECTED_FILE
        raise user_error(got=f"{path}, which is a folder", expected=expected, do=remedy)
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
            expected="dialect://user@host:port/database, or sqlite:///FILE",
            do="correct study.storage (storage= in Python)",
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
    """Return the UserError for an error; None if neither the database nor the disk caused it."""
    import optuna

    location = redact_url(url)
    if is_transient(error):
        return DatabaseUnavailable(location, get_error_message(error))
    text = " ".join(str(cause) for cause in walk_causes(error)).lower()
    if isinstance(error, ImportError):
        for driver, command in _DRIVER_INSTALL.items():
            if driver in text:
                return user_error(
                    got=f"{location}, and no driver for it",
                    expected=f"the driver {driver}",
                    do=command,
                )
    if isinstance(error, OSError):
        return explain_disk_error(error, f"make room, or choose study.dir; {KEPT_HINT}")
    for phrases, got, expected, remedy in _ERRORS:
        if any(phrase in text for phrase in phrases):
            return user_error(
                got=got.format(location=location),
                expected=expected,
                do=remedy.format(url=url if get_sqlite_path(url) else location),
            )
    if isinstance(error, RuntimeError) and not isinstance(error, optuna.exceptions.OptunaError):
        return None
    return user_error(
        got=f"{location}: {get_error_message(error)}",
        expected="a database that can be reached",
        do="check study.storage",
    )


def make_configuration_error(
    name: str, *, stored: Mapping[str, Any], current: Mapping[str, Any], writer: str
) -> UserError:
    """Return the error for a study that has another configuration than the command.

    Args:
        name: name of the study.
        stored: configuration of the study.
        current: configuration of the command.
        writer: version that created the study.
    """
    absent = "(absent)"
    keys = [
        key
        for key in sorted({*stored, *current})
        if not is_same(stored.get(key, absent), current.get(key, absent))
    ]
    lines = [
        "{}: the study has {}, this command {}".format(
            key, *_show_difference(stored.get(key, absent), current.get(key, absent))
        )
        for key in keys[:_MAX_SHOWN_DIFFERENCES]
    ]
    if len(keys) > _MAX_SHOWN_DIFFERENCES:
        lines.append(f"and {len(keys) - _MAX_SHOWN_DIFFERENCES} more")
    return UserError(
        f"got study {name} with another configuration, "
        f"created by synaptune {writer}; {len(keys)} differ\n  "
        + "\n  ".join(lines)
        + "\n  expected: the configuration of the study"
        + "\n  to do: restore these values, set another study.name, "
        + "or continue the study with the version that created it"
    )


def _show_difference(stored: Value, current: Value) -> tuple[str, str]:
    """Return two different values as texts that differ: 1 and '1' need their quotes."""
    if str(stored) != str(current):
        return str(stored), str(current)
    return repr(stored), repr(current)
