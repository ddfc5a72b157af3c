"""What a configuration may say about a search, as typed values, and their registration with Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from synaptune.errors import mistake

RESUME = ("auto", "must", "never")


@dataclass
class SearchSpaceConfig:
    """parameters: names or wildcards of declared parameters, with their declared ranges; ranges: of other names, or narrower ones of
    these, by name {low, high, log, integer} or {choices, weights} (space_file.py); fixed: values by name that a space file
    holds; name: names the study too."""

    name: str = MISSING
    parameters: list[str] = field(default_factory=list)
    ranges: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)


@dataclass
class SearchConfig:
    """start: a study (its name under outputs/studies, its folder or an Optuna storage URL) whose best values the search begins at, and
    whose trials `tpe` and `gp` know; seeds: runs of each candidate, their objectives averaged; incumbents: best points of a protocol's
    search that are run again on other seeds before one of them is chosen (0: the best of the search is)."""

    start: str | None = None
    seeds: int = 1
    incumbents: int = 0


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
class Home:
    """A study's resolved place."""

    name: str
    folder: Path
    url: str
    resume: str

    @property
    def trials(self) -> Path:
        """The folder of the run folders, each named by its trial number."""
        return self.folder / "trials"


def home(config: StudyConfig, default_name: str) -> Home:
    """The place of a study; raises UserError for an unknown `resume` or a name that is no folder name."""
    if config.resume not in RESUME:
        raise mistake(got=f"study.resume={config.resume}", expected=f"one of {', '.join(RESUME)}", do="choose one of them")
    name = config.name or default_name
    if name in (".", "..") or any(letter in name for letter in "/\\\0"):
        raise mistake(got=f"study.name={name}", expected="a name that can be a folder's", do="choose a name without / and \\")
    folder = Path(config.dir or f"outputs/studies/{name}")
    return Home(name, folder, config.storage or f"sqlite:///{folder}/study.db", config.resume)
