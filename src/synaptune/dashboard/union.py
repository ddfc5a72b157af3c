"""The studies of several databases as one storage of Optuna, which optuna-dashboard shows as one list.

An id here is the id in its database times SPAN plus the number of the database.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from synaptune.errors import UserError
from synaptune.storage.database import close_storage, open_storage, sqlite_path, with_driver
from synaptune.storage.faults import worded

SPAN = 10_000  # databases; a browser's integers hold the product


class ReadOnly(Exception):
    """A change was asked of studies that are only shown."""


class Union(BaseStorage):
    """Reads all databases; with `write` passes changes of notes and attributes, and deletions, on to theirs.

    databases: called for URL and folder of each, so that a study that begins later is seen too.
    """

    def __init__(self, databases: Callable[[], Sequence[tuple[str, Path | None]]], *, write: bool = False) -> None:
        self._databases, self._write = databases, write
        self._guard = threading.RLock()
        self._numbers: dict[str, int] = {}
        self._open: dict[int, tuple[Any, BaseStorage, Any]] = {}  # identity of the file, reader, storage to close

    # --- databases and ids

    def _members(self) -> list[int]:
        """The numbers of the databases that can be read."""
        found = []
        for number in self._numbered():
            try:
                self._storage(number)
            except (UserError, KeyError):
                continue  # gone, or unreadable: the list of studies says why
            found.append(number)
        return found

    def _numbered(self) -> list[int]:
        """The numbers of all databases: made of their URLs, so that an address stays good when the dashboard is started again."""
        with self._guard:
            for url, _ in self._databases():
                if url not in self._numbers:
                    number = int.from_bytes(hashlib.sha256(url.encode()).digest()[:8]) % SPAN
                    while number in self._numbers.values():
                        number = (number + 1) % SPAN
                    self._numbers[url] = number
            return list(self._numbers.values())

    def _storage(self, number: int) -> BaseStorage:
        with self._guard:
            if number not in self._numbers.values():
                self._numbered()
            url = next((url for url, known in self._numbers.items() if known == number), None)
            if url is None:
                raise KeyError(number)
            identity = _identity(url)
            known = self._open.get(number)
            if known is not None and known[0] == identity:
                return known[1]
            if known is not None:
                close_storage(known[2])
                del self._open[number]
            if identity is None:
                raise KeyError(number)
            with worded(url):
                storage = open_storage(with_driver(url))
            reader = optuna.storages.get_storage(storage)
            self._open[number] = (identity, reader, storage)
            return reader

    def _of(self, key: int) -> tuple[BaseStorage, int, int]:
        """Storage, the id in it, and its number."""
        inner, number = divmod(key, SPAN)
        return self._storage(number), inner, number

    def _study(self, study: FrozenStudy, number: int) -> FrozenStudy:
        named = copy.copy(study)
        named._study_id = study._study_id * SPAN + number
        return named

    def _trial(self, trial: FrozenTrial, number: int) -> FrozenTrial:
        named = copy.copy(trial)
        named._trial_id = trial._trial_id * SPAN + number
        return named

    def key_of(self, url: str, name: str) -> int:
        """The id of a study here; raises KeyError."""
        self._members()
        with self._guard:
            number = self._numbers[url]
        return self._storage(number).get_study_id_from_name(name) * SPAN + number

    # --- reading

    def get_all_studies(self) -> list[FrozenStudy]:
        return [self._study(study, number) for number in self._members() for study in self._storage(number).get_all_studies()]

    def get_study_id_from_name(self, study_name: str) -> int:
        for number in self._members():
            try:
                return self._storage(number).get_study_id_from_name(study_name) * SPAN + number
            except KeyError:
                continue
        raise KeyError(study_name)

    def get_study_name_from_id(self, study_id: int) -> str:
        storage, inner, _ = self._of(study_id)
        return storage.get_study_name_from_id(inner)

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        storage, inner, _ = self._of(study_id)
        return storage.get_study_directions(inner)

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        storage, inner, _ = self._of(study_id)
        return storage.get_study_user_attrs(inner)

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        storage, inner, _ = self._of(study_id)
        return storage.get_study_system_attrs(inner)

    def get_trial(self, trial_id: int) -> FrozenTrial:
        storage, inner, number = self._of(trial_id)
        return self._trial(storage.get_trial(inner), number)

    def get_all_trials(self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        storage, inner, number = self._of(study_id)
        trials = storage.get_all_trials(inner, deepcopy=False, states=states)
        return [self._trial(copy.deepcopy(trial) if deepcopy else trial, number) for trial in trials]

    # --- changing

    def _writable(self, key: int) -> tuple[BaseStorage, int]:
        if not self._write:
            raise ReadOnly("the dashboard only reads; start it with --write to change studies")
        storage, inner, _ = self._of(key)
        return storage, inner

    def delete_study(self, study_id: int) -> None:
        storage, inner = self._writable(study_id)
        storage.delete_study(inner)

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        storage, inner = self._writable(study_id)
        storage.set_study_user_attr(inner, key, value)

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        storage, inner = self._writable(study_id)
        storage.set_study_system_attr(inner, key, value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        storage, inner = self._writable(trial_id)
        storage.set_trial_user_attr(inner, key, value)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        storage, inner = self._writable(trial_id)
        storage.set_trial_system_attr(inner, key, value)

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        raise ReadOnly("studies begin with a search, not here")

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        raise ReadOnly("trials come from a search, not from here")

    def set_trial_param(self, trial_id: int, param_name: str, param_value_internal: float, distribution: Any) -> None:
        raise ReadOnly("a search alone writes values")

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        raise ReadOnly("a search alone ends trials")

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        raise ReadOnly("a search alone writes values")

    def remove_session(self) -> None:
        """End the connections that this thread used, and the idle ones.

        One that stayed open would go on reading a write-ahead log that is gone: a process loses its locks of a file whenever it
        closes that file anywhere (POSIX), and then the last writer to leave deletes the log under it.
        """
        with self._guard:
            for _, _, storage in self._open.values():
                close_storage(storage)

    def close(self) -> None:
        """End all connections."""
        with self._guard:
            for _, _, storage in self._open.values():
                close_storage(storage)
            self._open.clear()


def _identity(url: str) -> Any:
    """Which file a URL means now; null where there is none; of a server always the same."""
    path = sqlite_path(url)
    if path is None:
        return url
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
