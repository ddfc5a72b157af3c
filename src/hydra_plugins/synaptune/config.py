"""Schema of the sweepers (`hydra/sweeper`); the keys are those of Hydra's Nevergrad sweeper."""

from dataclasses import dataclass, field
from typing import Any, Optional

from hydra.core.config_store import ConfigStore


@dataclass
class OptimConf:
    """Settings of a search.

    Attributes:
        optimizer: a strategy that `_register` lists, or a name of Nevergrad's registry.
        budget: number of trials; None means every point of a grid.
        num_workers: trials that the optimizer proposes at a time. They run side by side on a
            launcher that does so and on workers; in another application than train.py they run
            one after another unless `workers.*` says otherwise. None means workers.count.
        noisy: whether losses are noisy.
        maximize: whether a larger objective is better.
        seed: seed of the search; None draws one when the study begins.
        max_failure_rate: share of a generation that may fail without stopping the sweep.
    """

    optimizer: str = "cma"
    budget: Optional[int] = 80  # noqa: UP045 - OmegaConf of Hydra 1.3 reads the type
    num_workers: Optional[int] = None  # noqa: UP045
    noisy: bool = True
    maximize: bool = False
    seed: Optional[int] = 0  # noqa: UP045
    max_failure_rate: float = 0.5


@dataclass
class SweeperConf:
    """Settings of a sweeper.

    Attributes:
        optim: settings of the search.
        params: dimensions by name, as sweep syntax, a list of choices, {init, lower, upper, step,
            log, integer} or {init, choices, weights}; any other value is fixed.
        parametrization: an older name of `params`.
        version: of the older plugin's command line; it has no effect.
        grid_points: number of values of a continuous range in a grid.
    """

    _target_: str = "hydra_plugins.synaptune.sweeper.SynaptuneSweeper"
    optim: OptimConf = field(default_factory=OptimConf)
    params: dict[str, Any] = field(default_factory=dict)
    parametrization: dict[str, Any] = field(default_factory=dict)
    version: Optional[int] = None  # noqa: UP045
    grid_points: int = 3


def _register() -> None:
    strategies = {
        "cma": OptimConf(),
        "auto": OptimConf(optimizer="auto"),
        "random": OptimConf(optimizer="random"),
        "pbt": OptimConf(optimizer="pbt"),
        "grid": OptimConf(optimizer="grid", budget=None),
        "nevergrad": OptimConf(optimizer="NGOpt"),
        **{name: OptimConf(optimizer=name) for name in ("tpe", "gp", "cmaes", "qmc")},
    }
    for name, optim in strategies.items():
        ConfigStore.instance().store(
            group="hydra/sweeper", name=name, node=SweeperConf(optim=optim), provider="synaptune"
        )


_register()
