"""A database by its URL: SQLite, PostgreSQL or MySQL; how it is opened, and which of its errors pass by themselves."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

LOCK_WAIT = 10.0  # one wait for another program's write [s]; chosen: longer than a dashboard reads
_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mysql+pymysql",
}
# PostgreSQL's SQLSTATE classes and codes: connection lost, server stopping or starting, too many connections, limits of locks and time.
_TRANSIENT_STATES = (
    "08",
    "57P01",
    "57P02",
    "57P03",
    "57P05",
    "25P03",
    "53300",
    "40001",
    "40P01",
    "55P03",
)
_TRANSIENT_MYSQL = {1040, 1053, 1205, 1213, 1927, 2002, 2003, 2006, 2013, 2055, 4031}
_TRANSIENT_SQLITE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
# A refusal to connect reaches us without its SQLSTATE. These pass; a wrong password or database does not.
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
    """The file of a SQLite URL; null for another database or one in memory."""
    for prefix in ("sqlite:///", "sqlite+pysqlite:///"):
        if url.startswith(prefix) and len(url) > len(prefix):
            return Path(url.removeprefix(prefix))
    return None


def is_server(url: str) -> bool:
    """Whether the database is a server that other machines may use too."""
    return not url.startswith("sqlite")


def add_driver(url: str) -> str:
    """The URL with its driver: psycopg 3 for PostgreSQL, PyMySQL for MySQL, unless it names one."""
    scheme, separator, rest = url.partition("://")
    return f"{_DRIVERS.get(scheme, scheme)}{separator}{rest}"


def redact_url(url: str) -> str:
    """The URL, or the file of SQLite, for a person's eyes: without its password."""
    import sqlalchemy.exc

    path = get_sqlite_path(url)
    if path is not None:
        return str(path)
    try:
        return sqlalchemy.make_url(url).render_as_string(hide_password=True)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return url.partition("://")[0] + "://(unreadable)"


def get_engine_options(url: str) -> dict[str, Any]:
    """What SQLAlchemy needs for a URL: bounded waits, and connections tried before they are used."""
    if not is_server(url):
        return {"connect_args": {"timeout": LOCK_WAIT}}
    options: dict[str, Any] = {"pool_pre_ping": True}
    if url.startswith("postgresql+psycopg"):
        # A host that vanished without a word is noticed within half a minute.
        silence = dict(
            keepalives_idle=10, keepalives_interval=5, keepalives_count=4, tcp_user_timeout=30_000
        )
        options["connect_args"] = {"connect_timeout": 10, **silence}
    return options


class _ReadOnlyConnection(sqlite3.Connection):
    """A connection that SQLite itself keeps from writing."""

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__(*values, **named)
        self.execute("PRAGMA query_only=ON")


def open_storage(url: str, mode: Literal["own", "join", "read"] = "own"):
    """Optuna's storage.

    own: makes its tables; SQLite writes ahead, so that readers never block a search and a kill never tears a write. join: takes a
    database as it is, and may write. read: as it is, and a SQLite file is never written.
    Raises the errors of Optuna, SQLAlchemy and the driver.
    """
    import optuna
    import sqlalchemy.event

    path = get_sqlite_path(url)
    if path is not None and not path.exists() and not os.access(path.parent, os.W_OK):
        raise PermissionError(13, "cannot be written", str(path.parent))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options = get_engine_options(url)
    if path is not None and mode == "read":
        options["connect_args"]["factory"] = _ReadOnlyConnection
    storage = optuna.storages.RDBStorage(
        url, engine_kwargs=options, skip_table_creation=mode != "own"
    )
    if path is not None and mode == "own":

        @sqlalchemy.event.listens_for(storage.engine, "connect")
        def _pragmas(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

        close_storage(storage)  # the connections that made the tables know nothing of the above
    return storage


def close_storage(storage: Any) -> None:
    """End the connections of Optuna's storage."""
    storage.remove_session()
    storage.engine.dispose()


def is_transient(error: BaseException) -> bool:
    """Whether a database error goes away by itself, so that the same call may succeed later."""
    return any(
        getattr(link, "connection_invalidated", False)
        or _is_transient_driver_error(getattr(link, "orig", None) or link)
        for link in walk_causes(error)
    )


def _is_transient_driver_error(error: BaseException) -> bool:
    """The same of a driver's own error."""
    if isinstance(error, sqlite3.Error):
        return (getattr(error, "sqlite_errorcode", 0) & 0xFF) in _TRANSIENT_SQLITE
    library = type(error).__module__.split(".")[0]
    if library == "pymysql":
        return bool(error.args) and error.args[0] in _TRANSIENT_MYSQL
    if library != "psycopg":
        return False
    state = getattr(error, "sqlstate", None)
    if state is not None:
        return state.startswith(_TRANSIENT_STATES)
    if not any(kind.__name__ == "OperationalError" for kind in type(error).__mro__):
        return False
    text = str(error)
    return "FATAL" not in text or any(sign in text for sign in _TRANSIENT_REFUSALS)


def walk_causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those it came from."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def get_error_message(error: BaseException) -> str:
    """What a database said, in one line: the innermost error that says anything."""
    links = list(walk_causes(error))
    said = [str(link).strip() for link in reversed(links)]
    return next(
        (text.splitlines()[0] for text in said if any(map(str.isalpha, text))),
        type(links[-1]).__name__,
    )
