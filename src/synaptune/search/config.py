"""Configuration of the search space and of a search."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from synaptune.core.errors import UserError

RECOMMENDATIONS = ("posterior", "observed")


@dataclass
class SearchSpaceConfig:
    """Configuration of the search space.

    Attributes:
        name: name of the space, which is part of the default study name.
        parameters: names or wildcards of declared parameters; each has its declared range.
        ranges: ranges by name, for other parameters or in place of declared ranges; an entry is
            {low, high, log, integer} or {choices, weights} (search/space/file.py).
        fixed: values by name that a search-space file fixes.
    """

    name: str = MISSING
    parameters: list[str] = field(default_factory=list)
    ranges: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)


@dataclass
class SearchConfig:
    """Configuration of a search.

    Attributes:
        start: study to start from: its name under outputs/studies, its folder or an Optuna storage
            URL. The search starts at the best values of that study, and `tpe` and `gp` also learn
            from its trials.
        seeds: number of runs of each candidate, on different seeds; their objectives are averaged.
        incumbents: number of best points that a protocol runs again on other seeds before it
            chooses one of them; 0 means that it takes the best point of the search.
        recommend: which point of its search a protocol validates: `posterior` the one of the best
            score of a model of all trials (posterior.py), `observed` that of the best objective.
        start_design: first points of `cma`, `gp` and `auto`: `sobol` spreads them over the space,
            `defaults` begins at the configured values.
        step: first standard deviation of `cma` with the design `defaults` [unit range].
        population: points of a generation of `cma`; None means 4 + 3 ln n. Members of `pbt`; None
            means as many as the budget allows.
        restarts: largest number of restarts of `cma`, each with twice the population.
        slices: number of slices into which `pbt` divides a run; each is a trial.
        copy_weights: whether `pbt` copies the weights of a better member with its parameters.
        dry_run: print the runs, the minutes and the disk of the search, and start nothing.
    """

    start: str | None = None
    seeds: int = 1
    incumbents: int = 0
    recommend: str = "posterior"
    start_design: str = "sobol"
    step: float = 0.2
    population: int | None = None
    restarts: int = 3
    slices: int = 4
    copy_weights: bool = True
    dry_run: bool = False


def check_search_config(config: SearchConfig) -> None:
    """Raise UserError that lists every invalid value; an engine checks those of its optimizer."""
    faults = []
    if config.seeds < 1:
        faults.append(f"search.seeds={config.seeds}: expected at least 1")
    if config.incumbents < 0:
        faults.append(f"search.incumbents={config.incumbents}: expected at least 0")
    if config.recommend not in RECOMMENDATIONS:
        known = " or ".join(RECOMMENDATIONS)
        faults.append(f"search.recommend={config.recommend}: expected {known}")
    if faults:
        raise UserError(
            "got a search that cannot run\n  "
            + "\n  ".join(faults)
            + "\n  to do: correct these values"
        )
