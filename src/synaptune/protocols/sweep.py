"""A Hydra multirun as a search: a protocol whose only stage is the search (`hydra/sweeper=...`)."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf

from synaptune.analysis.cost import PlannedRuns
from synaptune.config.flat import (
    get_typed_group,
    is_training_config,
    read_group,
    resolve_references,
)
from synaptune.config.search_space import list_study_defaults, read_fixed_values
from synaptune.config.sweep import Sweep, SweepRequest, read_request, use_hydra_config
from synaptune.core.terminal import print_line
from synaptune.core.text import show_path
from synaptune.protocols.estimate import add_search_runs, apply_values, print_estimate
from synaptune.protocols.hydra_jobs import HydraEvaluation, HydraJobs, make_hydra_workers
from synaptune.protocols.protocol import Protocol
from synaptune.protocols.stages import (
    find_best_trial,
    measure_baseline,
    rerun_incumbents,
    run_search,
)
from synaptune.search.objective.score import ObjectiveConfig
from synaptune.search.optimizers.pbt import PBT, count_trials
from synaptune.search.optimizers.registry import Engine, GridOptimizer, make_optimizer
from synaptune.search.plan import Plan
from synaptune.search.runner import catch_interrupts
from synaptune.search.space.space import Space
from synaptune.search.trial import Trial, describe_failures
from synaptune.search.workers.base import NoWorkers
from synaptune.study.artifacts import USE, write_best, write_optimization_results
from synaptune.study.callbacks.notify import Notifier, NotifyConfig
from synaptune.study.location import StudyLocation
from synaptune.study.optimize import resume_engine, resume_space
from synaptune.study.provenance import get_code_version, get_device_name
from synaptune.study.study import PhaseLedger, Study
from synaptune.training.loggers.wandb_run import get_study_identity


def run_sweep(request: SweepRequest, make_launcher: Callable[[str], Launcher]) -> list[Trial]:
    """Search until the budget is spent; print the progress and the best trial.

    Args:
        request: what Hydra gives the sweeper.
        make_launcher: makes Hydra's launcher for a folder of run folders.

    Returns:
        The trials of the search; none of a dry run (`search.dry_run`).

    Raises:
        UserError: a mistake in the input, or too many failed trials.
    """
    with use_hydra_config(request.config):
        return _run_sweep(request, make_launcher)


def _run_sweep(request: SweepRequest, make_launcher: Callable[[str], Launcher]) -> list[Trial]:
    sweep = read_request(request)
    if sweep.search.dry_run:
        _print_estimate(sweep)
        return []
    launcher = make_launcher(str(sweep.location.trials_folder))
    notifier = Notifier(read_group(sweep.base, "notify", NotifyConfig), sweep.location.name)
    with (
        notifier.send_end(),
        catch_interrupts(),
        Study(
            sweep.location,
            sweep.configuration,
            maximize=sweep.plan.maximize,
            defaults=list_study_defaults(sweep.base),
            references=resolve_references(sweep.base),
        ) as study,
    ):
        engine = resume_engine(study, sweep.engine)
        sweep = replace(sweep, space=resume_space(sweep.space, study.read_trials()))
        protocol = Protocol(
            base=sweep.base,
            space=sweep.space,
            study=study,
            engine=engine,
            plan=_bound_budget(sweep.plan, engine, sweep.space),
            seeds=(),
            device=get_device_name() if is_training_config(sweep.base) else None,
            code_version=get_code_version(),
            pool=NoWorkers(),
            stop=sweep.stop,
            notifier=notifier,
            reuses_runs=False,
        )
        protocol, jobs = _prepare_jobs(protocol, sweep, request)
        seeds = sweep.search.seeds
        facts: dict[str, Any] = {"seeds": seeds} if seeds > 1 else {}
        ledger = protocol.make_ledger("search", **facts)
        _announce(protocol, ledger)
        pool = make_hydra_workers(jobs, request, launcher, protocol.base)
        best = None
        try:
            protocol = replace(protocol, pool=pool)
            trials = run_search(protocol, ledger, protocol.plan, prior=sweep.prior, label=None)
            best = rerun_incumbents(protocol, trials)
        finally:
            pool.close()
            _write_results(protocol, ledger, best)
        _attach_results(sweep.location)
    return trials


def _attach_results(location: StudyLocation) -> None:
    """Add the results to the W&B run of the sweep, if it has one."""
    from synaptune.study.callbacks.wandb_search import read_run_config

    if read_run_config(location.folder) is not None:
        from synaptune.report.wandb_results import attach_results
        from synaptune.study.reader import read_study

        attach_results(read_study(location.url, location.name), location.folder)


def _print_estimate(sweep: Sweep) -> None:
    budget = _bound_budget(sweep.plan, sweep.engine, sweep.space).budget
    assert budget is not None
    optimizer = make_optimizer(sweep.engine, sweep.space)
    at_once = optimizer.generation_size if optimizer.learns else None
    length = 1.0 / sweep.search.slices if sweep.engine.name == PBT else 1.0
    node = get_typed_group(sweep.base, "objective", ObjectiveConfig)
    plan = add_search_runs(
        [PlannedRuns("search", budget, at_once=at_once, length=length)],
        sweep.search,
        None if node is None else OmegaConf.to_object(node),
    )
    base = apply_values(sweep.base, sweep.space.to_values(sweep.space.get_start()))
    print_estimate(plan, base, sweep.location, workers=sweep.workers.slots)


def _bound_budget(plan: Plan, engine: Engine, space: Space) -> Plan:
    """Return the plan; some optimizers have no more points than their size."""
    if engine.name == PBT:
        return replace(plan, budget=count_trials(engine))
    if engine.name != "grid":
        return plan
    grid = make_optimizer(engine, space)
    assert isinstance(grid, GridOptimizer)
    return replace(plan, budget=min(grid.size, plan.budget or grid.size))


def _prepare_jobs(
    protocol: Protocol, sweep: Sweep, request: SweepRequest
) -> tuple[Protocol, HydraJobs]:
    """Return the jobs of the sweep, with the baseline that the objective of our runs needs."""
    objective = protocol.objective if protocol.has_own_objective else None
    jobs = HydraJobs(sweep, objective, get_study_identity(protocol.study))
    if objective is None:
        return protocol, jobs
    plain = replace(jobs, objective=None, overrides=("objective.name=val_loss", "pruner.name=none"))
    baseline = measure_baseline(protocol, lambda _: HydraEvaluation(plain, request))
    if baseline is None:
        return protocol, jobs
    base = protocol.base.copy()
    base.objective.baseline = OmegaConf.structured(baseline)
    protocol = replace(protocol, base=base)
    values = tuple(f"objective.baseline.{name}={value}" for name, value in baseline.metrics.items())
    return protocol, replace(jobs, objective=protocol.objective, overrides=values)


def _announce(protocol: Protocol, ledger: PhaseLedger) -> None:
    finished = sum(trial.state != "running" for trial in ledger.read_trials())
    if protocol.space.is_point:
        print_line("nothing to search, one trial; a search needs e.g. NAME=interval(LOW,HIGH)")
    print_line(
        f"study {protocol.study.location.name}: {protocol.engine.name} over"
        f" {len(protocol.space.names)} parameters, {protocol.plan.budget} trials"
        + (f", {finished} finished before" if finished else "")
        + f" ({protocol.study.location.shown_folder})"
    )


def _write_results(protocol: Protocol, ledger: PhaseLedger, best: Trial | None) -> None:
    """Write best.yaml and optimization_results.yaml and print the best, however the sweep ended."""
    trials = ledger.read_trials()
    best = best or find_best_trial(protocol, trials)
    failed = [trial for trial in trials if trial.state == "failed"]
    finished = sum(trial.state != "running" for trial in trials)
    count = f"{finished} trials finished, {len(failed)} failed"
    if best is None and len(failed) < finished:
        print_line(f"{count}; no trial is complete")
    if best is None:
        return
    folder, name = protocol.study.location.folder, protocol.study.location.name
    fixed = read_fixed_values(protocol.base)
    use = USE if is_training_config(protocol.base) else "its parameters as overrides NAME=VALUE"
    write_best(folder / "best.yaml", name, best, fixed, use=use)
    write_optimization_results(folder / "optimization_results.yaml", best, fixed)
    print_line(f"{count}; best {best.objective:.6g} in trial {best.number}:")
    for name, value in best.values.items():
        print_line(f"  {name}={value}")
    if failed:
        print_line("failed:")
        print_line(textwrap.indent(describe_failures(failed), "  "))
    print_line(f"written to {show_path(folder / 'best.yaml')}")
