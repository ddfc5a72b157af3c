"""Index of the studies that a dashboard shows: those of a folder and those of given databases."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from synaptune.core.errors import UserError
from synaptune.report.dashboard.study_status import StudyStatus, read_statuses
from synaptune.study.database.connection import get_sqlite_path, make_sqlite_url, redact_url

LISTING_LIFETIME = 1.0  # [s] for which a listing of all studies is reused
_PLAIN_NAME = re.compile(r"[\w+=,@-][\w .+=,@-]*")


@dataclass(frozen=True)
class StudyEntry:
    """Location of a study.

    Attributes:
        key: identifier of the study in the addresses of its pages.
        name: name of the study in its database.
        url: URL of the database.
        folder: folder of its files; None if only its database is known.
    """

    key: str
    name: str
    url: str
    folder: Path | None

    def read_status(self) -> StudyStatus | None:
        """Read the status of the study; None if the database does not contain it.

        Raises:
            UserError: the database cannot be read.
        """
        statuses = read_statuses(self.url, self.name)
        return statuses[0] if statuses else None


@dataclass(frozen=True)
class UnreadableDatabase:
    """A database that cannot be read.

    Attributes:
        url: its URL without the password.
        reason: the error message.
    """

    url: str
    reason: str


class StudyIndex:
    """The studies by key.

    A key that comes from an address is only compared with known keys, never used as a path.
    """

    def __init__(
        self, root: Path | None, urls: Sequence[str] = (), folders: Sequence[Path] = ()
    ) -> None:
        """Create the index.

        Args:
            root: folder; each of its subfolders that contains a study.db is a study.
            urls: URLs of databases, each with any number of studies.
            folders: folders of further studies.
        """
        self._root, self._urls, self._folders = (
            root,
            tuple(map(_normalise_url, urls)),
            tuple(folders),
        )
        self._lock = threading.Lock()
        self._listing: tuple[list[tuple[StudyEntry, StudyStatus]], list[UnreadableDatabase]] = (
            [],
            [],
        )
        self._listed_at = float("-inf")

    @property
    def named_urls(self) -> tuple[str, ...]:
        """URLs of the databases that were given."""
        return self._urls

    def list_studies(self) -> tuple[list[tuple[StudyEntry, StudyStatus]], list[UnreadableDatabase]]:
        """Return all studies with their status, and the databases that cannot be read."""
        with self._lock:
            if time.monotonic() - self._listed_at > LISTING_LIFETIME:
                self._listing = self._scan()
                self._listed_at = time.monotonic()
            return self._listing

    def forget_listing(self) -> None:
        """Read the studies again at the next call, since one of them has changed."""
        with self._lock:
            self._listed_at = float("-inf")

    def find_study(self, key: str) -> StudyEntry | None:
        """Return the study of a key; None if the key is unknown."""
        with self._lock:
            listed = next((entry for entry, _ in self._listing[0] if entry.key == key), None)
        return listed or next(
            (entry for entry, _ in self.list_studies()[0] if entry.key == key), None
        )

    def list_databases(self) -> list[tuple[str, Path | None]]:
        """Return URL and folder of every database; those that were given by URL come first."""
        folders = [*self._folders]
        if self._root is not None and self._root.is_dir():
            folders += sorted(path.parent for path in self._root.glob("*/study.db"))
        databases: dict[str, Path | None] = dict.fromkeys(self._urls)
        for folder in folders:
            databases.setdefault(_normalise_url(make_sqlite_url(folder / "study.db")), folder)
        return list(databases.items())

    def _scan(self) -> tuple[list[tuple[StudyEntry, StudyStatus]], list[UnreadableDatabase]]:
        listed: list[tuple[StudyEntry, StudyStatus]] = []
        faults: list[UnreadableDatabase] = []
        used_keys: set[str] = set()
        for url, folder in self.list_databases():
            try:
                for status in read_statuses(url):
                    key = _make_key(status.name, url, used_keys)
                    used_keys.add(key)
                    listed.append((StudyEntry(key, status.name, url, folder), status))
            except UserError as error:
                faults.append(UnreadableDatabase(redact_url(url), str(error)))
        return listed, faults


def _normalise_url(url: str) -> str:
    """Make the URL of a SQLite file absolute, so that one file has one URL."""
    path = get_sqlite_path(url)
    return url if path is None else make_sqlite_url(path.resolve())


def _make_key(name: str, url: str, used_keys: set[str]) -> str:
    """Return the name of a study if it is a valid and unused key, else a hash of URL and name."""
    if _PLAIN_NAME.fullmatch(name) and name not in used_keys:
        return name
    return hashlib.sha256(f"{url} {name}".encode()).hexdigest()[:16]
