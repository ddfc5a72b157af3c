"""Locks that allow one controller for each study.

A locked file excludes the processes of one machine, an advisory lock in the database those of all
machines. Both locks are released when their process ends for any reason.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from synaptune.study.database.connection import create_engine, get_sqlite_path, is_transient

# With these settings the server drops a client whose host is lost, and its lock, within half a
# minute.
_POSTGRESQL_LOCK = """SELECT set_config('tcp_keepalives_idle', '10', false),
    set_config('tcp_keepalives_interval', '5', false),
    set_config('tcp_keepalives_count', '4', false), pg_try_advisory_lock(:key)"""


class LockHeldError(Exception):
    """Another process holds the lock."""


@dataclass(frozen=True)
class Holder:
    """The process that runs a study.

    Attributes:
        host: name of the host.
        pid: process number.
        last_seen: time of the last sign of life, UTC.
    """

    host: str
    pid: int
    last_seen: datetime

    @classmethod
    def current(cls) -> Holder:
        """Return this process, seen now."""
        return cls(socket.gethostname(), os.getpid(), datetime.now(UTC))

    @classmethod
    def from_note(cls, note: Mapping[str, Any]) -> Holder:
        """Create a holder from the output of `to_note`."""
        return cls(note["host"], note["pid"], datetime.fromisoformat(note["at"]))

    def to_note(self) -> dict[str, Any]:
        """Return plain values; the time is UTC in ISO 8601."""
        return {
            "host": self.host,
            "pid": self.pid,
            "at": self.last_seen.isoformat(timespec="seconds"),
        }

    def is_same_process(self, other: Holder) -> bool:
        """Return whether both are the same process."""
        return (self.host, self.pid) == (other.host, other.pid)

    @property
    def is_remote(self) -> bool:
        """Whether the process runs on another machine."""
        return self.host != socket.gethostname()

    def has_ended(self) -> bool:
        """Return whether the process has ended; False for a process of another machine."""
        if not self.is_remote:
            try:
                os.kill(self.pid, 0)
            except OSError as error:  # PermissionError: the process of another user
                return isinstance(error, ProcessLookupError)
        return False

    def describe(self) -> str:
        """Return host, process and age of the last sign of life, for messages."""
        age = max(0, round((datetime.now(UTC) - self.last_seen).total_seconds()))
        return f"host {self.host}, process {self.pid}, last sign of life {age} s ago"


def lock_file(path: Path) -> TextIO:
    """Lock a file for one process of this machine, until the returned handle is closed.

    Raises:
        LockHeldError: another process holds the lock.
        OSError: the file cannot be created.
    """
    handle = path.open("a+")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise LockHeldError(str(path)) from None
    return handle


class ServerLock:
    """An advisory lock of PostgreSQL or MySQL, held by a separate connection.

    Its key is the first 64 bits of the SHA-256 of the study name. For MySQL, whose locks are shared
    by all databases of a server, the hash includes the name of the database.
    """

    def __init__(self, url: str, name: str) -> None:
        """Acquire the lock; raises LockHeldError and the errors of SQLAlchemy and the driver."""
        import sqlalchemy

        self._engine = create_engine(
            url, poolclass=sqlalchemy.pool.NullPool, isolation_level="AUTOCOMMIT"
        )
        self._name = name
        self._guard = threading.Lock()
        self._connection: Any = None
        self._acquire()

    def ensure(self) -> None:
        """Acquire the lock again if its connection was lost; raises like the constructor."""
        import sqlalchemy.exc

        with self._guard:
            if self._connection is not None:
                try:
                    self._connection.execute(sqlalchemy.text("SELECT 1"))
                    return
                except sqlalchemy.exc.SQLAlchemyError as error:
                    self._release()
                    if not is_transient(error):
                        raise
            self._acquire()

    @contextlib.contextmanager
    def lock_database(self) -> Iterator[None]:
        """Wait for and hold a lock that all studies of the database share."""
        import sqlalchemy

        if self._engine.dialect.name != "postgresql":
            yield
            return
        with self._engine.connect() as connection:
            connection.execute(
                sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": make_lock_key("")}
            )
            yield  # the connection has no pool: it is closed at the end, which releases the lock

    def close(self) -> None:
        """Release the lock."""
        with self._guard:
            self._release()
            self._engine.dispose()

    def _acquire(self) -> None:
        import sqlalchemy

        connection = self._engine.connect()
        try:
            if self._engine.dialect.name == "postgresql":
                query, key = _POSTGRESQL_LOCK, make_lock_key(self._name)
            else:
                query = "SELECT GET_LOCK(:key, 0)"
                key = f"synaptune-{make_lock_key(f'{self._engine.url.database}/{self._name}'):x}"
            *_, is_acquired = connection.execute(sqlalchemy.text(query), {"key": key}).one()
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        if not is_acquired:
            connection.close()
            raise LockHeldError(self._name)
        self._connection = connection

    def _release(self) -> None:
        if self._connection is not None:
            # Sends nothing to the server, which may have stopped. The closed connection releases
            # the lock.
            self._connection.invalidate()
            self._connection.close()
            self._connection = None


def make_lock_key(name: str) -> int:
    """Return a signed 64-bit integer from the SHA-256 of a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], signed=True)


def list_lock_files(folder: Path, url: str, name: str) -> list[Path]:
    """Return the files to lock for a study.

    There is one in the folder of the study, and one next to its SQLite file if that lies elsewhere.
    """
    locks = [folder / ".lock"]
    path = get_sqlite_path(url)
    if path is not None and path.parent.resolve() != folder.resolve():
        locks.append(path.with_name(f".{path.name}.{make_lock_key(name) & 0xFFFFFFFF:08x}.lock"))
    return locks
