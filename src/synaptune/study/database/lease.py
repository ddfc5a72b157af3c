"""What makes this process the only controller of a study, and the refusal of a second one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

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
    """The locks of one study: files for this machine and, where a server keeps the study, a lock there for all machines."""

    def __init__(self, folder: Path, url: str, name: str) -> None:
        self._folder, self._url, self._name = folder, url, name
        self._files: list[FileLock] = []
        self._server: ServerLock | None = None

    def acquire(self) -> None:
        """Take every lock not yet taken.

        Raises UserError when another process has one; Unanswered when that process has ended, and its lock will soon; and the errors of
        the database and the disk.
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
        """Take the server's lock again if its connection was lost.

        Raises UserError when another process took it meanwhile; Unanswered while the server still gives it to our own lost connection.
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
        """While the tables are made: no other study's controller makes them at the same time."""
        if self._server is None:
            yield
            return
        with self._server.lock_database():
            yield

    def close(self) -> None:
        """Let another process have the study."""
        if self._server is not None:
            self._server.close()
        for lock in self._files:
            lock.close()
        self._server, self._files = None, []

    def _make_held_error(self, holder: Holder | None) -> UserError:
        known = "" if holder is None else f": {holder.describe()}"
        return user_error(
            got=f"study {self._name}, which another process is running ({self._folder}){known}",
            expected="one process for each study",
            do="wait for it, or stop it, or set another study.name",
        )

    def _make_stale_error(self, holder: Holder) -> DatabaseUnavailable:
        cause = f"study {self._name} is still locked for {holder.describe()}, which has ended or lost it; a worker of it may live on"
        return DatabaseUnavailable(redact_url(self._url), cause)


def read_holder(url: str, name: str) -> Holder | None:
    """Read who runs a study by its own account; None where nothing can be read.

    It only reads: the tables may not be there yet.
    """
    import sqlalchemy
    import sqlalchemy.exc

    path = get_sqlite_path(url)
    if path is not None and not path.exists():
        return None
    engine = sqlalchemy.create_engine(url, **get_engine_options(url))
    try:
        with engine.connect() as connection:
            note = read_note(connection, name, schema.HOLDER)
    except sqlalchemy.exc.SQLAlchemyError:
        return None
    finally:
        engine.dispose()
    return None if note is None else Holder.from_note(note)
