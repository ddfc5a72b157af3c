"""Access to a study: one process controls it alone, or several processes share it.

Each process that shares a study holds at least one slot, a lock with a number. A running trial
stores the slot of its process. If the slot of a running trial is free, the process has ended, and
another one takes over the slot and with it the trial.
"""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable
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
    lock_database,
    lock_file,
    make_shared_lock_path,
)
from synaptune.study.database.status_rows import read_status_rows

_SHARING = ", or several of TrialManager, but not on MySQL and not beside train.py -m"


class StudyLease:
    """The locks of one study: files for this machine, and a server lock for all machines.

    The server lock is used only if a database server stores the study.

    Attributes:
        is_shared: whether other processes may share the study.
        is_alone: whether no other process held the study when this one acquired it.
    """

    def __init__(self, folder: Path, url: str, name: str, *, shared: bool = False) -> None:
        self._folder, self._url, self._name = folder, url, name
        self._files: list[TextIO] = []
        self._server: ServerLock | None = None
        self._slots: dict[int, TextIO | None] = {}
        self.is_shared, self.is_alone = shared, True

    def acquire(self) -> None:
        """Acquire all locks that are not yet held, within `lock_opening`.

        Also raises the errors of the database and the disk.

        Raises:
            UserError: another process holds a lock.
            DatabaseUnavailable: that process has ended, and its lock will be released soon.
        """
        try:
            if self.is_shared:
                self._acquire_shared()
                return
            for path in list_lock_files(self._folder, self._url, self._name)[len(self._files) :]:
                self._files.append(lock_file(path))
            if self._server is not None:
                self._server.ensure()
            elif is_server(self._url):
                self._server = ServerLock(self._url, self._name)
        except LockHeldError:
            raise self._make_error(Holder.has_ended) from None

    def _acquire_shared(self) -> None:
        self.close()
        self.is_alone = True
        for path in list_lock_files(self._folder, self._url, self._name):
            try:
                lock_file(path).close()
            except LockHeldError:
                self.is_alone = False
            self._files.append(lock_file(path, shared=True))
        if is_server(self._url):
            self._server = ServerLock(self._url, self._name, shared=True)
            self.is_alone = self._server.is_alone

    @property
    def slot(self) -> int:
        """The slot for new trials of this process, which the first call acquires."""
        if not self._slots:
            next(slot for slot in itertools.count() if self._try_slot(slot))
        return min(self._slots)

    def holds(self, slot: int) -> bool:
        """Return whether this process holds a slot; without sharing it holds all of them."""
        return not self.is_shared or slot in self._slots

    def take_over(self, slots: Iterable[int]) -> bool:
        """Acquire the slots that are free; return whether there were any."""
        taken = [slot for slot in slots if not self.holds(slot) and self._try_slot(slot)]
        return bool(taken)

    def _try_slot(self, slot: int) -> bool:
        file = None
        if self._server is None:
            path = make_shared_lock_path(self._folder, self._url, self._name, str(slot))
            try:
                file = lock_file(path)
            except LockHeldError:
                return False
        elif not self._server.try_slot(slot):
            return False
        self._slots[slot] = file
        return True

    def renew(self) -> None:
        """Acquire the server lock again if its connection was lost.

        Raises:
            UserError: another process has acquired it in the meantime.
            DatabaseUnavailable: the lost connection of this process still holds it.
        """
        if self._server is None:
            return
        try:
            if self._server.ensure():
                slots, self._slots = list(self._slots), {}
                self.take_over(slots)
        except LockHeldError:
            raise self._make_error(Holder.current().is_same_process) from None

    def lock_opening(self) -> AbstractContextManager[Any]:
        """Wait for other processes that create the tables of the database, or share the study."""
        if is_server(self._url):
            return lock_database(self._url)
        if not self.is_shared:
            return contextlib.nullcontext()
        path = make_shared_lock_path(self._folder, self._url, self._name, "opening")
        return lock_file(path, wait=True)

    def close(self) -> None:
        """Release all locks."""
        if self._server is not None:
            self._server.close()
        for file in (*self._files, *self._slots.values()):
            if file is not None:
                file.close()
        self._server, self._files, self._slots = None, [], {}

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
            expected="one process for each study" + (_SHARING if self.is_shared else ""),
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
