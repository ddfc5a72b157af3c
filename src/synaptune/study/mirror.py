"""A copy of a study's folder elsewhere, kept in step while its search runs (`study.mirror`).

The copy is made after each generation in a thread of its own, and at the end of the command. It has
the database, the result files and the folders of the runs, without checkpoints and locks. Its
database is made by SQLite's backup, so that it is whole at any moment; a database server has its
own backups. A copy that fails is reported once and tried again later; it never ends a search.

The copied folder is a study: put it at its place, and the same command continues it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from synaptune.core.errors import user_error
from synaptune.core.terminal import print_line
from synaptune.core.text import get_first_line
from synaptune.search.callback import Callback
from synaptune.search.optimizers.diagnostics import Diagnostics
from synaptune.search.trial import Trial
from synaptune.study.database.connection import get_sqlite_path
from synaptune.study.location import StudyLocation
from synaptune.training.config import CHECKPOINT_FILE

FINAL_SECONDS = 60.0  # limit of the copy at the end of a command [s]
_LEFT_OUT = (CHECKPOINT_FILE, ".lock", "-wal", "-shm", "-journal")  # ends of names of files


def make_mirror(location: StudyLocation) -> Callback:
    """Return the mirror of a study; without `location.mirror` a callback that does nothing.

    Raises:
        UserError: fsspec does not know the file system, or its package is not installed.
    """
    if location.mirror is None:
        return Callback()
    import fsspec

    try:
        files, root = fsspec.core.url_to_fs(location.mirror)
    except (ImportError, ValueError) as error:
        raise user_error(
            got=f"study.mirror={location.mirror} ({get_first_line(str(error))})",
            expected="a URL that fsspec can write: file:///folder, s3://bucket/folder, ...",
            do="correct it, or install the package of its file system (pip install s3fs)",
        ) from error
    return StudyMirror(location, files, f"{root.rstrip('/')}/{location.name}")


class StudyMirror(Callback):
    """Copies the files of a study that have changed to another place."""

    def __init__(self, location: StudyLocation, files: Any, root: str) -> None:
        """Copy to the folder `root` of the file system `files`, of fsspec."""
        self._location, self._files, self._root = location, files, root
        self._copied: dict[str, tuple[int, int]] = {}  # time and size of each copied file
        self._thread: threading.Thread | None = None
        self._has_failed = False

    def on_generation(self, diagnostics: Diagnostics, members: Sequence[Trial]) -> None:
        """Start a copy, unless one is running."""
        self._start()

    def close(self, exit_code: int) -> None:
        """Wait for the last copy, and make another one."""
        if self._thread is not None:
            self._thread.join(FINAL_SECONDS)
        if self._start() and self._thread is not None:
            self._thread.join(FINAL_SECONDS)

    def _start(self) -> bool:
        if self._thread is not None and self._thread.is_alive():
            return False
        self._thread = threading.Thread(target=self._copy, name="mirror", daemon=True)
        self._thread.start()
        return True

    def _copy(self) -> None:
        try:
            for path, name in self._list_files():
                status = path.stat()
                state = (status.st_mtime_ns, status.st_size)
                if self._copied.get(name) != state:
                    self._put(path, name)
                    self._copied[name] = state
            self._copy_database()
            self._has_failed = False
        except Exception as error:  # a copy must not end a search
            if not self._has_failed:
                reason = f"{type(error).__name__}: {get_first_line(str(error))}"
                print_line(f"mirror: no copy in {self._location.mirror} ({reason})")
            self._has_failed = True

    def _list_files(self) -> Iterator[tuple[Path, str]]:
        """List the files with their names in the copy; the database is not among them."""
        location, database = self._location, get_sqlite_path(self._location.url)
        for folder, place in {location.folder: "", location.trials_folder: "trials/"}.items():
            for root, folders, names in os.walk(folder):
                if not place and Path(root) == folder:
                    folders[:] = [name for name in folders if folder / name != self._trials]
                for name in names:
                    path = Path(root) / name
                    if path != database and not name.endswith(_LEFT_OUT):
                        yield path, place + path.relative_to(folder).as_posix()

    @property
    def _trials(self) -> Path:
        return self._location.trials_folder

    def _copy_database(self) -> None:
        path = get_sqlite_path(self._location.url)
        if path is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            draft = Path(folder) / path.name
            with (
                contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
                contextlib.closing(sqlite3.connect(draft)) as copy,
            ):
                source.backup(copy)
            self._put(draft, path.name)

    def _put(self, path: Path, name: str) -> None:
        """Copy a file; on a local disk its new content appears in one step."""
        target = f"{self._root}/{name}"
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        if "file" not in self._files.protocol:
            self._files.put_file(str(path), target)
            return
        self._files.put_file(str(path), f"{target}.part")
        os.replace(f"{target}.part", target)
