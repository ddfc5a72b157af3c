"""The phase-1 protocol (`synaptune phase1`).

Its stages are sanity, screening, baseline, search, validation, ablation, verdict and report.

All candidates share initialisation and data order (common random numbers), so that ranks reflect
parameters. The seeds of the validation are fresh, and its text, the test split, has not been used
to choose. Every finished run is stored at once: the same command continues after Ctrl-C or a kill,
and prints the verdict again when all is done. conf/protocol/phase1.yaml explains the settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.analysis.cost import PlannedRuns
from synaptune.analysis.results import AblationRow
from synaptune.analysis.screening import MAX_CHOSEN
from synaptune.config.compose import ComposedConfig, compose_config
from synaptune.config.flat import select_value
from synaptune.core.errors import user_error
from synaptune.protocols.ablation import (
    plan_short_ablation,
    print_rows,
    run_short_ablation,
    to_plain,
)
from synaptune.protocols.config import SEED_OFFSETS, Phase1Config, read_protocol_config
from synaptune.protocols.estimate import compute_final_length, estimate_protocol
from synaptune.protocols.final_report import write_final_report
from synaptune.protocols.inspection import SIDES
from synaptune.protocols.protocol import Protocol, print_message
from synaptune.protocols.repeats import REPEAT_OF, run_repeats, store_repeats
from synaptune.protocols.sanity import run_sanity
from synaptune.protocols.screen import SPACE, add_space, count_evaluations, count_runs, run_screen
from synaptune.protocols.session import open_protocol
from synaptune.protocols.stages import (
    choose_trial,
    keep_best_file,
    read_evidence,
    require_objective,
    run_points,
    run_search,
    run_validation,
)
from synaptune.search.objective.score import MAXIMIZED
from synaptune.search.optimizers.base import Observation
from synaptune.search.optimizers.pbt import PBT, count_trials
from synaptune.search.optimizers.registry import Engine, make_optimizer
from synaptune.search.space.space import Space, UnitPoint, make_space
from synaptune.search.trial import Trial
from synaptune.study.location import StudyLocation
from synaptune.study.optimize import start_from_study
from synaptune.study.reader import ABLATION, SCREEN, SCREENING


def run_phase1(overrides: Sequence[str], *, until: str | None = None) -> dict[str, Any]:
    """Run the protocol from wherever its study has it.

    Args:
        overrides: of conf/train.yaml, and `protocol.*` of conf/protocol/phase1.yaml.
        until: `screen` ends after the screening; None runs the whole protocol.

    Returns:
        The content of summary.json, or of screening.json; of a dry run the estimate.

    Raises:
        UserError: a mistake in the input, or too many failed runs.
    """
    composed = compose_phase1(overrides)
    base, config = composed.base, read_config(composed)
    is_screened = has_screening(base)
    _check_screening(base, config, until=until)
    space, prior = start_from_study(build_space(composed), base.search.start)
    if config.dry_run:
        return estimate_protocol(
            base,
            composed.location,
            lambda workers: plan_runs(config, base, space, workers=workers),
        )
    open_study = _make_opener(base, config)
    with open_study(composed.location, space) as protocol:
        for dimension in space.dimensions:
            if not dimension.contains(value := OmegaConf.select(base, dimension.name)):
                print_message(
                    f"{dimension.name}: {value} lies outside {dimension.describe()};"
                    " start and search begin at its nearest end"
                )
        run_sanity(protocol, config)
        if is_screened:
            protocol = run_screen(protocol, config)
        if until == SCREEN:
            return protocol.study.read_note(SCREENING)
        summary, *points = _run_stages(protocol, config, prior)
        if config.repeats == 1:
            if config.report:
                write_final_report(protocol, *points)
            return summary
    return _run_repeats(protocol, config, summary, points, prior=prior, open_study=open_study)


OpenStudy = Callable[..., AbstractContextManager[Protocol]]


def _make_opener(base: DictConfig, config: Phase1Config) -> OpenStudy:
    """Return a function that opens a study of the protocol.

    It takes the location, the space, and the distance of the seed of the search from `seed`.
    """
    first_seed = int(base.seed) + SEED_OFFSETS["phase1"]

    def open_study(
        location: StudyLocation, space: Space, search_seed: int = 0
    ) -> AbstractContextManager[Protocol]:
        return open_protocol(
            base,
            location,
            space,
            optimizer=config.optimizer,
            budget=config.budget,
            seeds=range(first_seed, first_seed + config.seeds),
            search_seed=search_seed,
            settings={"protocol": "phase1"},
            final_steps=config.final_steps,
        )

    return open_study


def _run_repeats(
    first: Protocol,
    config: Phase1Config,
    summary: dict[str, Any],
    points: Sequence[UnitPoint],
    *,
    prior: Sequence[Observation],
    open_study: OpenStudy,
) -> dict[str, Any]:
    """Run the other searches and write their spread to the first study; return its summary."""
    from synaptune.study.artifacts import write_json

    location, space = first.study.location, first.space
    plain = replace(config, ablation=False)

    def run_one(place: StudyLocation, search_seed: int) -> dict[str, Any]:
        with open_study(place, space, search_seed) as protocol:
            protocol.study.write_note_once(REPEAT_OF, location.name)
            return _run_stages(protocol, plain, prior)[0]

    repeats = run_repeats(location, config.repeats, summary, space, run_one=run_one)
    whole = first.full_space or space
    with open_study(replace(location, resume="must"), whole) as protocol:
        protocol = replace(protocol, space=space, full_space=first.full_space)
        summary |= {"repeats": store_repeats(protocol.study, repeats)}
        write_json(location.folder / "summary.json", summary)
        if config.report:
            before, after = points
            write_final_report(protocol, before, after)
    return summary


def read_config(composed: ComposedConfig) -> Phase1Config:
    """Return the settings of the protocol; raise UserError for values that cannot run."""
    assert composed.protocol is not None
    return read_protocol_config(Phase1Config, composed.protocol)


def compose_phase1(overrides: Sequence[str]) -> ComposedConfig:
    """Compose the configuration of the protocol, with the screened space unless another is named.

    Raises:
        UserError: an override does not fit.
    """
    composed = compose_config(overrides, protocol="phase1")
    words = add_space(overrides, is_on=read_config(composed).screen)
    if len(words) == len(overrides):
        return composed
    screened = compose_config(words, protocol="phase1", study="phase1")
    return screened._replace(fixed_names=composed.fixed_names)


def has_screening(base: DictConfig) -> bool:
    """Return whether the protocol screens the parameters of its space."""
    return select_value(base, "search_space.name") == SPACE


def _check_screening(base: DictConfig, config: Phase1Config, *, until: str | None) -> None:
    if has_screening(base) and not config.screen:
        raise user_error(
            got="search_space=screened with protocol.screen=false",
            expected="a screening, or another space",
            do="leave one of them out; search_space=all searches every parameter",
        )
    if has_screening(base) and base.search.start is not None:
        raise user_error(
            got=f"search.start={base.search.start} with a screening",
            expected="a search that begins where the screening left the values",
            do="name the space: search_space=phase1, or FILE.yaml of an earlier screening",
        )
    if until == SCREEN and not has_screening(base):
        raise user_error(
            got=f"search_space={base.search_space.name} for a screening",
            expected="search_space=screened",
            do="leave it out",
        )


def plan_runs(
    config: Phase1Config, base: DictConfig, space: Space, *, workers: int = 1
) -> list[PlannedRuns]:
    """Return the training runs of the protocol over a space, its two inspection runs included.

    The baseline and the first evaluation of the search are copies of a sanity run. The ablation is
    counted as if every searched parameter moved.

    Args:
        config: settings of the protocol.
        base: the configuration.
        space: all parameters.
        workers: number of concurrent runs.
    """
    steps, is_screened = int(base.training.steps), has_screening(base)
    searched = Space(space.dimensions[:MAX_CHOSEN]) if is_screened else space
    engine = Engine(config.optimizer, 0, workers, config.budget, slices=base.search.slices)
    optimizer = make_optimizer(engine, searched)
    sanity = config.sanity
    sanity_runs = sanity.seeds + sanity.candidates + sanity.repeats * (sanity.seeds - 1)
    longer = compute_final_length(config.final_steps, base)
    ablation = plan_short_ablation(config, moved=len(searched.names), steps=steps)
    ablated = ablation.parameters * ablation.seeds
    plan = [PlannedRuns("sanity", sanity_runs)]
    if is_screened:
        runs = count_runs(config, parameters=len(space.names), steps=steps)
        short, evaluations = config.screen_fraction, count_evaluations(base)
        plan.append(PlannedRuns(SCREEN, runs, length=short, evaluations=evaluations))
    search = PlannedRuns("search", config.budget - 1, at_once=optimizer.generation_size)
    if config.optimizer == PBT:  # no trial of a slice is a copy
        search = search._replace(runs=count_trials(engine), length=1.0 / engine.slices)
    plan += [
        search,
        PlannedRuns("validation", 2 * config.seeds, with_test=True, length=longer),
    ]
    if ablated and base.objective.name not in MAXIMIZED:
        plan.append(PlannedRuns(ABLATION, ablated, with_test=True, length=longer))
    if more := config.repeats - 1:
        plan += [
            PlannedRuns("repeats", more * config.budget, at_once=optimizer.generation_size),
            PlannedRuns("repeats, test", more * 2 * config.seeds, with_test=True, length=longer),
        ]
    if config.report:
        plan.append(PlannedRuns("inspection", len(SIDES), at_once=1, length=longer))
    return plan


def plan_unscreened(
    config: Phase1Config, base: DictConfig, space: Space, *, workers: int = 1, chosen: int
) -> tuple[int, list[PlannedRuns]]:
    """Return the budget and the runs of a search of all parameters, as dense as the screened one.

    Both have as many evaluations for each parameter, which is the least that a larger space needs.

    Args:
        config: settings of the screened protocol.
        base: its configuration.
        space: all parameters.
        workers: number of concurrent runs.
        chosen: number of parameters that the screening leaves.
    """
    plain = base.copy()
    plain.search_space.name = "all"
    budget = math.ceil(config.budget * len(space.names) / chosen)
    unscreened = replace(config, budget=budget)
    return budget, plan_runs(unscreened, plain, space, workers=workers)


def build_space(composed: ComposedConfig) -> Space:
    """Return the parameters of the search space that the command line does not fix.

    A screening leaves out those that the configured model does not use.

    Raises:
        UserError: the space does not fit the configuration.
    """
    from synaptune.config.search_space import check_search, find_unused, read_dimensions

    dimensions = read_dimensions(composed.base)
    if has_screening(composed.base):
        unused = find_unused(composed.base)
        dimensions = [dimension for dimension in dimensions if dimension.name not in unused]
    free = [dimension for dimension in dimensions if dimension.name not in composed.fixed_names]
    space = make_space(free)
    check_search(composed.base, space.names)
    return space


def _run_stages(
    protocol: Protocol, config: Phase1Config, prior: Sequence[Observation]
) -> tuple[dict[str, Any], UnitPoint, UnitPoint]:
    """Run everything from the baseline on; return the summary and the two validated points."""
    from synaptune.config.search_space import read_fixed_values
    from synaptune.core.console import make_console
    from synaptune.report.findings import explain_ablation, explain_context
    from synaptune.report.summary import describe_summary, print_verdict, summarise_study
    from synaptune.study.artifacts import write_best, write_json

    name, folder = protocol.study.location.name, protocol.study.location.folder
    shown = protocol.study.location.shown_folder
    print_message(
        f"study {name} ({shown}): {protocol.plan.budget} evaluations"
        f" of {len(protocol.space.names)} parameters"
    )
    baseline = _run_baseline(protocol)
    ledger = protocol.make_ledger("search", seeds=protocol.search.seeds)
    with keep_best_file(protocol):
        trials = run_search(protocol, ledger, protocol.plan, prior=prior)
    best, fixed = choose_trial(protocol, trials) or baseline, read_fixed_values(protocol.base)
    write_best(folder / "best.yaml", name, best, fixed)
    pairs = run_validation(protocol, baseline.unit, best.unit)

    def summarise(ablation: Sequence[AblationRow]) -> dict[str, Any]:
        evidence = read_evidence(protocol)
        findings = [*explain_context(evidence), *explain_ablation(evidence)]
        summary = summarise_study(
            name,
            trials,
            best,
            pairs=pairs,
            defaults=baseline.values,
            seconds=sum(evidence.seconds_by_phase.values()),
            findings=findings,
            ablation=to_plain(ablation),
        )
        write_json(folder / "summary.json", summary)
        write_best(folder / "best.yaml", name, best, fixed, describe_summary(summary))
        return summary

    summarise([])  # the verdict is stored before the ablation, which may be interrupted
    ablation = run_short_ablation(protocol, config, baseline.unit, best.unit)
    summary = summarise(ablation)
    if protocol.objective.name == "pareto":
        front = summary["pareto"] = _summarise_front(protocol, trials)
        print_message(
            f"pareto: {len(front['front'])} trials on the front,"
            f" hypervolume {front['hypervolume']:.4g} (baseline 1)"
        )
        write_json(folder / "summary.json", summary)
    if ablation:
        print_rows(ablation)
    print_verdict(summary, make_console())
    print_message(f"written to {shown}/summary.json; use: python train.py tuned={shown}/best.yaml")
    return summary, baseline.unit, best.unit


def _run_baseline(protocol: Protocol) -> Trial:
    points = [(protocol.space.get_start(), protocol.seed)]
    ledger = protocol.make_ledger("baseline")
    (trial,) = run_points(protocol, ledger, points, label="baseline run")
    print_message(f"start: objective {require_objective(trial):.4f} at the defaults")
    return trial


def _summarise_front(protocol: Protocol, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return the Pareto front of the complete trials, each with its changes from the baseline."""
    from synaptune.search.objective.pareto import hypervolume, pareto_front
    from synaptune.search.objective.score import compute_costs

    complete = [trial for trial in trials if trial.state == "complete"]
    costs = [compute_costs(protocol.objective, trial.facts) for trial in complete]
    front = [
        {"trial": trial.number, "changes": cost}
        for trial, cost, is_on_front in zip(complete, costs, pareto_front(costs), strict=True)
        if is_on_front
    ]
    return {"front": front, "hypervolume": hypervolume(costs)}
