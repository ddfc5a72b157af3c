"""Locks that allow one controller for each study, or several that share it.

A locked file excludes the processes of one machine, an advisory lock in the database those of all
machines. Both locks are released when their process ends for any reason. Processes that share a
study hold the lock of the study in shared mode.
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

# Time between two heartbeats of a study [s]; chosen: a status shows a lost process within minutes.
STUDY_HEARTBEAT_INTERVAL = 30.0
MAX_MISSED_HEARTBEATS = 3  # of a study that still counts as running
# With these settings the server drops a client whose host is lost, and its lock, within half a
# minute.
_POSTGRESQL_LOCK = """SELECT set_config('tcp_keepalives_idle', '10', false),
    set_config('tcp_keepalives_interval', '5', false),
    set_config('tcp_keepalives_count', '4', false), pg_try_advisory_lock(:key)"""
_POSTGRESQL_SHARED_LOCK = "SELECT pg_try_advisory_lock_shared(:key)"
_POSTGRESQL_UNLOCK = "SELECT pg_advisory_unlock(:key)"


class LockHeldError(Exception):
    """Another process holds the lock."""


@dataclass(frozen=True)
class Holder:
    """The process that runs a study.

    Attributes:
        host: name of the host.
        pid: process number.
        last_seen: time of the last sign of life, UTC.
        state: `open` while the process holds the study, then `ended` or `interrupted`; None for a
            study of version 0.1.0.
    """

    host: str
    pid: int
    last_seen: datetime
    state: str | None = "open"

    @classmethod
    def current(cls, state: str = "open") -> Holder:
        """Return this process, seen now."""
        return cls(socket.gethostname(), os.getpid(), datetime.now(UTC), state)

    @classmethod
    def from_note(cls, note: Mapping[str, Any]) -> Holder:
        """Create a holder from the output of `to_note`."""
        seen = datetime.fromisoformat(note["at"])
        return cls(note["host"], note["pid"], seen, note.get("state"))

    def to_note(self) -> dict[str, Any]:
        """Return plain values; the time is UTC in ISO 8601."""
        return {
            "host": self.host,
            "pid": self.pid,
            "at": self.last_seen.isoformat(timespec="seconds"),
            "state": self.state,
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

    def is_running(self) -> bool:
        """Return whether the process holds the study now.

        A process of another machine counts as running for MAX_MISSED_HEARTBEATS heartbeats. One of
        this machine is looked up, since a trial may take longer than that.
        """
        if self.state not in ("open", None) or self.has_ended():
            return False
        silence = (datetime.now(UTC) - self.last_seen).total_seconds()
        is_here = self.state == "open" and not self.is_remote
        return is_here or silence <= MAX_MISSED_HEARTBEATS * STUDY_HEARTBEAT_INTERVAL

    def describe(self) -> str:
        """Return host, process and age of the last sign of life, for messages."""
        age = max(0, round((datetime.now(UTC) - self.last_seen).total_seconds()))
        return f"host {self.host}, process {self.pid}, last sign of life {age} s ago"


def lock_file(path: Path, *, shared: bool = False, wait: bool = False) -> TextIO:
    """Lock a file among the processes of this machine, until the returned handle is closed.

    Args:
        path: the file; it is created if it does not exist.
        shared: whether other processes may hold the lock in shared mode.
        wait: whether to wait for a process that holds the lock.

    Raises:
        LockHeldError: another process holds the lock.
        OSError: the file cannot be created.
    """
    handle = path.open("a+")
    try:
        mode = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        fcntl.flock(handle, mode | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        handle.close()
        raise LockHeldError(str(path)) from None
    return handle


class ServerLock:
    """An advisory lock of PostgreSQL or MySQL, held by a separate connection.

    Its key is the first 64 bits of the SHA-256 of the study name. For MySQL, whose locks are shared
    by all databases of a server, the hash includes the name of the database.

    Attributes:
        is_alone: whether no other process held the lock when this one acquired it.
    """

    def __init__(self, url: str, name: str, *, shared: bool = False) -> None:
        """Acquire the lock.

        Also raises the errors of SQLAlchemy and the driver.

        Args:
            url: URL of the database.
            name: name of the study.
            shared: whether other processes may hold the lock in shared mode. MySQL has no such
                mode: there the lock is exclusive.

        Raises:
            LockHeldError: another process holds the lock.
        """
        import sqlalchemy

        self._engine = create_engine(
            url, poolclass=sqlalchemy.pool.NullPool, isolation_level="AUTOCOMMIT"
        )
        self._name = name
        self._is_postgresql = self._engine.dialect.name == "postgresql"
        self._is_shared = shared and self._is_postgresql
        self.is_alone = True
        self._guard = threading.Lock()
        self._connection: Any = None
        self._acquire()

    def ensure(self) -> bool:
        """Acquire the lock again if its connection was lost; raises like the constructor.

        Returns:
            Whether it was lost, and with it the locks of `try_slot`.
        """
        import sqlalchemy.exc

        with self._guard:
            if self._connection is not None:
                try:
                    self._connection.execute(sqlalchemy.text("SELECT 1"))
                    return False
                except sqlalchemy.exc.SQLAlchemyError as error:
                    self._release()
                    if not is_transient(error):
                        raise
            self._acquire()
            return True

    def try_slot(self, slot: int) -> bool:
        """Lock a slot of the study if it is free; with MySQL every slot belongs to this process.

        Returns:
            Whether this process holds the lock now.
        """
        import sqlalchemy

        if not self._is_postgresql:
            return True
        key = make_lock_key(f"{self._name}\n{slot}")
        with self._guard:
            statement = sqlalchemy.text("SELECT pg_try_advisory_lock(:key)")
            return self._connection.execute(statement, {"key": key}).scalar_one()

    def close(self) -> None:
        """Release the lock."""
        with self._guard:
            self._release()
            self._engine.dispose()

    def _acquire(self) -> None:
        import sqlalchemy

        connection = self._engine.connect()
        try:
            if self._is_postgresql:
                query, key = _POSTGRESQL_LOCK, make_lock_key(self._name)
            else:
                query = "SELECT GET_LOCK(:key, 0)"
                key = f"synaptune-{make_lock_key(f'{self._engine.url.database}/{self._name}'):x}"
            *_, is_acquired = connection.execute(sqlalchemy.text(query), {"key": key}).one()
            if self._is_shared:
                self.is_alone = is_acquired
                shared, unlock = map(sqlalchemy.text, (_POSTGRESQL_SHARED_LOCK, _POSTGRESQL_UNLOCK))
                is_acquired = connection.execute(shared, {"key": key}).scalar_one()
                if self.is_alone:
                    connection.execute(unlock, {"key": key})
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


@contextlib.contextmanager
def lock_database(url: str) -> Iterator[None]:
    """Wait for and hold a lock that all studies of a PostgreSQL database share."""
    import sqlalchemy

    engine = create_engine(url, poolclass=sqlalchemy.pool.NullPool, isolation_level="AUTOCOMMIT")
    if engine.dialect.name != "postgresql":
        yield
        return
    with engine.connect() as connection:
        connection.execute(
            sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": make_lock_key("")}
        )
        yield  # the connection has no pool: it is closed at the end, which releases the lock


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
        locks.append(_make_database_lock_path(path, name))
    return locks


def make_shared_lock_path(folder: Path, url: str, name: str, suffix: str) -> Path:
    """Return a file to lock among the processes that share a study, in whatever folders."""
    path = get_sqlite_path(url)
    lock = folder / ".lock" if path is None else _make_database_lock_path(path, name)
    return lock.with_name(f"{lock.name}.{suffix}")


def _make_database_lock_path(path: Path, name: str) -> Path:
    return path.with_name(f".{path.name}.{make_lock_key(name) & 0xFFFFFFFF:08x}.lock")
