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
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from synaptune.config.flat import list_names
from synaptune.config.search_space import (
    check_search,
    find_declared_dimensions,
    make_study_configuration,
    read_dimensions,
    read_fixed_values,
)
from synaptune.config.sweep_syntax import format_value, parse_parametrization, parse_sweep
from synaptune.core.errors import find_nearest, user_error
from synaptune.core.text import get_first_line, get_override_key
from synaptune.search.config import SearchConfig
from synaptune.search.loop import Plan
from synaptune.search.optimizers.base import Observation
from synaptune.search.optimizers.registry import Engine, GridOptimizer, make_optimizer
from synaptune.search.pruning import Pruner, PrunerConfig, make_pruner
from synaptune.search.space.file import format_literal
from synaptune.search.space.space import Space
from synaptune.search.stopping import StopConfig, check_stop
from synaptune.search.trial import Result, Trial, find_best, make_failure
from synaptune.search.workers.base import BatchWorkers, Workers
from synaptune.search.workers.config import (
    TrialConfig,
    WorkersConfig,
    check_execution,
    make_workers,
)
from synaptune.study.artifacts import read_run_facts, write_best
from synaptune.study.callbacks.base import TERMINAL_ONLY, Show, open_callbacks
from synaptune.study.callbacks.notify import Notifier, NotifyConfig
from synaptune.study.location import StudyConfig, StudyLocation, resolve_location
from synaptune.study.optimize import (
    Company,
    PhaseSearch,
    SearchOptions,
    optimize,
    resume_engine,
    start_from_study,
)
from synaptune.study.provenance import get_code_version, get_device_name
from synaptune.study.study import PhaseLedger, Study
from synaptune.training.config import LoggerConfig
from synaptune.training.loggers.wandb_run import get_study_identity, make_run_labels


@dataclass(frozen=True)
class SweepRequest:
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
    prior: tuple[Observation, ...]
    configuration: dict[str, Any]
    identity: str = ""


def read_request(request: SweepRequest) -> Sweep:
    """Read a request and check it whole, before anything runs; raises UserError."""
    optim = request.optim
    plan = Plan(optim.budget, optim.maximize, optim.max_failure_rate)
    plan.check()
    if optim.num_workers is not None and optim.num_workers < 1:
        raise user_error(
            got=f"num_workers={optim.num_workers}",
            expected="at least 1 trial at a time",
            do="correct it",
        )
    if plan.budget is None and optim.optimizer != "grid":
        expected = "a number of trials (only a grid has an end of its own)"
        raise user_error(got="budget=null", expected=expected, do="set hydra.sweeper.optim.budget")
    overrides = OverridesParser.create(config_loader=request.context.config_loader).parse_overrides(
        list(request.arguments)
    )
    fixed = [override for override in overrides if not override.is_sweep_override()]
    swept = [override for override in overrides if override.is_sweep_override()]
    lines = [str(override.input_line) for override in fixed]
    base = request.context.config_loader.load_sweep_config(request.config, lines)
    job_name, choices = request.config.hydra.job.name, dict(base.hydra.runtime.choices)
    OmegaConf.set_struct(base, False)
    del base["hydra"]
    space = _build_space(
        base, choices, swept, request.parametrization, {override.key_or_group for override in fixed}
    )
    study, begin, workers, trial, stop = (
        _read_group(base, name, kind) for name, kind in _GROUP_TYPES.items()
    )
    workers.count = optim.num_workers or (1 if workers.count is None else workers.count)
    check_execution(workers, trial)
    check_stop(stop)
    _check_single_runs(begin)
    plan = replace(plan, retries=trial.retries)
    space, prior = start_from_study(space, begin.start, maximize=plan.maximize)
    kind = OmegaConf.select(base, "search_space.name") or job_name
    seed = random.SystemRandom().randrange(2**31) if optim.seed is None else optim.seed
    engine = Engine(
        optim.optimizer, seed, workers.slots, plan.budget, optim.noisy, request.grid_points
    )
    make_optimizer(engine, space)  # refuses an unknown name before there is a study
    settings = {"optimizer": engine.name, "seed": optim.seed, "maximize": optim.maximize}
    if engine.name == "grid":
        settings["grid_points"] = engine.grid_points
    return Sweep(
        fixed_overrides=lines,
        base=base,
        space=space,
        spelling={override.key_or_group: override.get_key_element() for override in swept},
        plan=plan,
        engine=engine,
        location=resolve_location(study, f"{kind}-{engine.name.lower()}"),
        workers=workers,
        trial=trial,
        stop=stop,
        prior=prior,
        configuration=make_study_configuration(base, space, settings),
    )


_GROUP_TYPES = {
    "study": StudyConfig,
    "search": SearchConfig,
    "workers": WorkersConfig,
    "trial": TrialConfig,
    "stop": StopConfig,
}


def _read_group(base: DictConfig, name: str, kind: type) -> Any:
    """A group of the configuration as its dataclass; any application may leave it out, or mean something of its own by the name."""
    node, known = base.get(name), {entry.name for entry in fields(kind)}
    ours = isinstance(node, DictConfig) and known.issuperset(node)
    try:
        return OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(kind), node if ours else {})
        )
    except OmegaConfBaseException as error:
        got = f"{name}: {get_first_line(error)}"
        raise user_error(
            got=got,
            expected=f"values of the right kinds for {', '.join(sorted(known))}",
            do="correct them",
        ) from error


def _check_single_runs(begin: SearchConfig) -> None:
    """Refuse what only a protocol does: here a candidate is one job of Hydra's."""
    if begin.seeds != 1 or begin.incumbents > 1:
        got = f"search.seeds={begin.seeds}, search.incumbents={begin.incumbents} in a multirun"
        do = "leave them out, or search with a protocol (make sweep-phase1)"
        raise user_error(
            got=got,
            expected="search.seeds=1 and search.incumbents=0: each candidate is one run",
            do=do,
        )


def run_sweep(request: SweepRequest, make_launcher: Callable[[str], Launcher]) -> list[Trial]:
    """Search until the budget is spent; prints progress and the best. Raises UserError; a killed sweep continues.

    launcher_in: makes Hydra's launcher for a sweep folder.
    """
    sweep = read_request(request)
    launcher = make_launcher(str(sweep.location.trials_folder))
    notifier = Notifier(_read_group(sweep.base, "notify", NotifyConfig), sweep.location.name)
    with (
        notifier.send_end(),
        Study(sweep.location, sweep.configuration, maximize=sweep.plan.maximize) as study,
    ):
        sweep = replace(sweep, identity=get_study_identity(study))
        engine = resume_engine(study, sweep.engine)
        plan = sweep.plan
        if engine.name == "grid":
            grid = make_optimizer(engine, sweep.space)
            assert isinstance(grid, GridOptimizer)
            plan = replace(plan, budget=min(grid.size, plan.budget or grid.size))
        seed = sweep.base.get("seed")
        facts: dict[str, Any] = {
            "seed": seed if isinstance(seed, int) else None,
            "code_version": get_code_version(),
        }
        if "synapse" in sweep.base:
            facts["device"] = get_device_name()
        ledger = PhaseLedger(study, sweep.space, "search", facts)
        earlier = [trial for trial in ledger.read_trials() if trial.state != "running"]
        _announce(sweep, plan, len(earlier))
        workers = _choose_workers(sweep, request, launcher)
        try:
            steering = SearchOptions(_choose_pruner(sweep), sweep.prior, sweep.stop)
            show = Show(plan.budget, maximize=plan.maximize, earlier=earlier, stop=sweep.stop)
            with open_callbacks(ledger, _read_logger(sweep), show) as listeners:
                (trials,) = optimize(
                    [PhaseSearch(ledger, engine, plan, steering, Company(listeners, notifier))],
                    workers,
                )
        finally:
            workers.close()
            _write_best(sweep, ledger)
    return trials


def _read_logger(sweep: Sweep) -> LoggerConfig:
    """What our own configuration wants shown and logged; another application has a view in the terminal."""
    config = (
        OmegaConf.to_object(sweep.base.logger)
        if isinstance(sweep.base.get("logger"), DictConfig)
        else None
    )
    return config if isinstance(config, LoggerConfig) else TERMINAL_ONLY


def _choose_pruner(sweep: Sweep) -> Pruner | None:
    """The pruner of our own runs; another application has none."""
    node, training = sweep.base.get("pruner"), sweep.base.get("training")
    config = OmegaConf.to_object(node) if isinstance(node, DictConfig) else None
    if not isinstance(config, PrunerConfig) or training is None:
        return None
    return make_pruner(
        config, steps=training.steps, evaluations=training.evaluations, seed=sweep.engine.seed
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


class HydraEvaluation:
    """The evaluation of a trial as a job of Hydra's serial launcher, here or (pickled) in a worker process."""

    def __init__(self, sweep: Sweep, request: SweepRequest) -> None:
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
            self._launcher = make_serial_launcher(self._request)
        began = time.perf_counter()
        (returned,) = self._launcher.launch(
            [_build_overrides(trial, self._sweep)], initial_job_idx=trial.number
        )
        return _read_result(
            returned,
            self._sweep.location.trials_folder / str(trial.number),
            time.perf_counter() - began,
        )


def make_serial_launcher(request: SweepRequest) -> Launcher:
    """Return the chosen launcher, which is Hydra's basic one, without its line for each job."""
    launcher = Plugins.instance().instantiate_launcher(
        hydra_context=request.context, task_function=request.task, config=request.config
    )
    logging.getLogger(type(launcher).__module__).setLevel(logging.WARNING)
    return launcher


def _choose_workers(sweep: Sweep, request: SweepRequest, launcher: Launcher) -> Workers:
    """Ours, unless the user chose a launcher of Hydra's that runs jobs side by side."""
    if request.config.hydra.runtime.choices["hydra/launcher"] == "basic":
        return make_workers(
            sweep.workers, sweep.trial, HydraEvaluation(sweep, request), sweep.location.folder
        )
    return BatchWorkers(lambda batch: _launch(batch, sweep, launcher), sweep.workers.slots)


def _launch(batch: Sequence[Trial], sweep: Sweep, launcher: Launcher) -> Iterator[Result]:
    """Run trials through Hydra's launcher."""
    for group in _split_at_gaps(batch):
        began = time.perf_counter()
        returns = launcher.launch(
            [_build_overrides(trial, sweep) for trial in group], initial_job_idx=group[0].number
        )
        seconds = time.perf_counter() - began
        for trial, returned in zip(group, returns, strict=True):
            yield _read_result(returned, sweep.location.trials_folder / str(trial.number), seconds)


def _split_at_gaps(batch: Sequence[Trial]) -> Iterator[list[Trial]]:
    """Split a batch where trial numbers have a gap: Hydra counts the jobs of one launch upwards."""
    group: list[Trial] = []
    for trial in batch:
        if group and trial.number != group[-1].number + 1:
            yield group
            group = []
        group.append(trial)
    if group:
        yield group


def _build_overrides(trial: Trial, sweep: Sweep) -> list[str]:
    searched = [
        f"{sweep.spelling.get(name, name)}={format_value(value)}"
        for name, value in trial.values.items()
    ]
    given = {get_override_key(line) for line in sweep.fixed_overrides}
    logger = sweep.base.get("logger")
    called: dict[str, Any] = {}
    if isinstance(logger, DictConfig):  # of another application it may be anything
        called = make_run_labels(
            sweep.location.name,
            sweep.identity,
            trial.number,
            facts=trial.facts,
            tags=logger.get("tags") or [],
        )
        called = {
            key: label
            for key, label in called.items()
            if key in logger and (key == "tags" or f"logger.{key}" not in given)
        }
    shown = [f"logger.{key}={format_literal(label)}" for key, label in called.items()]
    place = {"dir": sweep.location.trials_folder, "subdir": trial.number}
    return [
        *sweep.fixed_overrides,
        *searched,
        *shown,
        *(f"hydra.sweep.{key}={format_literal(str(value))}" for key, value in place.items()),
    ]


def _read_result(returned: JobReturn, folder: Path, seconds: float) -> Result:
    """What a job gave: its number, and beside it whatever result.json in its run folder tells."""
    if returned.status != JobStatus.COMPLETED:
        # The public `return_value` would also print a line to stderr.
        error = returned._return_value
        return Result(
            None,
            seconds,
            failure=make_failure(
                error if isinstance(error, BaseException) else RuntimeError(str(error))
            ),
        )
    value, about = returned.return_value, {}
    with contextlib.suppress(
        ValueError, AttributeError
    ):  # a result.json of another shape says nothing to us
        about = read_run_facts(folder)
    metrics, facts = about.get("metrics", {}), about.get("facts", {})
    if "pruned_at" in facts and (value is None or isinstance(value, float)):
        return Result(None, seconds, metrics, facts, pruned=True, estimate=value)
    if not isinstance(value, int | float) or isinstance(value, bool):
        got = f"a task that returned {type(value).__name__}"
        raise user_error(
            got=got,
            expected="the objective, a number",
            do="return it from the @hydra.main function",
        )
    return Result(float(value), seconds, metrics, facts)


def _announce(sweep: Sweep, plan: Plan, finished: int) -> None:
    before = f", {finished} finished before" if finished else ""
    searched = f"{sweep.engine.name} over {len(sweep.space.names)} parameters, {plan.budget} trials{before}"
    print(f"study {sweep.location.name}: {searched} ({sweep.location.folder})", flush=True)


def _write_best(sweep: Sweep, ledger: PhaseLedger) -> None:
    """Write best.yaml and say what the best is, however the sweep ended."""
    trials = ledger.read_trials()
    best = find_best(trials, sweep.plan.maximize)
    if best is None:
        return
    path = sweep.location.folder / "best.yaml"
    write_best(path, sweep.location.name, best, read_fixed_values(sweep.base))
    failed = sum(trial.state == "failed" for trial in trials)
    finished = sum(trial.state != "running" for trial in trials)
    print(
        f"{finished} trials finished, {failed} failed; best {best.objective:.6g} in trial {best.number}:"
    )
    for name, value in best.values.items():
        print(f"  {name}={value}")
    print(f"written to {path}", flush=True)
