"""The phase-1 protocol: sanity, baseline, search, validation, verdict (`synaptune phase1`).

All candidates share initialisation and data order (common random numbers), so that ranks reflect
parameters. The seeds of the validation are fresh, and its text, the test split, has not been used
to choose. Every finished run is stored at once: the same command continues after Ctrl-C or a kill,
and prints the verdict again when all is done. conf/protocol/phase1.yaml explains the settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from synaptune.analysis.cost import PlannedRuns
from synaptune.analysis.screening import MAX_CHOSEN
from synaptune.config.compose import ComposedConfig, compose_config
from synaptune.core.errors import user_error
from synaptune.protocols.config import SEED_OFFSETS, Phase1Config, read_protocol_config
from synaptune.protocols.estimate import estimate_protocol
from synaptune.protocols.final_report import write_final_report
from synaptune.protocols.inspection import SIDES
from synaptune.protocols.protocol import Protocol, print_message
from synaptune.protocols.sanity import run_sanity
from synaptune.protocols.screen import SPACE, add_space, count_runs, run_screen
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
from synaptune.search.optimizers.base import Observation
from synaptune.search.optimizers.pbt import PBT, count_trials
from synaptune.search.optimizers.registry import Engine, make_optimizer
from synaptune.search.space.space import Space, UnitPoint, make_space
from synaptune.search.trial import Trial
from synaptune.study.optimize import start_from_study
from synaptune.study.reader import SCREEN, SCREENING


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
    if config.dry_run or base.search.dry_run:
        steps = int(base.training.steps)
        return estimate_protocol(
            base,
            composed.location,
            lambda workers: plan_runs(
                config,
                space,
                workers=workers,
                steps=steps,
                slices=base.search.slices,
                is_screened=is_screened,
            ),
        )
    first_seed = int(base.seed) + SEED_OFFSETS["phase1"]
    with open_protocol(
        base,
        composed.location,
        space,
        optimizer=config.optimizer,
        budget=config.budget,
        seeds=range(first_seed, first_seed + config.seeds),
        searched=MAX_CHOSEN if is_screened else None,
        settings={"protocol": "phase1"}
        | ({} if config.final_steps is None else {"final_steps": config.final_steps}),
    ) as protocol:
        for dimension in space.dimensions:
            if not dimension.contains(value := OmegaConf.select(base, dimension.name)):
                print_message(
                    f"{dimension.name}: {value} lies outside {dimension.describe()};"
                    " baseline and search begin at its nearest end"
                )
        run_sanity(protocol, config)
        if is_screened:
            protocol = run_screen(protocol, config)
        if until == SCREEN:
            return protocol.study.read_note(SCREENING)
        summary, *points = _run_stages(protocol, config, prior)
        if config.report:
            write_final_report(protocol, *points)
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
    return base.search_space.name == SPACE


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
    config: Phase1Config,
    space: Space,
    *,
    workers: int = 1,
    steps: int,
    slices: int,
    is_screened: bool,
) -> list[PlannedRuns]:
    """Return the training runs of the protocol over a space, its two inspection runs included.

    The baseline and the first evaluation of the search are copies of a sanity run.

    Args:
        config: settings of the protocol.
        space: all parameters.
        workers: number of concurrent runs.
        steps: training steps of a run.
        slices: slices of a run of `pbt`.
        is_screened: whether the protocol screens the parameters.
    """
    searched = Space(space.dimensions[:MAX_CHOSEN]) if is_screened else space
    engine = Engine(config.optimizer, 0, workers, config.budget, slices=slices)
    optimizer = make_optimizer(engine, searched)
    sanity = config.sanity
    sanity_runs = sanity.seeds + sanity.candidates + sanity.repeats * (sanity.seeds - 1)
    longer = (config.final_steps or steps) / steps
    screen = []
    if is_screened:
        runs = count_runs(config, parameters=len(space.names), steps=steps)
        screen = [PlannedRuns(SCREEN, runs, length=config.screen_fraction)]
    search = PlannedRuns("search", config.budget - 1, at_once=optimizer.generation_size)
    if config.optimizer == PBT:  # no trial of a slice is a copy
        search = search._replace(runs=count_trials(engine), length=1.0 / slices)
    return [
        PlannedRuns("sanity", sanity_runs),
        *screen,
        search,
        PlannedRuns("validation", 2 * config.seeds, with_test=True, length=longer),
        *([PlannedRuns("portraits", len(SIDES), at_once=1)] if config.report else []),
    ]


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
    from rich.console import Console

    from synaptune.config.search_space import read_fixed_values
    from synaptune.report.findings import explain_context
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
    pairs = run_validation(protocol, baseline.unit, best.unit, steps=config.final_steps)
    seconds = sum(trial.facts.get("seconds", 0.0) for trial in protocol.study.read_trials())
    summary = summarise_study(
        name,
        trials,
        best,
        pairs=pairs,
        defaults=baseline.values,
        seconds=seconds,
        findings=explain_context(read_evidence(protocol)),
    )
    if protocol.objective.name == "pareto":
        front = summary["pareto"] = _summarise_front(protocol, trials)
        print_message(
            f"pareto: {len(front['front'])} trials on the front,"
            f" hypervolume {front['hypervolume']:.4g} (baseline 1)"
        )
    write_json(folder / "summary.json", summary)
    write_best(folder / "best.yaml", name, best, fixed, describe_summary(summary))
    print_verdict(summary, Console())
    print_message(f"written to {shown}/summary.json; use: python train.py tuned={shown}/best.yaml")
    return summary, baseline.unit, best.unit


def _run_baseline(protocol: Protocol) -> Trial:
    points = [(protocol.space.get_start(), protocol.seed)]
    ledger = protocol.make_ledger("baseline")
    (trial,) = run_points(protocol, ledger, points, label="baseline run")
    print_message(f"baseline: objective {require_objective(trial):.4f} at the defaults")
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
