"""Where a study lives: its name, folder and database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synaptune.core.errors import user_error

RESUME_MODES = ("auto", "must", "never")


@dataclass
class StudyConfig:
    """Where a study lives.

    name: null is `<search space>-<strategy>`; dir: null is `outputs/studies/<name>`; storage: an Optuna storage URL, null is
    SQLite in `dir`; resume: `auto` continues the study when it is there, `must` refuses to begin one, `never` to continue one.
    """

    name: str | None = None
    dir: str | None = None
    storage: str | None = None
    resume: str = "auto"


@dataclass(frozen=True)
class StudyLocation:
    """Where a study lives, resolved.

    Attributes:
        name: of the study in its database.
        folder: of its files.
        url: of its database, an Optuna storage URL.
        resume: one of RESUME_MODES.
        runs: folder of the run folders; None means `trials` in the folder.
    """

    name: str
    folder: Path
    url: str
    resume: str
    runs: Path | None = None

    @property
    def trials_folder(self) -> Path:
        """The folder of the run folders, each named by its trial number."""
        return self.folder / "trials" if self.runs is None else self.runs


def resolve_location(config: StudyConfig, default_name: str) -> StudyLocation:
    """The place of a study; raises UserError for an unknown `resume` or a name that is no folder name."""
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
            expected="a name that can be a folder's",
            do="choose a name without / and \\",
        )
    folder = Path(config.dir or f"outputs/studies/{name}")
    return StudyLocation(
        name, folder, config.storage or f"sqlite:///{folder}/study.db", config.resume
    )
