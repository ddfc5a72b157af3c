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
from synaptune.report.dashboard.study_status import Glance, glances
from synaptune.study.database.connection import shown, sqlite_path

FRESH = 1.0  # s that a look at all studies is good for
_PLAIN = re.compile(r"[\w+=,@-][\w .+=,@-]*")


@dataclass(frozen=True)
class Place:
    """A study's name in its database, and where its files are; folder: null for one that is only in a database."""

    key: str
    name: str
    url: str
    folder: Path | None

    def glance(self) -> Glance | None:
        """A cheap look at it; null when it is gone. Raises UserError."""
        found = glances(self.url, self.name)
        return found[0] if found else None


@dataclass(frozen=True)
class Unreadable:
    """A database that could not be read, and why."""

    where: str
    reason: str


class Catalogue:
    """Finds studies; a key names one in an address, and is only ever looked up here, never made into a path."""

    def __init__(self, root: Path | None, urls: Sequence[str] = (), folders: Sequence[Path] = ()) -> None:
        """root: its subfolders with a study.db; urls: databases with any number of studies; folders: further folders of one study."""
        self._root, self._urls, self._folders = root, tuple(map(_settled, urls)), tuple(folders)
        self._guard = threading.Lock()
        self._listed: tuple[list[tuple[Place, Glance]], list[Unreadable]] = ([], [])
        self._at = float("-inf")

    @property
    def named(self) -> tuple[str, ...]:
        """The databases that were named."""
        return self._urls

    def studies(self) -> tuple[list[tuple[Place, Glance]], list[Unreadable]]:
        """All studies with a look at each, and the databases that cannot be read."""
        with self._guard:
            if time.monotonic() - self._at > FRESH:
                self._listed = self._list()
                self._at = time.monotonic()
            return self._listed

    def place(self, key: str) -> Place | None:
        """The study of a key; null when there is none."""
        with self._guard:
            known = next((place for place, _ in self._listed[0] if place.key == key), None)
        return known or next((place for place, _ in self.studies()[0] if place.key == key), None)

    def databases(self) -> list[tuple[str, Path | None]]:
        """URL and folder of every database, those named on the command line first."""
        folders = [*self._folders]
        if self._root is not None and self._root.is_dir():
            folders += sorted(path.parent for path in self._root.glob("*/study.db"))
        found: dict[str, Path | None] = dict.fromkeys(self._urls)
        for folder in folders:
            found.setdefault(_settled(f"sqlite:///{folder}/study.db"), folder)
        return list(found.items())

    def _list(self) -> tuple[list[tuple[Place, Glance]], list[Unreadable]]:
        listed: list[tuple[Place, Glance]] = []
        faults: list[Unreadable] = []
        taken: set[str] = set()
        for url, folder in self.databases():
            try:
                for glance in glances(url):
                    key = _key(glance.name, url, taken)
                    taken.add(key)
                    listed.append((Place(key, glance.name, url, folder), glance))
            except UserError as error:
                faults.append(Unreadable(shown(url), str(error)))
        return listed, faults


def _settled(url: str) -> str:
    """One URL for one file, however its path was written."""
    path = sqlite_path(url)
    return url if path is None else f"sqlite:///{path.resolve()}"


def _key(name: str, url: str, taken: set[str]) -> str:
    """The name where it can stand in an address and is free, else one made of digits."""
    if _PLAIN.fullmatch(name) and name not in taken:
        return name
    return hashlib.sha256(f"{url} {name}".encode()).hexdigest()[:16]
