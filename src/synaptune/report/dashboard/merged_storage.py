"""An Optuna storage that merges the studies of several databases, for optuna-dashboard.

An id of this storage is the id in the database times MAX_DATABASES plus the number of the database.
Names are unique: a second study with the same name is called `name (folder)`.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from synaptune.core.errors import UserError
from synaptune.report.dashboard.study_status import connect
from synaptune.study.database.connection import (
    add_driver,
    close_storage,
    get_sqlite_path,
    open_storage,
    redact_url,
)
from synaptune.study.database.errors import as_user_errors
from synaptune.study.database.rows import read_origins

MAX_DATABASES = 10_000  # small enough that a browser's integers hold the ids


class ReadOnlyError(Exception):
    """A change was requested of a read-only storage."""


class _ListedStudy(NamedTuple):
    """A study with its unique name and the number of its database."""

    name: str
    study: FrozenStudy
    number: int


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
        self._numbers: dict[str, int] = {}
        self._folders: dict[int, str] = {}  # label of each database
        self._open_databases: dict[int, _OpenDatabase] = {}

    # --- databases and ids

    def _list_readable(self) -> list[int]:
        """List the numbers of the databases that can be read."""
        readable = []
        for number in self._number_databases():
            try:
                self._get_storage(number)
            except (UserError, KeyError):
                continue  # deleted or unreadable; the list of studies shows the reason
            readable.append(number)
        return readable

    def _number_databases(self) -> list[int]:
        """Number all databases.

        The numbers are derived from the URLs, so that addresses stay valid after a restart of the
        dashboard.
        """
        with self._lock:
            for url, folder in self._databases():
                if url not in self._numbers:
                    number = (
                        int.from_bytes(hashlib.sha256(url.encode()).digest()[:8]) % MAX_DATABASES
                    )
                    while number in self._numbers.values():
                        number = (number + 1) % MAX_DATABASES
                    self._numbers[url] = number
                    self._folders[number] = redact_url(url) if folder is None else folder.name
            return list(self._numbers.values())

    def _find_url(self, number: int) -> str:
        """Return the URL of a database; raises KeyError if there is none."""
        with self._lock:
            if number not in self._numbers.values():
                self._number_databases()
            return {known: url for url, known in self._numbers.items()}[number]

    def _get_storage(self, number: int) -> BaseStorage:
        with self._lock:
            url = self._find_url(number)
            state, known = _read_file_state(url), self._open_databases.get(number)
            if known is not None and known.state == state:
                return known.reader
            identity = None if state is None else (state[:2], _read_origins(url))
            if known is not None and known.identity == identity:
                self._open_databases[number] = known._replace(state=state)
                return known.reader
            if known is not None:
                close_storage(known.storage)
                del self._open_databases[number]
            if identity is None:
                raise KeyError(number)
            with as_user_errors(url):
                storage = open_storage(add_driver(url), "join" if self._write else "read")
            self._open_databases[number] = _OpenDatabase(
                state, identity, optuna.storages.get_storage(storage), storage
            )
            return self._open_databases[number].reader

    def _locate(self, key: int) -> tuple[BaseStorage, int, int]:
        """Return storage, id in that storage, and number of the database."""
        inner, number = divmod(key, MAX_DATABASES)
        return self._get_storage(number), inner, number

    def _list_studies(self) -> list[_ListedStudy]:
        """List all studies with unique names, because optuna-dashboard looks studies up by name."""
        listed: list[_ListedStudy] = []
        used_names: set[str] = set()
        for number in self._list_readable():
            try:
                with as_user_errors(self._find_url(number)):
                    studies = self._get_storage(number).get_all_studies()
            except (UserError, KeyError):
                continue
            for study in studies:
                name = (
                    study.study_name
                    if study.study_name not in used_names
                    else f"{study.study_name} ({self._folders[number]})"
                )
                if name in used_names:
                    name = f"{name} {study._study_id * MAX_DATABASES + number}"
                used_names.add(name)
                listed.append(_ListedStudy(name, study, number))
        return listed

    def _renumber_trial(self, trial: FrozenTrial, number: int) -> FrozenTrial:
        renumbered = copy.copy(trial)
        renumbered._trial_id = trial._trial_id * MAX_DATABASES + number
        return renumbered

    def find_key(self, url: str, name: str) -> int:
        """Return the id of a study in this storage; raises KeyError if there is none."""
        self._list_readable()
        with self._lock:
            number = self._numbers[url]
        return self._get_storage(number).get_study_id_from_name(name) * MAX_DATABASES + number

    # --- reading

    def get_all_studies(self) -> list[FrozenStudy]:
        studies = []
        for name, study, number in self._list_studies():
            renamed_study = copy.copy(study)
            renamed_study._study_id, renamed_study.study_name = (
                study._study_id * MAX_DATABASES + number,
                name,
            )
            studies.append(renamed_study)
        return studies

    def get_study_id_from_name(self, study_name: str) -> int:
        for name, study, number in self._list_studies():
            if name == study_name:
                return study._study_id * MAX_DATABASES + number
        raise KeyError(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        wanted_id, wanted_number = divmod(study_id, MAX_DATABASES)
        for name, study, number in self._list_studies():
            if (study._study_id, number) == (wanted_id, wanted_number):
                return name
        raise KeyError(study_id)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        storage, inner, _ = self._locate(study_id)
        return storage.get_study_directions(inner)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        storage, inner, _ = self._locate(study_id)
        return storage.get_study_user_attrs(inner)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        storage, inner, _ = self._locate(study_id)
        return storage.get_study_system_attrs(inner)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        storage, inner, number = self._locate(trial_id)
        return self._renumber_trial(storage.get_trial(inner), number)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        storage, inner, number = self._locate(study_id)
        trials = storage.get_all_trials(inner, deepcopy=False, states=states)
        return [
            self._renumber_trial(copy.deepcopy(trial) if deepcopy else trial, number)
            for trial in trials
        ]

    # --- changing

    def _get_writable(self, key: int) -> tuple[BaseStorage, int]:
        if not self._write:
            raise ReadOnlyError("the dashboard only reads; start it with --write to change studies")
        storage, inner, _ = self._locate(key)
        return storage, inner

    def delete_study(self, study_id: int) -> None:
        storage, inner = self._get_writable(study_id)
        storage.delete_study(inner)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        storage, inner = self._get_writable(study_id)
        storage.set_study_user_attr(inner, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        storage, inner = self._get_writable(study_id)
        storage.set_study_system_attr(inner, key, value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        storage, inner = self._get_writable(trial_id)
        storage.set_trial_user_attr(inner, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        storage, inner = self._get_writable(trial_id)
        storage.set_trial_system_attr(inner, key, value)

    def create_new_study(
        self, directions: Sequence[StudyDirection], study_name: str | None = None
    ) -> int:
        raise ReadOnlyError("only a search creates studies")

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        raise ReadOnlyError("only a search creates trials")

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: Any
    ) -> None:
        raise ReadOnlyError("only a search writes values")

    def set_trial_state_values(
        self, trial_id: int, state: TrialState, values: Sequence[float] | None = None
    ) -> bool:
        raise ReadOnlyError("only a search ends trials")

    def set_trial_intermediate_value(
        self, trial_id: int, step: int, intermediate_value: float
    ) -> None:
        raise ReadOnlyError("only a search writes values")

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
            for database in self._open_databases.values():
                close_storage(database.storage)
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
    try:
        file = path.stat()
    except OSError:
        return None
    state = (file.st_dev, file.st_ino, file.st_mtime_ns, file.st_size)
    try:
        log = path.with_name(f"{path.name}-wal").stat()
    except OSError:
        return state
    return (*state, log.st_mtime_ns, log.st_size)
