"""An Optuna storage that merges the studies of several databases, for optuna-dashboard.

An id of this storage is the id in the database times MAX_DATABASES plus the number of the database.
Names are unique: a second study with the same name is called `name (folder)`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import inspect
import threading
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.storages import BaseStorage
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from synaptune.core.errors import UserError
from synaptune.report.dashboard.auth import READ_ONLY
from synaptune.report.dashboard.study_status import connect
from synaptune.study.database.connection import (
    close_storage,
    get_sqlite_path,
    open_storage,
    redact_url,
)
from synaptune.study.database.errors import as_user_errors
from synaptune.study.database.status_rows import read_origins

MAX_DATABASES = 10_000  # small enough that a browser's integers hold the ids


class ReadOnlyError(BaseException):
    """A change that this storage does not make was requested.

    It is no Exception, because optuna-dashboard answers every Exception with a traceback in the log
    and `internal server error`.
    """


class _OpenDatabase(NamedTuple):
    """An open database.

    Attributes:
        state: state of its file, which changes with every write.
        identity: identity of its file.
        reader: storage that reads it, with a cache.
        storage: the underlying storage, which has to be closed.
    """

    state: Any
    identity: Any
    reader: BaseStorage
    storage: Any


def _delegate(name: str, *, writes: bool = False) -> Any:
    """Make a method of MergedStorage that calls the storage of the id in its first argument."""
    signature = inspect.signature(getattr(BaseStorage, name))

    def call_storage(self: MergedStorage, *args: Any, **kwargs: Any) -> Any:
        _, key, *rest = signature.bind(self, *args, **kwargs).arguments.values()
        if writes and not self._write:
            raise ReadOnlyError(READ_ONLY)
        storage, inner, _ = self._locate(key)
        return getattr(storage, name)(inner, *rest)

    return call_storage


def _refuse(self: BaseStorage, *_: Any, **__: Any) -> Any:
    raise ReadOnlyError(
        "Only a search creates, renames and fills studies. Start one with another study.name."
    )


class MergedStorage(BaseStorage):
    """A storage that reads all databases.

    Args:
        databases: returns URL and folder of each database. It is called repeatedly, so that later
            studies appear as well.
        write: whether to pass changes of notes and attributes, and deletions, to the databases.
    """

    def __init__(
        self, databases: Callable[[], Sequence[tuple[str, Path | None]]], *, write: bool = False
    ) -> None:
        self._databases, self._write = databases, write
        self._lock = threading.RLock()
        self._numbers: dict[str, int] = {}  # by URL
        self._labels: dict[int, str] = {}  # by number
        self._open_databases: dict[int, _OpenDatabase] = {}

    # --- databases and ids

    def _number_databases(self) -> dict[str, int]:
        """Return the number of each database by its URL.

        The numbers are derived from the URLs, so that addresses stay valid after a restart of the
        dashboard.
        """
        with self._lock:
            for url, folder in self._databases():
                number = int.from_bytes(hashlib.sha256(url.encode()).digest()[:8]) % MAX_DATABASES
                while self._numbers.get(url) is None and number in self._labels:
                    number = (number + 1) % MAX_DATABASES
                number = self._numbers.setdefault(url, number)
                self._labels[number] = redact_url(url) if folder is None else folder.name
            return dict(self._numbers)

    def _get_storage(self, url: str, number: int) -> BaseStorage:
        """Return the storage of a database, which is opened again if its file was replaced.

        Raises:
            KeyError: the file does not exist.
            UserError: the database cannot be read.
        """
        with self._lock:
            state, opened = _read_file_state(url), self._open_databases.get(number)
            if opened is None or opened.state != state:
                identity = None if state is None else (state[:2], _read_origins(url))
                if opened is not None and opened.identity != identity:
                    close_storage(self._open_databases.pop(number).storage)
                    opened = None
                if identity is None:
                    raise KeyError(number)
                if opened is None:
                    with as_user_errors(url):
                        storage = open_storage(url, "join" if self._write else "read")
                    reader = optuna.storages.get_storage(storage)
                    opened = _OpenDatabase(state, identity, reader, storage)
            self._open_databases[number] = opened._replace(state=state)
            return opened.reader

    def _locate(self, key: int) -> tuple[BaseStorage, int, int]:
        """Return storage, id in that storage, and number of the database of an id."""
        inner, number = divmod(key, MAX_DATABASES)
        urls = {known: url for url, known in self._number_databases().items()}
        return self._get_storage(urls[number], number), inner, number

    def _list_studies(self) -> dict[str, FrozenStudy]:
        """List all studies by a unique name, because optuna-dashboard looks studies up by name."""
        listed: dict[str, FrozenStudy] = {}
        for url, number in self._number_databases().items():
            try:
                with as_user_errors(url):
                    studies = self._get_storage(url, number).get_all_studies()
            except (UserError, KeyError):
                continue  # deleted or unreadable; the list of studies shows the reason
            for study in map(copy.copy, studies):
                study._study_id = study._study_id * MAX_DATABASES + number
                if study.study_name in listed:
                    study.study_name += f" ({self._labels[number]})"
                if study.study_name in listed:
                    study.study_name += f" {study._study_id}"
                listed[study.study_name] = study
        return listed

    def _renumber_trial(self, trial: FrozenTrial, number: int) -> FrozenTrial:
        renumbered = copy.copy(trial)
        renumbered._trial_id = trial._trial_id * MAX_DATABASES + number
        return renumbered

    def find_key(self, url: str, name: str) -> int:
        """Return the id of a study in this storage; raises KeyError if there is none."""
        number = self._number_databases()[url]
        storage = self._get_storage(url, number)
        return storage.get_study_id_from_name(name) * MAX_DATABASES + number

    # --- reading

    def get_all_studies(self) -> list[FrozenStudy]:
        return list(self._list_studies().values())

    def get_study_id_from_name(self, study_name: str) -> int:
        return self._list_studies()[study_name]._study_id

    def get_study_name_from_id(self, study_id: int) -> str:
        names = {study._study_id: name for name, study in self._list_studies().items()}
        return names[study_id]

    def get_trial(self, trial_id: int) -> FrozenTrial:
        storage, inner, number = self._locate(trial_id)
        return self._renumber_trial(storage.get_trial(inner), number)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        storage, inner, number = self._locate(study_id)
        trials = storage.get_all_trials(inner, deepcopy=deepcopy, states=states)
        return [self._renumber_trial(trial, number) for trial in trials]

    get_study_directions = _delegate("get_study_directions")
    get_study_user_attrs = _delegate("get_study_user_attrs")
    get_study_system_attrs = _delegate("get_study_system_attrs")

    # --- changing

    delete_study = _delegate("delete_study", writes=True)
    set_study_user_attr = _delegate("set_study_user_attr", writes=True)
    set_study_system_attr = _delegate("set_study_system_attr", writes=True)
    set_trial_user_attr = _delegate("set_trial_user_attr", writes=True)
    set_trial_system_attr = _delegate("set_trial_system_attr", writes=True)
    create_new_study = create_new_trial = set_trial_param = _refuse
    set_trial_state_values = set_trial_intermediate_value = _refuse

    def remove_session(self) -> None:
        """Close the connections that this thread used, and the idle ones.

        A connection that stays open could read a deleted write-ahead log. A process loses its locks
        of a file whenever it closes that file anywhere (POSIX); then the last writer that
        disconnects deletes the log.
        """
        with self._lock:
            for database in self._open_databases.values():
                close_storage(database.storage)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self.remove_session()
            self._open_databases.clear()


def _read_origins(url: str) -> Any:
    if get_sqlite_path(url) is None:
        return None
    with connect(url) as connection:
        return read_origins(connection)


def _read_file_state(url: str) -> tuple[Any, ...] | None:
    """Return the state of a SQLite file, which changes with every write.

    The state starts with device and inode. They alone do not identify a file: a file system reuses
    the inode of a deleted file, and SQLite reuses the id of a deleted study. For a database server
    the state is constant, because the servers that Optuna supports do not reuse ids.

    Returns:
        The state; None if there is no such file.
    """
    path = get_sqlite_path(url)
    if path is None:
        return (url, None)
    state: list[int] = []
    for file in (path, path.with_name(f"{path.name}-wal")):
        with contextlib.suppress(OSError):
            status = file.stat()
            state += (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size)
    return tuple(state) or None
