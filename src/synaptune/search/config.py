"""What a configuration may say about a search, as typed values, and their registration with Hydra."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


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
