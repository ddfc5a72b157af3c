"""A Hydra multirun as a search: the composition root behind our sweepers.

The sweep's space is `search_space.parameters` of the configuration, changed by `hydra.sweeper.parametrization` and by sweeps
on the command line; a parameter fixed on the command line is not searched. Any Hydra application can be swept: what is
particular to a synaptic transformer applies when its configuration has a `search_space`.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synaptune.config.flat import names_of
from synaptune.config.search_space import check_base, configuration_of, declared, declared_space, fixed_values
from synaptune.config.sweep_syntax import dimension_from_config, dimension_of, written
from synaptune.core.errors import mistake, nearest
from synaptune.search.config import SearchConfig
from synaptune.search.loop import Plan
from synaptune.search.optimizers.base import Told
from synaptune.search.optimizers.registry import Engine, Grid, make_optimizer
from synaptune.search.pruning import Pruner, PrunerConfig, make_pruner
from synaptune.search.space.file import literal
from synaptune.search.space.space import Space
from synaptune.search.stopping import StopConfig, check_stop
from synaptune.search.trial import Result, Trial, best_of, failure_of
from synaptune.search.workers.base import Batches, Workers
from synaptune.search.workers.config import TrialConfig, WorkersConfig, check_execution, make_workers
from synaptune.study.artifacts import described, write_best
from synaptune.study.callbacks.base import VIEWER, Show, opened
from synaptune.study.callbacks.notify import Notifier, NotifyConfig
from synaptune.study.location import Home, StudyConfig, home
from synaptune.study.optimize import Company, Job, Steering, begun_at, conduct, resumed_engine
from synaptune.study.provenance import code_version, device_name
from synaptune.study.study import PhaseLedger, Study
from synaptune.training.config import LoggerConfig
from synaptune.training.loggers.wandb_run import identity, labels


@dataclass(frozen=True)
class Request:
    """What the sweeper was given; see hydra_plugins/synaptune/config.py for the keys of `optim`."""

    config: DictConfig
    context: HydraContext
    task: TaskFunction
    optim: DictConfig
    parametrization: Mapping[str, Any]
    grid_points: int
    arguments: Sequence[str]


@dataclass(frozen=True)
class Sweep:
    """A request, understood: fixed overrides, the resolved configuration they give, the space and the way each name is spelt.

    identity: of the study, once it is open; see training/wandb_runs.py.
    """

    fixed: list[str]
    base: DictConfig
    space: Space
    spelling: dict[str, str]
    plan: Plan
    engine: Engine
    place: Home
    workers: WorkersConfig
    trial: TrialConfig
    stop: StopConfig
    prior: tuple[Told, ...]
    configuration: dict[str, Any]
    identity: str = ""


def understand(request: Request) -> Sweep:
    """Read a request and check it whole, before anything runs; raises UserError."""
    optim = request.optim
    plan = Plan(optim.budget, optim.maximize, optim.max_failure_rate)
    plan.check()
    if optim.num_workers is not None and optim.num_workers < 1:
        raise mistake(got=f"num_workers={optim.num_workers}", expected="at least 1 trial at a time", do="correct it")
    if plan.budget is None and optim.optimizer != "grid":
        expected = "a number of trials (only a grid has an end of its own)"
        raise mistake(got="budget=null", expected=expected, do="set hydra.sweeper.optim.budget")
    overrides = OverridesParser.create(config_loader=request.context.config_loader).parse_overrides(list(request.arguments))
    fixed = [override for override in overrides if not override.is_sweep_override()]
    swept = [override for override in overrides if override.is_sweep_override()]
    lines = [str(override.input_line) for override in fixed]
    base = request.context.config_loader.load_sweep_config(request.config, lines)
    job_name, choices = request.config.hydra.job.name, dict(base.hydra.runtime.choices)
    OmegaConf.set_struct(base, False)
    del base["hydra"]
    space = _space(base, choices, swept, request.parametrization, {override.key_or_group for override in fixed})
    study, begin, workers, trial, stop = (_typed(base, name, kind) for name, kind in _ABOUT.items())
    workers.count = optim.num_workers or (1 if workers.count is None else workers.count)
    check_execution(workers, trial)
    check_stop(stop)
    _check_once(begin)
    plan = replace(plan, retries=trial.retries)
    space, prior = begun_at(space, begin.start, maximize=plan.maximize)
    kind = OmegaConf.select(base, "search_space.name") or job_name
    seed = random.SystemRandom().randrange(2**31) if optim.seed is None else optim.seed
    engine = Engine(optim.optimizer, seed, workers.places, plan.budget, optim.noisy, request.grid_points)
    make_optimizer(engine, space)  # refuses an unknown name before there is a study
    settings = {"optimizer": engine.name, "seed": optim.seed, "maximize": optim.maximize}
    if engine.name == "grid":
        settings["grid_points"] = engine.grid_points
    return Sweep(
        fixed=lines,
        base=base,
        space=space,
        spelling={override.key_or_group: override.get_key_element() for override in swept},
        plan=plan,
        engine=engine,
        place=home(study, f"{kind}-{engine.name.lower()}"),
        workers=workers,
        trial=trial,
        stop=stop,
        prior=prior,
        configuration=configuration_of(base, space, settings),
    )


_ABOUT = {"study": StudyConfig, "search": SearchConfig, "workers": WorkersConfig, "trial": TrialConfig, "stop": StopConfig}


def _typed(base: DictConfig, name: str, kind: type) -> Any:
    """A group of the configuration as its dataclass; any application may leave it out, or mean something of its own by the name."""
    node, known = base.get(name), {entry.name for entry in fields(kind)}
    ours = isinstance(node, DictConfig) and known.issuperset(node)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), node if ours else {}))
    except OmegaConfBaseException as error:
        got = f"{name}: {str(error).splitlines()[0]}"
        raise mistake(got=got, expected=f"values of the right kinds for {', '.join(sorted(known))}", do="correct them") from error


def _check_once(begin: SearchConfig) -> None:
    """Refuse what only a protocol does: here a candidate is one job of Hydra's."""
    if begin.seeds != 1 or begin.incumbents > 1:
        got = f"search.seeds={begin.seeds}, search.incumbents={begin.incumbents} in a multirun"
        do = "leave them out, or search with a protocol (make sweep-phase1)"
        raise mistake(got=got, expected="search.seeds=1 and search.incumbents=0: each candidate is one run", do=do)


def run_sweep(request: Request, launcher_in: Callable[[str], Launcher]) -> list[Trial]:
    """Search until the budget is spent; prints progress and the best. Raises UserError; a killed sweep continues.

    launcher_in: makes Hydra's launcher for a sweep folder.
    """
    sweep = understand(request)
    launcher = launcher_in(str(sweep.place.trials))
    notifier = Notifier(_typed(sweep.base, "notify", NotifyConfig), sweep.place.name)
    with notifier.ending(), Study(sweep.place, sweep.configuration, maximize=sweep.plan.maximize) as study:
        sweep = replace(sweep, identity=identity(study))
        engine = resumed_engine(study, sweep.engine)
        plan = sweep.plan
        if engine.name == "grid":
            grid = make_optimizer(engine, sweep.space)
            assert isinstance(grid, Grid)
            plan = replace(plan, budget=min(grid.size, plan.budget or grid.size))
        seed = sweep.base.get("seed")
        facts: dict[str, Any] = {"seed": seed if isinstance(seed, int) else None, "code_version": code_version()}
        if "synapse" in sweep.base:
            facts["device"] = device_name()
        ledger = PhaseLedger(study, sweep.space, "search", facts)
        earlier = [trial for trial in ledger.trials() if trial.state != "running"]
        _announce(sweep, plan, len(earlier))
        workers = _workers(sweep, request, launcher)
        try:
            steering = Steering(_pruner(sweep), sweep.prior, sweep.stop)
            show = Show(plan.budget, maximize=plan.maximize, earlier=earlier, stop=sweep.stop)
            with opened(ledger, _logger(sweep), show) as listeners:
                (trials,) = conduct([Job(ledger, engine, plan, steering, Company(listeners, notifier))], workers)
        finally:
            workers.close()
            _take_away(sweep, ledger)
    return trials


def _logger(sweep: Sweep) -> LoggerConfig:
    """What our own configuration wants shown and logged; another application has a view in the terminal."""
    config = OmegaConf.to_object(sweep.base.logger) if isinstance(sweep.base.get("logger"), DictConfig) else None
    return config if isinstance(config, LoggerConfig) else VIEWER


def _pruner(sweep: Sweep) -> Pruner | None:
    """The pruner of our own runs; another application has none."""
    node, training = sweep.base.get("pruner"), sweep.base.get("training")
    config = OmegaConf.to_object(node) if isinstance(node, DictConfig) else None
    if not isinstance(config, PrunerConfig) or training is None:
        return None
    return make_pruner(config, steps=training.steps, evaluations=training.evaluations, seed=sweep.engine.seed)


def _space(base: DictConfig, choices: Mapping[str, Any], swept: Sequence[Override], extra: Mapping[str, Any], fixed: set[str]) -> Space:
    dimensions = {dimension.name: dimension for dimension in declared_space(base) if dimension.name not in fixed}
    known = [*names_of(base), *choices]

    def start(name: str) -> Any:
        if name in choices:
            return choices[name]
        if name not in known:
            expected = f"a name of the configuration (closest: {nearest(name, known)})"
            raise mistake(got=f"a sweep over {name}", expected=expected, do="correct it")
        return OmegaConf.select(base, name)

    known_ranges = declared(base, [*extra, *(override.key_or_group for override in swept)])
    for name, entry in extra.items():
        if name not in fixed:
            dimensions[name] = dimension_from_config(name, entry, known_ranges.get(name), start(name))
    for override in swept:
        name = override.key_or_group
        new = override.is_add() or override.is_force_add()
        dimension = dimension_of(override, known_ranges.get(name), None if new else start(name))
        dimensions[name] = replace(dimension, name=name)
    space = Space(tuple(dimensions.values()))
    check_base(base, space.names)
    return space


class HydraTrials:
    """The evaluation of a trial as a job of Hydra's serial launcher, here or (pickled) in a worker process."""

    def __init__(self, sweep: Sweep, request: Request) -> None:
        self._sweep, self._request = sweep, request
        self._launcher: Launcher | None = None

    def __getstate__(self) -> tuple[Any, ...]:
        return self._sweep, self._request, Singleton.get_state()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self._sweep, self._request, singletons = state
        Singleton.set_state(singletons)
        self._launcher = None

    def __call__(self, trial: Trial) -> Result:
        if self._launcher is None:
            self._launcher = serial_launcher(self._request)
        began = time.perf_counter()
        (returned,) = self._launcher.launch([_overrides(trial, self._sweep)], initial_job_idx=trial.number)
        return _result(returned, self._sweep.place.trials / str(trial.number), time.perf_counter() - began)


def serial_launcher(request: Request) -> Launcher:
    """Hydra's basic launcher, without its line for each job."""
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    logging.getLogger("hydra._internal.core_plugins.basic_launcher").setLevel(logging.WARNING)
    launcher = BasicLauncher()
    launcher.setup(hydra_context=request.context, task_function=request.task, config=request.config)
    return launcher


def _workers(sweep: Sweep, request: Request, launcher: Launcher) -> Workers:
    """Ours, unless the user chose a launcher of Hydra's that runs jobs side by side."""
    if type(launcher).__name__ == "BasicLauncher":
        return make_workers(sweep.workers, sweep.trial, HydraTrials(sweep, request), sweep.place.folder)
    return Batches(lambda batch: _launch(batch, sweep, launcher), sweep.workers.places)


def _launch(batch: Sequence[Trial], sweep: Sweep, launcher: Launcher) -> Iterator[Result]:
    """Run trials through Hydra's launcher."""
    for group in _runs_of_numbers(batch):
        began = time.perf_counter()
        returns = launcher.launch([_overrides(trial, sweep) for trial in group], initial_job_idx=group[0].number)
        seconds = time.perf_counter() - began
        for trial, returned in zip(group, returns, strict=True):
            yield _result(returned, sweep.place.trials / str(trial.number), seconds)


def _runs_of_numbers(batch: Sequence[Trial]) -> Iterator[list[Trial]]:
    """Split a batch where trial numbers have a gap: Hydra counts the jobs of one launch upwards."""
    group: list[Trial] = []
    for trial in batch:
        if group and trial.number != group[-1].number + 1:
            yield group
            group = []
        group.append(trial)
    if group:
        yield group


def _overrides(trial: Trial, sweep: Sweep) -> list[str]:
    searched = [f"{sweep.spelling.get(name, name)}={written(value)}" for name, value in trial.values.items()]
    given = {line.lstrip("+~").split("=", 1)[0] for line in sweep.fixed}
    logger = sweep.base.get("logger")
    called: dict[str, Any] = {}
    if isinstance(logger, DictConfig):  # of another application it may be anything
        called = labels(sweep.place.name, sweep.identity, trial.number, facts=trial.facts, tags=logger.get("tags") or [])
        called = {key: label for key, label in called.items() if key in logger and (key == "tags" or f"logger.{key}" not in given)}
    shown = [f"logger.{key}={literal(label)}" for key, label in called.items()]
    place = {"dir": sweep.place.trials, "subdir": trial.number}
    return [*sweep.fixed, *searched, *shown, *(f"hydra.sweep.{key}={literal(str(value))}" for key, value in place.items())]


def _result(returned: JobReturn, folder: Path, seconds: float) -> Result:
    """What a job gave: its number, and beside it whatever result.json in its run folder tells."""
    if returned.status != JobStatus.COMPLETED:
        error = returned._return_value
        return Result(None, seconds, failure=failure_of(error if isinstance(error, BaseException) else RuntimeError(str(error))))
    value, about = returned.return_value, {}
    with contextlib.suppress(ValueError, AttributeError):  # a result.json of another shape says nothing to us
        about = described(folder)
    metrics, facts = about.get("metrics", {}), about.get("facts", {})
    if "pruned_at" in facts and (value is None or isinstance(value, float)):
        return Result(None, seconds, metrics, facts, pruned=True, estimate=value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        got = f"a task that returned {type(value).__name__}"
        raise mistake(got=got, expected="the objective, a number", do="return it from the @hydra.main function")
    return Result(float(value), seconds, metrics, facts)


def _announce(sweep: Sweep, plan: Plan, finished: int) -> None:
    before = f", {finished} finished before" if finished else ""
    searched = f"{sweep.engine.name} over {len(sweep.space.names)} parameters, {plan.budget} trials{before}"
    print(f"study {sweep.place.name}: {searched} ({sweep.place.folder})", flush=True)


def _take_away(sweep: Sweep, ledger: PhaseLedger) -> None:
    """Write best.yaml and say what the best is, however the sweep ended."""
    trials = ledger.trials()
    best = best_of(trials, sweep.plan.maximize)
    if best is None:
        return
    path = sweep.place.folder / "best.yaml"
    write_best(path, sweep.place.name, best, fixed_values(sweep.base))
    failed = sum(trial.state == "failed" for trial in trials)
    finished = sum(trial.state != "running" for trial in trials)
    print(f"{finished} trials finished, {failed} failed; best {best.objective:.6g} in trial {best.number}:")
    for name, value in best.values.items():
        print(f"  {name}={value}")
    print(f"written to {path}", flush=True)
