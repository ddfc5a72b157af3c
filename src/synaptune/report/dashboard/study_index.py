"""The studies there are: those below a folder, and those of the databases that were named."""

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
from synaptune.study.database.connection import get_sqlite_path, redact_url

LISTING_LIFETIME = 1.0  # s that a look at all studies is good for
_PLAIN_NAME = re.compile(r"[\w+=,@-][\w .+=,@-]*")


@dataclass(frozen=True)
class StudyEntry:
    """A study's name in its database, and where its files are; folder: null for one that is only in a database."""

    key: str
    name: str
    url: str
    folder: Path | None

    def read_status(self) -> StudyStatus | None:
        """A cheap look at it; null when it is gone. Raises UserError."""
        found = read_statuses(self.url, self.name)
        return found[0] if found else None


@dataclass(frozen=True)
class UnreadableDatabase:
    """A database that could not be read, and why."""

    where: str
    reason: str


class StudyIndex:
    """Finds studies; a key names one in an address, and is only ever looked up here, never made into a path."""

    def __init__(
        self, root: Path | None, urls: Sequence[str] = (), folders: Sequence[Path] = ()
    ) -> None:
        """root: its subfolders with a study.db; urls: databases with any number of studies; folders: further folders of one study."""
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
        """The databases that were named."""
        return self._urls

    def list_studies(self) -> tuple[list[tuple[StudyEntry, StudyStatus]], list[UnreadableDatabase]]:
        """All studies with a look at each, and the databases that cannot be read."""
        with self._lock:
            if time.monotonic() - self._listed_at > LISTING_LIFETIME:
                self._listing = self._scan()
                self._listed_at = time.monotonic()
            return self._listing

    def find_study(self, key: str) -> StudyEntry | None:
        """The study of a key; null when there is none."""
        with self._lock:
            known = next((place for place, _ in self._listing[0] if place.key == key), None)
        return known or next(
            (place for place, _ in self.list_studies()[0] if place.key == key), None
        )

    def list_databases(self) -> list[tuple[str, Path | None]]:
        """URL and folder of every database, those named on the command line first."""
        folders = [*self._folders]
        if self._root is not None and self._root.is_dir():
            folders += sorted(path.parent for path in self._root.glob("*/study.db"))
        found: dict[str, Path | None] = dict.fromkeys(self._urls)
        for folder in folders:
            found.setdefault(_normalise_url(f"sqlite:///{folder}/study.db"), folder)
        return list(found.items())

    def _scan(self) -> tuple[list[tuple[StudyEntry, StudyStatus]], list[UnreadableDatabase]]:
        listed: list[tuple[StudyEntry, StudyStatus]] = []
        faults: list[UnreadableDatabase] = []
        taken: set[str] = set()
        for url, folder in self.list_databases():
            try:
                for glance in read_statuses(url):
                    key = _make_key(glance.name, url, taken)
                    taken.add(key)
                    listed.append((StudyEntry(key, glance.name, url, folder), glance))
            except UserError as error:
                faults.append(UnreadableDatabase(redact_url(url), str(error)))
        return listed, faults


def _normalise_url(url: str) -> str:
    """One URL for one file, however its path was written."""
    path = get_sqlite_path(url)
    return url if path is None else f"sqlite:///{path.resolve()}"


def _make_key(name: str, url: str, taken: set[str]) -> str:
    """The name where it can stand in an address and is free, else one made of digits."""
    if _PLAIN_NAME.fullmatch(name) and name not in taken:
        return name
    return hashlib.sha256(f"{url} {name}".encode()).hexdigest()[:16]
