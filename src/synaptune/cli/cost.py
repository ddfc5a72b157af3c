"""`synaptune cost`: device hours, money and days of a protocol before it runs."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from synaptune.cli.arguments import (
    JSON_ARGUMENT,
    QUIET_ARGUMENT,
    ArgumentTable,
    add_subcommand,
    check_values,
    print_json,
)

if TYPE_CHECKING:
    from synaptune.analysis.cost import PlanCost, PlannedRuns
    from synaptune.config.compose import ComposedConfig
    from synaptune.protocols.config import Phase1Config, Phase2Config
    from synaptune.protocols.estimate import RunMeasure
    from synaptune.search.space.space import Space

_ARGUMENTS: ArgumentTable = {
    "--plan": dict(
        choices=("phase1", "phase2", "all48"),
        default="phase1",
        help="protocol: phase 1, phase 2, or phase 1 over all parameters",
    ),
    "--devices": dict(
        type=int,
        default=1,
        metavar="N",
        help="devices that run at the same time (default %(default)s)",
    ),
    "--price": dict(type=float, metavar="X", help="price of a device hour, in any currency"),
    "--study": dict(
        metavar="STUDY",
        help="study below outputs/studies whose runs give the seconds, instead of a measurement",
    ),
    "--steps": dict(
        type=int, default=20, metavar="N", help="steps that are timed (default %(default)s)"
    ),
    "--warmup": dict(
        type=int, default=5, metavar="N", help="steps before them, not timed (default %(default)s)"
    ),
    **JSON_ARGUMENT,
    **QUIET_ARGUMENT,
    "overrides": dict(
        nargs="*",
        metavar="NAME=VALUE",
        help="overrides of the run and the protocol, e.g. scale=gpu protocol.budget=100",
    ),
}


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    summary = "estimate the device hours, money and days of a plan from a measured step time"
    add_subcommand(commands, "cost", summary, _ARGUMENTS, _run_cost)


def _run_cost(options: argparse.Namespace) -> None:
    from synaptune.analysis.cost import price_plan
    from synaptune.protocols.estimate import measure_run, read_study_measure
    from synaptune.study.location import StudyConfig, resolve_location

    _check_options(options)
    composed, config, space, plan = _plan_protocol(options)
    measure = (
        read_study_measure(resolve_location(StudyConfig(), options.study))
        if options.study
        else measure_run(composed.base, steps=options.steps, warmup=options.warmup)
    )
    notes = measure.notes + [
        f"a generation of {stage.at_once} ends before the next begins"
        for stage in plan
        if stage.name in ("search", "joint")
    ]
    notes.append(
        f"one run at a time on each of {options.devices} equal devices; no run fails or ends early;"
        " the time of the optimizer is left out"
    )
    cost = price_plan(
        plan, measure.seconds, devices=options.devices, start=measure.start, price=options.price
    )
    screening = _price_screening(options, composed, config, space, cost, measure)
    if screening is not None:
        notes.append(screening.pop("text"))
    if options.json:
        settings = {
            "plan": options.plan,
            "budget": config.budget,
            "parameters": len(space.names),
            "devices": options.devices,
            "price": options.price,
            "screening": screening,
        }
        print_json(options, settings | cost.to_plain() | {"notes": notes})
        return
    from synaptune.core.console import make_console
    from synaptune.report.cost_table import print_cost

    print_cost(
        cost,
        make_console(),
        title=f"{options.plan}: {config.budget} evaluations of {len(space.names)} parameters",
        notes=notes,
    )


def _price_screening(
    options: argparse.Namespace,
    composed: ComposedConfig,
    config: Phase1Config | Phase2Config,
    space: Space,
    cost: PlanCost,
    measure: RunMeasure,
) -> dict[str, Any] | None:
    """Return what the screening saves against a search of all parameters; None without one."""
    from synaptune.analysis.cost import price_plan
    from synaptune.analysis.screening import MAX_CHOSEN, from_note
    from synaptune.protocols import phase1
    from synaptune.protocols.config import Phase1Config
    from synaptune.study.reader import SCREENING, find_study

    if not isinstance(config, Phase1Config) or not phase1.has_screening(composed.base):
        return None
    note = find_study(options.study).notes.get(SCREENING) if options.study else None
    chosen = MAX_CHOSEN if note is None else sum(e.chosen for e in from_note(note).effects)
    budget, plan = phase1.plan_unscreened(
        config, composed.base, space, workers=options.devices, chosen=chosen
    )
    before = price_plan(
        plan, measure.seconds, devices=options.devices, start=measure.start, price=options.price
    )
    hours = before.device_hours - cost.device_hours
    money = None if options.price is None else hours * options.price
    count = len(space.names)
    least = "" if note is not None else "at most "
    text = (
        f"without a screening a search as dense would have {budget} evaluations of {count}"
        f" parameters: {before.device_hours:.3g} device hours"
        + ("" if before.money is None else f", money {before.money:.4g}")
        + f"; the screening leaves {least}{chosen} parameters and saves"
        f" {budget - config.budget} evaluations, {hours:.3g} device hours"
        + ("" if money is None else f", money {money:.4g}")
    )
    return {
        "parameters_before": count,
        "parameters_after": chosen,
        "evaluations_before": budget,
        "evaluations_after": config.budget,
        "device_hours_before": before.device_hours,
        "device_hours_saved": hours,
        "money_saved": money,
        "text": text,
    }


def _plan_protocol(
    options: argparse.Namespace,
) -> tuple[ComposedConfig, Phase1Config | Phase2Config, Space, list[PlannedRuns]]:
    """Return the configuration of the plan, its settings, its space and its runs."""
    from synaptune.protocols import phase1, phase2

    if options.plan == "phase2":
        composed = phase2.compose_phase2(options.overrides)
        config, space = phase2.read_config(composed), phase2.build_space(composed)
        plan = phase2.plan_runs(config, composed.base, space, workers=options.devices)
        return composed, config, space, plan
    overrides = ["search_space=all"] if options.plan == "all48" else []
    composed = phase1.compose_phase1([*overrides, *options.overrides])
    config, space = phase1.read_config(composed), phase1.build_space(composed)
    plan = phase1.plan_runs(config, composed.base, space, workers=options.devices)
    return composed, config, space, plan


def _check_options(options: argparse.Namespace) -> None:
    """Raise UserError with every fault."""
    has_budget = any(word.startswith("protocol.budget=") for word in options.overrides)
    has_price = options.price is None or 0.0 < options.price < math.inf
    check_values(
        "a plan whose cost cannot be estimated",
        (
            (
                options.plan != "all48" or has_budget,
                "--plan all48 without protocol.budget: expected the number of evaluations",
            ),
            (options.devices >= 1, f"--devices {options.devices}: expected at least 1"),
            (has_price, f"--price {options.price}: expected a number above 0"),
            (options.steps >= 1, f"--steps {options.steps}: expected at least 1"),
            (options.warmup >= 1, f"--warmup {options.warmup}: expected at least 1"),
        ),
    )
