"""The settings of a Hydra multirun: search space, strategy, study.

The space is `search_space.parameters` of the configuration, changed by `hydra.sweeper.params` and
by sweeps on the command line. A parameter fixed on the command line is not searched. Any Hydra
application can be swept; groups that Synaptune does not know are ignored.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from synaptune.config.flat import list_names, read_group
from synaptune.config.search_space import (
    check_search,
    find_declared_dimensions,
    make_study_configuration,
    read_dimensions,
)
from synaptune.config.sweep_syntax import parse_parametrization, parse_sweep
from synaptune.core.errors import find_nearest, user_error
from synaptune.search.config import SearchConfig
from synaptune.search.loop import Plan
from synaptune.search.optimizers.base import Observation
from synaptune.search.optimizers.registry import Engine, make_optimizer
from synaptune.search.space.space import Space
from synaptune.search.stopping import StopConfig, check_stop
from synaptune.search.workers.config import TrialConfig, WorkersConfig, check_execution
from synaptune.study.database.connection import make_sqlite_url
from synaptune.study.location import StudyConfig, StudyLocation, resolve_location
from synaptune.study.optimize import start_from_study


@dataclass(frozen=True)
class SweepRequest:
    """The inputs of a sweep, as Hydra passes them; see hydra_plugins/synaptune/config.py.

    Attributes:
        config: the composed configuration, with the node `hydra`.
        context: the context of Hydra.
        task: the function that runs a job.
        optim: strategy, budget and other settings of the search.
        params: dimensions by name.
        grid_points: values that a grid takes of a continuous range.
        arguments: overrides of the command line.
    """

    config: DictConfig
    context: HydraContext
    task: TaskFunction
    optim: DictConfig
    params: Mapping[str, Any]
    grid_points: int
    arguments: Sequence[str]


@dataclass(frozen=True)
class Sweep:
    """A checked request.

    Attributes:
        fixed_overrides: overrides that are not sweeps.
        base: the resolved configuration with fixed_overrides.
        space: dimensions of the search.
        spelling: how the command line spells a swept name, by name.
        plan: budget of the search.
        engine: optimizer of the search.
        location: where the study lives.
        workers: where trials run.
        trial: how one trial runs.
        stop: reasons to end before the budget.
        search: seeds and incumbents of the search.
        prior: points of an earlier study.
        configuration: what makes the trials of the study comparable.
    """

    fixed_overrides: list[str]
    base: DictConfig
    space: Space
    spelling: dict[str, str]
    plan: Plan
    engine: Engine
    location: StudyLocation
    workers: WorkersConfig
    trial: TrialConfig
    stop: StopConfig
    search: SearchConfig
    prior: tuple[Observation, ...]
    configuration: dict[str, Any]


def read_request(request: SweepRequest) -> Sweep:
    """Read a request and check all of it before anything runs.

    Raises:
        UserError: names what does not fit.
    """
    optim, plan = request.optim, _read_plan(request.optim)
    parser = OverridesParser.create(config_loader=request.context.config_loader)
    overrides = parser.parse_overrides(list(request.arguments))
    fixed = [override for override in overrides if not override.is_sweep_override()]
    swept = [override for override in overrides if override.is_sweep_override()]
    lines = [str(override.input_line) for override in fixed]
    base = request.context.config_loader.load_sweep_config(request.config, lines)
    job_name, choices = request.config.hydra.job.name, dict(base.hydra.runtime.choices)
    OmegaConf.set_struct(base, False)
    del base["hydra"]
    fixed_names = {override.key_or_group for override in fixed}
    space = _build_space(base, choices, swept, request.params, fixed_names)
    study, search, workers, trial, stop = (
        read_group(base, name, kind) for name, kind in _GROUP_TYPES.items()
    )
    workers.count = optim.num_workers or (1 if workers.count is None else workers.count)
    check_execution(workers, trial)
    check_stop(stop)
    _check_seeds(base, space, search)
    space, prior = start_from_study(space, search.start, maximize=plan.maximize)
    seed = random.SystemRandom().randrange(2**31) if optim.seed is None else optim.seed
    engine = Engine(
        optim.optimizer, seed, workers.slots, plan.budget, optim.noisy, request.grid_points
    )
    make_optimizer(engine, space)  # refuses an unknown name before the study is created
    settings = {"optimizer": engine.name, "seed": optim.seed, "maximize": optim.maximize}
    if engine.name == "grid":
        settings["grid_points"] = engine.grid_points
    kind = OmegaConf.select(base, "search_space.name") or job_name
    return Sweep(
        fixed_overrides=lines,
        base=base,
        space=space,
        spelling={override.key_or_group: override.get_key_element() for override in swept},
        plan=replace(plan, retries=trial.retries),
        engine=engine,
        location=_locate_study(request, study, f"{kind}-{engine.name.lower()}"),
        workers=workers,
        trial=trial,
        stop=stop,
        search=search,
        prior=prior,
        configuration=make_study_configuration(base, space, settings),
    )


def _read_plan(optim: DictConfig) -> Plan:
    plan = Plan(optim.budget, optim.maximize, optim.max_failure_rate)
    plan.check()
    if optim.num_workers is not None and optim.num_workers < 1:
        raise user_error(
            got=f"num_workers={optim.num_workers}",
            expected="at least 1 trial at a time",
            do="correct it",
        )
    if plan.budget is None and optim.optimizer != "grid":
        raise user_error(
            got="budget=null",
            expected="a number of trials (only a grid ends by itself)",
            do="set hydra.sweeper.optim.budget",
        )
    return plan


def _locate_study(request: SweepRequest, study: StudyConfig, default_name: str) -> StudyLocation:
    """Return the location of the study: `hydra.sweep.dir` if the user sets it.

    The run folders 0, 1, ... are then directly in it, as with Hydra's own sweeper. A value from a
    configuration file counts unless it contains the time, which gives a new folder each time.
    """
    location = resolve_location(study, default_name)
    sweep = OmegaConf.to_container(request.config.hydra.sweep, resolve=False)
    assert isinstance(sweep, dict)
    overrides = request.config.hydra.overrides.hydra
    is_set = any(word.split("=")[0] == "hydra.sweep.dir" for word in overrides)
    if not is_set and "${now:" in str(sweep["dir"]):
        return location
    folder = Path(request.config.hydra.sweep.dir)
    if study.dir is None:
        url = study.storage or make_sqlite_url(folder / "study.db")
        return replace(location, folder=folder, url=url, runs=folder)
    return replace(location, runs=folder)


_GROUP_TYPES = {
    "study": StudyConfig,
    "search": SearchConfig,
    "workers": WorkersConfig,
    "trial": TrialConfig,
    "stop": StopConfig,
}


def _check_seeds(base: DictConfig, space: Space, search: SearchConfig) -> None:
    """Refuse several seeds if the runs of a candidate cannot get different seeds."""
    if search.seeds < 1:
        raise user_error(got=f"search.seeds={search.seeds}", expected="at least 1", do="correct it")
    if search.seeds == 1 and search.incumbents < 2:
        return
    got = f"search.seeds={search.seeds} and search.incumbents={search.incumbents}"
    if not isinstance(base.get("seed"), int) or "seed" in space.names:
        raise user_error(
            got=f"{got} in an application without a fixed `seed`",
            expected="a key `seed` with an integer, which differs between the runs of a candidate",
            do="add it to the configuration, or leave search.seeds and search.incumbents out",
        )
    pruner = OmegaConf.select(base, "pruner.name", default="none")
    if search.seeds > 1 and pruner != "none":
        raise user_error(
            got=f"search.seeds={search.seeds} with pruner={pruner}",
            expected="more than 1 only without a pruner, which judges each seed alone",
            do="correct search.seeds, or set pruner=none",
        )


def _build_space(
    base: DictConfig,
    choices: Mapping[str, Any],
    swept: Sequence[Override],
    extra: Mapping[str, Any],
    fixed: set[str],
) -> Space:
    dimensions = {
        dimension.name: dimension
        for dimension in read_dimensions(base)
        if dimension.name not in fixed
    }
    known = [*list_names(base), *choices]

    def find_start(name: str) -> Any:
        if name in choices:
            return choices[name]
        if name not in known:
            expected = f"a name of the configuration (closest: {find_nearest(name, known)})"
            raise user_error(got=f"a sweep over {name}", expected=expected, do="correct it")
        return OmegaConf.select(base, name)

    known_ranges = find_declared_dimensions(
        base, [*extra, *(override.key_or_group for override in swept)]
    )
    for name, entry in extra.items():
        if name not in fixed:
            dimensions[name] = parse_parametrization(
                name, entry, known_ranges.get(name), find_start(name)
            )
    for override in swept:
        name = override.key_or_group
        new = override.is_add() or override.is_force_add()
        dimension = parse_sweep(override, known_ranges.get(name), None if new else find_start(name))
        dimensions[name] = replace(dimension, name=name)
    space = Space(tuple(dimensions.values()))
    check_search(base, space.names)
    return space
