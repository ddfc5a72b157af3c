"""Connections to SQLite, PostgreSQL and MySQL databases by URL, and their transient errors."""

from __future__ import annotations

import functools
import logging
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from synaptune.core.files import make_absolute
from synaptune.core.secrets import mask_passwords
from synaptune.core.text import show_path

# Longest wait for a write of another program [s]; chosen: longer than a dashboard reads.
LOCK_WAIT = 10.0
_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
}
# Settings of a SQLite connection by the mode of its storage.
_PRAGMAS = {
    "own": ("journal_mode=WAL", "synchronous=NORMAL"),
    "join": (),
    "read": ("query_only=ON",),
}
# SQLSTATE classes and codes of PostgreSQL: connection lost, server stopping or starting, too many
# connections, limits of locks and time.
# fmt: off
_TRANSIENT_STATES = (
    "08", "57P01", "57P02", "57P03", "57P05", "25P03", "53300", "40001", "40P01", "55P03",
)
# fmt: on
_TRANSIENT_MYSQL = {1040, 1053, 1205, 1213, 1927, 2002, 2003, 2006, 2013, 2055, 4031}
_TRANSIENT_SQLITE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
# The driver reports a refused connection without its SQLSTATE. These refusals are transient, unlike
# a wrong password or database.
_TRANSIENT_REFUSALS = (
    "starting up",
    "shutting down",
    "recovery",
    "too many",
    "remaining connection slots",
    "terminating",
    "not yet accepting",
)


def get_sqlite_path(url: str) -> Path | None:
    """Return the file of a SQLite URL, or None for another database or one in memory."""
    import sqlalchemy.exc

    try:
        address = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):  # a port that is not a number: ValueError
        return None
    if address.get_backend_name() != "sqlite" or address.database in (None, "", ":memory:"):
        return None
    return Path(address.database.removeprefix("file:"))


def make_sqlite_url(path: Path) -> str:
    """Return the URL of a SQLite file; characters such as ? and % of the path are escaped."""
    import sqlalchemy

    return sqlalchemy.URL.create("sqlite", database=str(path)).render_as_string()


def make_url_absolute(url: str) -> str:
    """Return a URL whose SQLite file is an absolute path; `~` is the home of the user."""
    import sqlalchemy

    path = get_sqlite_path(url)
    address = None if path is None else sqlalchemy.make_url(url)
    if path is None or address is None or address.database != str(path):
        return url
    return address.set(database=str(make_absolute(path))).render_as_string(hide_password=False)


def is_server(url: str) -> bool:
    """Return whether the database is a server, which other machines can use as well."""
    return not url.startswith("sqlite")


def add_driver(url: str) -> str:
    """Return the URL with a driver, psycopg 3 or PyMySQL, unless the URL names one."""
    scheme, separator, rest = url.partition("://")
    return f"{_DRIVERS.get(scheme, scheme)}{separator}{rest}"


def redact_url(url: str) -> str:
    """Return the URL without its password, or the file of a SQLite URL, for messages."""
    import sqlalchemy.exc

    if (path := get_sqlite_path(url)) is not None:
        return show_path(path)
    try:
        sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        dialect, separator, _ = url.partition("://")
        if separator:
            return f"{dialect}://(unreadable)"
        return "(unreadable)" if "@" in url else url  # a text with @ can hold a password
    return mask_passwords(url)


def get_engine_options(url: str) -> dict[str, Any]:
    """Return the engine options of SQLAlchemy: limited waits, and tested connections."""
    if not is_server(url):
        return {"connect_args": {"timeout": LOCK_WAIT, "factory": _connect_sqlite}}
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("postgresql+psycopg"):
        # Detects the loss of the host within half a minute.
        keepalive = dict(
            keepalives_idle=10, keepalives_interval=5, keepalives_count=4, tcp_user_timeout=30_000
        )
        options["connect_args"] = {"connect_timeout": 10, **keepalive}
    return options


def create_engine(url: str, **options: Any) -> Any:
    """Return an engine of SQLAlchemy for a URL with or without a driver.

    Raises the errors of SQLAlchemy and the driver.

    Args:
        url: URL of the database.
        options: options beside those of `get_engine_options`; None removes one of these.
    """
    import sqlalchemy

    url = add_driver(url)
    merged = get_engine_options(url) | options
    given = {name: value for name, value in merged.items() if value is not None}
    return sqlalchemy.create_engine(url, **given)


def _connect_sqlite(
    database: str, *values: Any, pragmas: Sequence[str] = (), **named: Any
) -> sqlite3.Connection:
    """Open a SQLite connection and apply its settings; a factory for sqlite3.connect."""
    path = Path(database)
    # A write-ahead log needs files beside the database, also for a reader. Nobody writes a database
    # without them that is closed in a folder that cannot be written.
    if path.is_file() and not os.access(path.parent, os.W_OK) and not _has_log(path):
        database, named["uri"] = f"{path.absolute().as_uri()}?immutable=1", True
    connection = sqlite3.Connection(database, *values, **named)
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _has_log(path: Path) -> bool:
    """Return whether a SQLite database has changes that only its write-ahead log holds."""
    log = path.with_name(f"{path.name}-wal")
    return log.exists() and log.stat().st_size > 0


def open_storage(url: str, mode: Literal["own", "join", "read"] = "own"):
    """Open Optuna's storage.

    Raises the errors of Optuna, SQLAlchemy and the driver.

    Args:
        url: URL of the database, with or without a driver.
        mode: `own` creates the tables and switches SQLite to write-ahead logging, so that readers
            do not block a search and a kill does not damage a write. `join` expects an existing
            database and can write to it. `read` expects an existing database and never writes to a
            SQLite file.
    """
    import optuna

    url = add_driver(url)
    path = get_sqlite_path(url)
    if path is not None and not path.exists() and not os.access(path.parent, os.W_OK):
        raise PermissionError(13, "cannot be written", str(path.parent))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("psycopg").setLevel(logging.ERROR)  # it warns of errors that it also raises
    options = get_engine_options(url)
    if path is not None:
        factory = functools.partial(_connect_sqlite, pragmas=_PRAGMAS[mode])
        options["connect_args"]["factory"] = factory
    return optuna.storages.RDBStorage(url, engine_kwargs=options, skip_table_creation=mode != "own")


def close_storage(storage: Any) -> None:
    """Close the connections of Optuna's storage."""
    storage.remove_session()
    storage.engine.dispose()


def is_transient(error: BaseException) -> bool:
    """Return whether a database error is transient, so that the same call can succeed later."""
    return any(
        getattr(cause, "connection_invalidated", False)
        or _is_transient_driver_error(getattr(cause, "orig", None) or cause)
        for cause in walk_causes(error)
    )


def _is_transient_driver_error(error: BaseException) -> bool:
    """Return whether an error of the driver itself is transient."""
    if isinstance(error, sqlite3.Error):
        return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _TRANSIENT_SQLITE
    library = type(error).__module__.split(".")[0]
    if library == "pymysql":
        return bool(error.args) and error.args[0] in _TRANSIENT_MYSQL
    if library != "psycopg":
        return False
    if (state := getattr(error, "sqlstate", None)) is not None:
        return state.startswith(_TRANSIENT_STATES)
    text, classes = str(error), [cls.__name__ for cls in type(error).__mro__]
    return "OperationalError" in classes and (
        "FATAL" not in text or any(phrase in text for phrase in _TRANSIENT_REFUSALS)
    )


def walk_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def get_error_message(error: BaseException) -> str:
    """Return the first line of the innermost error that has a message."""
    causes = list(walk_causes(error))
    messages = [str(cause).strip() for cause in reversed(causes)]
    return next(
        (text.splitlines()[0] for text in messages if any(map(str.isalpha, text))),
        type(causes[-1]).__name__,
    )
