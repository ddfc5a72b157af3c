"""Location of a study: its name, folder and database."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from synaptune.core.errors import user_error

RESUME_MODES = ("auto", "must", "never")


@dataclass
class StudyConfig:
    """Configuration of the location of a study.

    Attributes:
        name: name of the study; None means `<search space>-<strategy>`.
        dir: folder of the study; None means `outputs/studies/<name>`.
        storage: Optuna storage URL; None means a SQLite file in `dir`.
        resume: `auto` continues an existing study, `must` refuses to create one, and `never`
            refuses to continue one.
    """

    name: str | None = None
    dir: str | None = None
    storage: str | None = None
    resume: str = "auto"


@dataclass(frozen=True)
class StudyLocation:
    """Resolved location of a study.

    Attributes:
        name: name of the study in its database.
        folder: folder of the files of the study.
        url: Optuna storage URL of the database.
        resume: an entry of RESUME_MODES.
        runs: folder of the run folders; None means `trials` in the folder.
    """

    name: str
    folder: Path
    url: str
    resume: str
    runs: Path | None = None

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
    is_text = name == name.encode(errors="ignore").decode()  # no bytes of another encoding
    if name in (".", "..") or any(letter in name for letter in "/\\\0") or not is_text:
        raise user_error(
            got=f"study.name={name}" if is_text else f"study.name={name!a}",
            expected="a valid folder name",
            do="choose a name without / and \\",
        )
    folder = _make_absolute(config.dir or f"outputs/studies/{name}")
    url = config.storage or f"sqlite:///{folder}/study.db"
    scheme, separator, path = url.partition(":///")
    if scheme in ("sqlite", "sqlite+pysqlite", "sqlite://", "sqlite+pysqlite://"):
        if path in ("", ":memory:"):
            raise user_error(
                got=f"study.storage={url}, a database in memory",
                expected="a database that other processes can read, and that outlives this one",
                do="omit study.storage, or name a file: sqlite:///study.db",
            )
        url = f"{scheme}{separator}{_make_absolute(path)}"
    return StudyLocation(name, folder, url, config.resume)


def _make_absolute(path: str) -> Path:
    """Return a path that does not depend on the working folder, which an objective can change.

    Raises:
        UserError: no file can have this path, or it is relative and the working folder is gone.
    """
    try:
        absolute = Path(os.path.expanduser(path)).absolute()
        if b"\0" in os.fsencode(absolute) + str(absolute).encode():
            raise UnicodeError("a NUL character")
        return absolute
    except UnicodeError as error:
        raise user_error(
            got=f"the path {path!a}: {error}",
            expected="characters that the file system has in this locale",
            do="choose another path, or set LC_ALL=C.UTF-8",
        ) from error
    except FileNotFoundError as error:
        raise user_error(
            got=f"the path {path} in a working folder that no longer exists",
            expected="an absolute path, or a working folder",
            do="change to a folder that exists",
        ) from error
