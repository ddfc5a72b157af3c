"""Exclusive access to a study: one process controls it, a second one is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TextIO

from synaptune.core.errors import UserError, user_error
from synaptune.study.database import keys as schema
from synaptune.study.database.connection import (
    create_engine,
    get_sqlite_path,
    is_server,
    redact_url,
)
from synaptune.study.database.errors import DatabaseUnavailable
from synaptune.study.database.locks import (
    Holder,
    LockHeldError,
    ServerLock,
    list_lock_files,
    lock_file,
)
from synaptune.study.database.status_rows import read_status_rows


class StudyLease:
    """The locks of one study: files for this machine, and a server lock for all machines.

    The server lock is used only if a database server stores the study.
    """

    def __init__(self, folder: Path, url: str, name: str) -> None:
        self._folder, self._url, self._name = folder, url, name
        self._files: list[TextIO] = []
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
                self._files.append(lock_file(path))
            if self._server is not None:
                self._server.ensure()
            elif is_server(self._url):
                self._server = ServerLock(self._url, self._name)
        except LockHeldError:
            raise self._make_error(Holder.has_ended) from None

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
            raise self._make_error(Holder.current().is_same_process) from None

    def lock_tables(self) -> AbstractContextManager[None]:
        """Prevent other studies of the database from creating the tables at the same time."""
        server = self._server
        return contextlib.nullcontext() if server is None else server.lock_database()

    def close(self) -> None:
        """Release all locks."""
        if self._server is not None:
            self._server.close()
        for file in self._files:
            file.close()
        self._server, self._files = None, []

    def _make_error(self, is_stale: Callable[[Holder], bool]) -> UserError:
        """Return the error for a lock that is held.

        Args:
            is_stale: whether the lock of a holder will be released soon.
        """
        holder = read_holder(self._url, self._name)
        if holder is not None and is_stale(holder):
            return DatabaseUnavailable(
                redact_url(self._url),
                f"study {self._name} is still locked for {holder.describe()}, which has ended or "
                "lost the lock; one of its workers may still be running",
            )
        details = "" if holder is None else f": {holder.describe()}"
        return user_error(
            got=f"study {self._name}, which another process is running ({self._folder}){details}",
            expected="one process for each study",
            do="wait for it, or stop it, or set another study.name; one process runs several trials"
            " side by side with workers",
        )


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
        engine = create_engine(url)
        with engine.connect() as connection:
            rows = read_status_rows(connection, name, [key])
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError):
        return None  # opening the study says why
    finally:
        if engine is not None:
            engine.dispose()
    notes = [row.notes[key] for row in rows if key in row.notes]
    return json.loads(notes[0]) if notes else None
