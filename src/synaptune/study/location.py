"""Location of a study: its name, folder and database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synaptune.core.errors import user_error
from synaptune.study.database.connection import get_sqlite_path

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
        UserError: `resume` is unknown, or the name is not a valid folder name.
    """
    if config.resume not in RESUME_MODES:
        raise user_error(
            got=f"study.resume={config.resume}",
            expected=f"one of {', '.join(RESUME_MODES)}",
            do="choose one of them",
        )
    name = config.name or default_name
    if name in (".", "..") or any(letter in name for letter in "/\\\0"):
        raise user_error(
            got=f"study.name={name}",
            expected="a valid folder name",
            do="choose a name without / and \\",
        )
    # Absolute: an objective can change the working folder.
    folder = Path(config.dir or f"outputs/studies/{name}").expanduser().absolute()
    url = config.storage or f"sqlite:///{folder}/study.db"
    path = get_sqlite_path(url)
    if path is not None:
        url = f"sqlite:///{path.expanduser().absolute()}"
    return StudyLocation(name, folder, url, config.resume)
