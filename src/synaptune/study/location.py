"""Location of a study: its name, folder and database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synaptune.core.errors import user_error
from synaptune.core.files import make_absolute
from synaptune.core.text import show_path
from synaptune.study.database.connection import (
    get_sqlite_path,
    is_server,
    make_sqlite_url,
    make_url_absolute,
)

RESUME_MODES = ("auto", "must", "never")
MAX_NAME_BYTES = 200  # file systems take 255; files named after a study add an ending


@dataclass
class StudyConfig:
    """Configuration of the location of a study.

    Attributes:
        name: name of the study; None means `<search space>-<strategy>`.
        dir: folder of the study; None means `outputs/studies/<name>`.
        storage: Optuna storage URL; None means a SQLite file in `dir`.
        resume: `auto` continues an existing study, `must` refuses to create one, and `never`
            refuses to continue one.
        mirror: URL of a folder that gets a copy of the study (study/mirror.py); None means none.
    """

    name: str | None = None
    dir: str | None = None
    storage: str | None = None
    resume: str = "auto"
    mirror: str | None = None


@dataclass(frozen=True)
class StudyLocation:
    """Resolved location of a study.

    Attributes:
        name: name of the study in its database.
        folder: folder of the files of the study, an absolute path.
        url: Optuna storage URL of the database.
        resume: an entry of RESUME_MODES.
        runs: folder of the run folders; None means `trials` in the folder.
        mirror: URL of the folder of the copy of the study; None means none.
    """

    name: str
    folder: Path
    url: str
    resume: str
    runs: Path | None = None
    mirror: str | None = None

    @property
    def shown_folder(self) -> str:
        """The folder as messages show it: below the working folder, as a relative path."""
        return show_path(self.folder)

    @property
    def trials_folder(self) -> Path:
        """Folder of the run folders, each of which is named by its trial number."""
        return self.folder / "trials" if self.runs is None else self.runs


def resolve_location(config: StudyConfig, default_name: str) -> StudyLocation:
    """Resolve the location of a study.

    Raises:
        UserError: `resume` is unknown, the name is not a valid folder name, or the database is one
            in memory.
    """
    if config.resume not in RESUME_MODES:
        raise user_error(
            got=f"study.resume={config.resume}",
            expected=f"one of {', '.join(RESUME_MODES)}",
            do="choose one of them",
        )
    name = config.name or default_name
    if fault := _find_name_fault(name):
        raise user_error(
            got=f"study.name={name if name.isprintable() else ascii(name)}, {fault}",
            expected="a valid folder name",
            do=f"choose a name without / and \\, of at most {MAX_NAME_BYTES} bytes",
        )
    folder = make_absolute(config.dir or f"outputs/studies/{name}")
    url = make_url_absolute(config.storage or make_sqlite_url(folder / "study.db"))
    if not is_server(url) and get_sqlite_path(url) is None:
        raise user_error(
            got=f"study.storage={url}, which names no file",
            expected="a database that other processes can read, and that outlives this one",
            do="omit study.storage, or name a file: sqlite:///study.db",
        )
    return StudyLocation(name, folder, url, config.resume, mirror=config.mirror)


def _find_name_fault(name: str) -> str | None:
    if name in ("", ".", "..") or any(
        letter in "/\\" or not letter.isprintable() for letter in name
    ):
        return "which is no name of a folder"
    length = len(name.encode())
    return f"{length} bytes long" if length > MAX_NAME_BYTES else None
