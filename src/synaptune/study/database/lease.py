"""Exclusive access to a study: one process controls it, a second one is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from synaptune.core.errors import UserError, user_error
from synaptune.study.database import keys as schema
from synaptune.study.database.connection import (
    get_engine_options,
    get_sqlite_path,
    is_server,
    redact_url,
)
from synaptune.study.database.errors import DatabaseUnavailable
from synaptune.study.database.locks import (
    FileLock,
    Holder,
    LockHeldError,
    ServerLock,
    list_lock_files,
)
from synaptune.study.database.rows import read_note


class StudyLease:
    """The locks of one study: files for this machine, and a server lock for all machines.

    The server lock is used only if a database server stores the study.
    """

    def __init__(self, folder: Path, url: str, name: str) -> None:
        self._folder, self._url, self._name = folder, url, name
        self._files: list[FileLock] = []
        self._server: ServerLock | None = None

    def acquire(self) -> None:
        """Acquire all locks that are not yet held.

        Also raises the errors of the database and the disk.

        Raises:
            UserError: another process holds a lock.
            DatabaseUnavailable: that process has ended, and its lock will be released soon.
        """
        try:
            for path in list_lock_files(self._folder, self._url, self._name)[len(self._files) :]:
                self._files.append(FileLock(path))
            if self._server is not None:
                self._server.ensure()
            elif is_server(self._url):
                self._server = ServerLock(self._url, self._name)
        except LockHeldError:
            holder = read_holder(self._url, self._name)
            if holder is not None and holder.has_ended():
                raise self._make_stale_error(holder) from None
            raise self._make_held_error(holder) from None

    def renew(self) -> None:
        """Acquire the server lock again if its connection was lost.

        Raises:
            UserError: another process has acquired it in the meantime.
            DatabaseUnavailable: the lost connection of this process still holds it.
        """
        if self._server is None:
            return
        try:
            self._server.ensure()
        except LockHeldError:
            holder = read_holder(self._url, self._name)
            if holder is not None and holder.is_same_process(Holder.current()):
                raise self._make_stale_error(holder) from None
            raise self._make_held_error(holder) from None

    @contextlib.contextmanager
    def lock_tables(self) -> Iterator[None]:
        """Prevent other studies of the database from creating the tables at the same time."""
        if self._server is None:
            yield
            return
        with self._server.lock_database():
            yield

    def close(self) -> None:
        """Release all locks."""
        if self._server is not None:
            self._server.close()
        for lock in self._files:
            lock.close()
        self._server, self._files = None, []

    def _make_held_error(self, holder: Holder | None) -> UserError:
        details = "" if holder is None else f": {holder.describe()}"
        return user_error(
            got=f"study {self._name}, which another process is running ({self._folder}){details}",
            expected="one process for each study",
            do="wait for it, or stop it, or set another study.name; one process runs several trials"
            " side by side with workers",
        )

    def _make_stale_error(self, holder: Holder) -> DatabaseUnavailable:
        cause = (
            f"study {self._name} is still locked for {holder.describe()}, which has ended or lost "
            "the lock; one of its workers may still be running"
        )
        return DatabaseUnavailable(redact_url(self._url), cause)


def read_holder(url: str, name: str) -> Holder | None:
    """Return the process that runs a study, as the study has stored it.

    Returns:
        The holder; None if it cannot be read.
    """
    note = read_stored_note(url, name, schema.HOLDER)
    return None if note is None else Holder.from_note(note)


def read_stored_note(url: str, name: str, key: str) -> Any:
    """Return a note of a study that is not open.

    The function only reads, since the tables may not exist yet.

    Returns:
        The note (any JSON); None if it cannot be read.
    """
    import sqlalchemy
    import sqlalchemy.exc

    path = get_sqlite_path(url)
    if path is not None and not path.exists():
        return None
    engine = None
    try:
        engine = sqlalchemy.create_engine(url, **get_engine_options(url))
        with engine.connect() as connection:
            return read_note(connection, name, key)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError):
        return None  # opening the study says why
    finally:
        if engine is not None:
            engine.dispose()
