"""The settings of a Hydra multirun: search space, strategy, study.

The space is `search_space.parameters` of the configuration, changed by `hydra.sweeper.params` and
by sweeps on the command line. A parameter fixed on the command line is not searched. Any Hydra
application can be swept; groups that Synaptune does not know are ignored.

The configuration is composed per job, by the launcher. Here only the groups that the search itself
needs are resolved, because other values may be known in a job alone.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synaptune.config.flat import (
    flatten_references,
    get_typed_group,
    has_name,
    is_training_config,
    list_names,
    read_group,
    select_value,
)
from synaptune.config.resume import has_own_subdir
from synaptune.config.search_space import (
    check_search,
    check_slices,
    find_declared_dimensions,
    make_study_configuration,
    read_dimensions,
    read_space_name,
)
from synaptune.config.sweep_overrides import SweepOverrides, get_name, read_overrides
from synaptune.config.sweep_syntax import parse_parametrization, parse_sweep
from synaptune.core.errors import UserError, suggest, user_error
from synaptune.core.files import make_absolute
from synaptune.core.text import get_first_line
from synaptune.search.config import SearchConfig, check_search_config
from synaptune.search.objective.score import MAXIMIZED, ObjectiveConfig
from synaptune.search.optimizers.auto import plan_engine
from synaptune.search.optimizers.base import Observation, Optimizer
from synaptune.search.optimizers.pbt import PBT
from synaptune.search.optimizers.registry import Engine, make_optimizer
from synaptune.search.optimizers.uniform_grid import GridOptimizer
from synaptune.search.plan import Plan
from synaptune.search.pruning import PrunerConfig
from synaptune.search.space.space import Space
from synaptune.search.space.values import Value
from synaptune.search.stopping import StopConfig, check_stop
from synaptune.search.workers.config import (
    TrialConfig,
    WorkersConfig,
    check_execution,
    resolve_population,
)
from synaptune.search.workers.population import POPULATION
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
        params: dimensions and fixed values by name, see sweep_overrides.py.
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
        overrides: the overrides of its jobs.
        base: the configuration with the fixed overrides; it may hold interpolations that only a
            job can resolve, and mandatory values that the search gives.
        space: dimensions of the search.
        plan: budget of the search.
        engine: optimizer of the search.
        location: location of the study.
        workers: where trials run.
        trial: how one trial runs.
        stop: reasons to end before the budget.
        search: seeds and incumbents of the search.
        prior: points of an earlier study.
        configuration: what makes the trials of the study comparable.
        has_own_subdir: whether the application names the folders of its jobs itself.
    """

    overrides: SweepOverrides
    base: DictConfig
    space: Space
    plan: Plan
    engine: Engine
    location: StudyLocation
    workers: WorkersConfig
    trial: TrialConfig
    stop: StopConfig
    search: SearchConfig
    prior: tuple[Observation, ...]
    configuration: dict[str, Any]
    has_own_subdir: bool


@contextmanager
def use_hydra_config(config: DictConfig) -> Iterator[None]:
    """Let `${hydra:...}` be resolved inside the block, as it is in a job."""
    holder = HydraConfig.instance()
    before = holder.cfg
    holder.set_config(config)
    try:
        yield
    finally:
        holder.cfg = before


def read_request(request: SweepRequest) -> Sweep:
    """Read a request and check all of it before anything runs.

    Raises:
        UserError: names what does not fit.
    """
    optim, plan = request.optim, _read_plan(request.optim)
    parser = OverridesParser.create(config_loader=request.context.config_loader)
    overrides = read_overrides(request.params, request.arguments, parser)
    base, choices = _compose_base(request, overrides.fixed)
    objective = get_typed_group(base, "objective", ObjectiveConfig)
    if objective is not None and objective.name in MAXIMIZED:
        plan = replace(plan, maximize=True)
    # A grid takes each value of range(...), as Hydra's own sweeper does.
    longest = request.grid_points if optim.optimizer == "grid" else math.inf
    space = _build_space(request, base, choices, overrides, longest)
    study, search, workers, trial, stop = (
        read_group(base, name, kind) for name, kind in _GROUP_TYPES.items()
    )
    workers, slots = _count_workers(request, workers, is_training_config(base))
    check_execution(workers, trial)
    check_stop(stop)
    check_search_config(search)
    _check_seeds(base, space, search)
    space, prior = start_from_study(space, search.start, maximize=plan.maximize)
    seed = random.SystemRandom().randrange(2**31) if optim.seed is None else optim.seed
    if optim.optimizer == PBT and not space.is_point:
        check_slices(base, search)
    # A single point is run once, as by Hydra's own sweeper; no optimizer can search it.
    optimizer = "grid" if space.is_point else optim.optimizer
    engine, _ = plan_engine(
        search,
        optimizer=optimizer,
        seed=seed,
        workers=slots,
        budget=plan.budget,
        noisy=optim.noisy,
        grid_points=request.grid_points,
    )
    # Refuses an unknown name before the study is created.
    _check_grid(make_optimizer(engine, space), plan)
    settings = {"optimizer": optimizer, "seed": optim.seed, "maximize": plan.maximize}
    if engine.name == "grid":
        settings["grid_points"] = engine.grid_points
    kind = read_space_name(base) or request.config.hydra.job.name
    return Sweep(
        overrides=overrides,
        base=base,
        space=space,
        plan=replace(plan, retries=trial.retries),
        engine=engine,
        location=_locate_study(request, study, f"{kind}-{optim.optimizer.lower()}"),
        workers=workers,
        trial=trial,
        stop=stop,
        search=search,
        prior=prior,
        configuration=make_study_configuration(base, space, settings),
        has_own_subdir=has_own_subdir(request.config.hydra.sweep),
    )


def _compose_base(request: SweepRequest, fixed: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """Return the configuration without the swept values, and the choices of its groups."""
    hydra = request.config.hydra
    try:
        composed = request.context.config_loader.load_configuration(
            config_name=hydra.job.config_name,
            overrides=[*_list_hydra_overrides(request), *fixed],
            run_mode=RunMode.MULTIRUN,
        )
    except (HydraException, ValueError) as error:  # ValueError: a number as a group's choice
        raise _explain_composition(error) from error
    OmegaConf.copy_cache(request.config, composed)  # such as the time of ${now:...}
    choices: Any = OmegaConf.to_container(composed.hydra.runtime.choices)
    return _drop_hydra(composed), choices


def _list_hydra_overrides(request: SweepRequest) -> list[str]:
    """Return the overrides of Hydra's own configuration, interpolations as they are written."""
    return flatten_references(request.config.hydra.overrides)["hydra"]


def _compose_job(request: SweepRequest, overrides: Sequence[str]) -> DictConfig:
    """Return the configuration of a job.

    Raises:
        UserError: the overrides do not fit.
    """
    loader = request.context.config_loader
    try:
        return _drop_hydra(loader.load_sweep_config(request.config, list(overrides)))
    except (HydraException, ValueError) as error:  # ValueError: a number as a group's choice
        raise _explain_composition(error) from error


def _drop_hydra(composed: DictConfig) -> DictConfig:
    config = copy.deepcopy(composed)
    OmegaConf.set_readonly(config, False)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    return config


def _explain_composition(error: Exception) -> UserError:
    cause = error.__cause__
    reason = f"{get_first_line(error)}" + (f" ({get_first_line(cause)})" if cause else "")
    return user_error(
        got=f"overrides that do not compose: {reason}",
        expected="overrides of the configuration",
        do="correct them",
    )


def _count_workers(
    request: SweepRequest, workers: WorkersConfig, is_training: bool
) -> tuple[WorkersConfig, int]:
    """Return the workers with their count, and how many trials are proposed at a time.

    `num_workers` of Hydra's Nevergrad sweeper is the size of the batches that the launcher gets.
    """
    proposed = request.optim.num_workers
    if workers.kind == POPULATION:
        workers = resolve_population(workers)
    is_basic = request.config.hydra.runtime.choices["hydra/launcher"] == "basic"
    if proposed is None:
        count = max(1, len(workers.devices)) if workers.count is None else workers.count
        return replace(workers, count=count), count
    if is_training or not is_basic or workers.kind != "auto" or workers.count is not None:
        return replace(workers, count=proposed), proposed
    return replace(workers, count=1), proposed


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


def _check_grid(optimizer: Optimizer, plan: Plan) -> None:
    """Refuse a large grid without a budget."""
    if plan.budget is None and isinstance(optimizer, GridOptimizer) and optimizer.size > _MAX_GRID:
        raise user_error(
            got=f"a grid of {optimizer.size:,} points without a budget",
            expected=f"at most {_MAX_GRID:,} points, or a number of trials",
            do="set hydra.sweeper.optim.budget, fewer hydra.sweeper.grid_points, or fewer names",
        )


def _locate_study(request: SweepRequest, study: StudyConfig, default_name: str) -> StudyLocation:
    """Return the location of the study: `hydra.sweep.dir` if the user sets it.

    The run folders 0, 1, ... are then directly in it, as with Hydra's own sweeper. A value from a
    configuration file counts unless it contains the time, which gives a new folder each time.
    """
    sweep = flatten_references(request.config.hydra.sweep)
    overrides = _list_hydra_overrides(request)
    is_set = any(word.split("=")[0] == "hydra.sweep.dir" for word in overrides)
    if not is_set and "${now:" in str(sweep["dir"]):
        return resolve_location(study, default_name)
    try:
        folder = make_absolute(request.config.hydra.sweep.dir)
    except OmegaConfBaseException as error:
        raise user_error(
            got=f"hydra.sweep.dir={sweep['dir']}: {get_first_line(error)}",
            expected="one folder for the whole sweep",
            do="leave values out of it that the sweep gives; hydra.sweep.subdir may hold them",
        ) from error
    location = resolve_location(replace(study, dir=study.dir or str(folder)), default_name)
    return replace(location, runs=folder)


# Points that are tried before a configuration counts as one that cannot run; chosen: a second.
_MAX_SAMPLES = 10
_MAX_GRID = 1000  # points of a grid without a budget; chosen: hours of short runs
_GROUP_TYPES = {
    "study": StudyConfig,
    "search": SearchConfig,
    "workers": WorkersConfig,
    "trial": TrialConfig,
    "stop": StopConfig,
}


def _check_seeds(base: DictConfig, space: Space, search: SearchConfig) -> None:
    """Refuse several seeds if the runs of a candidate cannot get different seeds."""
    if search.seeds == 1 and search.incumbents < 2:
        return
    got = f"search.seeds={search.seeds} and search.incumbents={search.incumbents}"
    if not isinstance(select_value(base, "seed"), int) or "seed" in space.names:
        raise user_error(
            got=f"{got} in an application without a fixed `seed`",
            expected="a key `seed` with an integer, which differs between the runs of a candidate",
            do="add it to the configuration, or leave search.seeds and search.incumbents out",
        )
    group = get_typed_group(base, "pruner", PrunerConfig)
    pruner = "none" if group is None else group.name
    if search.seeds > 1 and pruner != "none":
        raise user_error(
            got=f"search.seeds={search.seeds} with pruner={pruner}",
            expected="more than 1 only without a pruner, which judges each seed alone",
            do="correct search.seeds, or set pruner=none",
        )


def _build_space(
    request: SweepRequest,
    base: DictConfig,
    choices: Mapping[str, Any],
    overrides: SweepOverrides,
    longest_range: float,
) -> Space:
    fixed = overrides.fixed_names
    dimensions = {
        dimension.name: dimension
        for dimension in read_dimensions(base)
        if dimension.name not in fixed
    }
    declared = find_declared_dimensions(base, map(get_name, overrides.swept))
    for key, entry in overrides.swept.items():
        name = get_name(key)
        start = choices[name] if name in choices else select_value(base, name)
        if isinstance(entry, Override):
            dimension = parse_sweep(entry, declared.get(name), start, longest_range=longest_range)
        else:
            dimension = parse_parametrization(name, entry, start)
        dimensions[name] = replace(dimension, name=name)
    space = Space(tuple(dimensions.values()))
    _check_names(request, base, choices, overrides, space)
    _check_points(request, base, overrides, space)
    return space


def _check_names(
    request: SweepRequest,
    base: DictConfig,
    choices: Mapping[str, Any],
    overrides: SweepOverrides,
    space: Space,
) -> None:
    """Refuse a swept name that the configuration lacks, unless a swept group brings it."""
    names = [key for key in overrides.swept if not key.startswith("+")]
    unknown = [name for name in names if name not in choices and not has_name(base, name)]
    if not unknown:
        return
    try:
        _compose_job(request, overrides.build(next(_list_samples(space))))
    except UserError as error:
        known = [*list_names(base), *choices]
        raise user_error(
            got=f"a sweep over {unknown[0]}",
            expected=f"a name of the configuration{suggest(unknown[0], known)}",
            do="correct it, or add a new name with +NAME=",
        ) from error


def _check_points(
    request: SweepRequest, base: DictConfig, overrides: SweepOverrides, space: Space
) -> None:
    """Refuse a search of which no point can run.

    Points are tried where the configuration itself cannot run without what the search gives.
    """
    try:
        check_search(base, space.names)
    except UserError:
        faults = []
        for values in _list_samples(space):
            try:
                check_search(_compose_job(request, overrides.build(values)), space.names)
                return
            except UserError as fault:
                faults.append(fault)
        raise faults[0] from None


def _list_samples(space: Space) -> Iterator[dict[str, Value]]:
    """Return the start of the search, and points that together have each choice once."""
    yield space.to_values(space.get_start())
    longest = max((len(dimension.choices) for dimension in space.dimensions), default=0)
    for index in range(min(longest, _MAX_SAMPLES)):
        values = space.to_values(space.get_start())
        for dimension in space.dimensions:
            if dimension.choices:
                values[dimension.name] = dimension.choices[index % len(dimension.choices)]
        yield values
