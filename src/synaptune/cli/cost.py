"""`synaptune cost`: device hours, money and days of a protocol before it runs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synaptune.cli.arguments import ArgumentTable, add_subcommand, check_values

if TYPE_CHECKING:
    from synaptune.analysis.cost import PlannedRuns, SecondsRange
    from synaptune.config.compose import ComposedConfig
    from synaptune.protocols.config import Phase1Config, Phase2Config
    from synaptune.search.space.space import Space

_ARGUMENTS: ArgumentTable = {
    "--plan": dict(
        choices=("phase1", "phase2", "all48"),
        default="phase1",
        help="protocol: phase 1, phase 2, or phase 1 over all parameters",
    ),
    "--devices": dict(
        type=int, default=1, help="devices that run at the same time (default %(default)s)"
    ),
    "--price": dict(type=float, help="price of a device hour, in any currency"),
    "--study": dict(help="take the seconds of this study's runs instead of measuring"),
    "--steps": dict(type=int, default=20, help="steps that are timed (default %(default)s)"),
    "--warmup": dict(type=int, default=5, help="steps before them (default %(default)s)"),
    "--json": dict(action="store_true", help="print JSON"),
    "overrides": dict(
        nargs="*",
        help="overrides of the run and the protocol, e.g. scale=gpu protocol.budget=100",
    ),
}


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    summary = "estimate the device hours, money and days of a plan from a measured step time"
    add_subcommand(commands, "cost", summary, _ARGUMENTS, _run_cost)


def _run_cost(options: argparse.Namespace) -> None:
    from synaptune.analysis.cost import price_plan

    _check_options(options)
    composed, config, space, plan = _plan_protocol(options)
    seconds, start, notes = (
        _read_study_seconds(options.study) if options.study else _measure_seconds(composed, options)
    )
    notes += [
        f"a generation of {stage.at_once} ends before the next begins"
        for stage in plan
        if stage.name in ("search", "joint")
    ]
    notes.append(
        f"one run at a time on each of {options.devices} equal devices; no run fails or ends early;"
        " the time of the optimizer is left out"
    )
    cost = price_plan(plan, seconds, devices=options.devices, start=start, price=options.price)
    if options.json:
        import json

        settings = {
            "plan": options.plan,
            "budget": config.budget,
            "parameters": len(space.names),
            "devices": options.devices,
            "price": options.price,
        }
        rows = [row._asdict() | {"seconds": row.seconds._asdict()} for row in cost.rows]
        print(json.dumps(settings | cost._asdict() | {"rows": rows, "notes": notes}, indent=1))
        return
    from rich.console import Console

    from synaptune.report.cost_table import print_cost

    print_cost(
        cost,
        Console(),
        title=f"{options.plan}: {config.budget} evaluations of {len(space.names)} parameters",
        notes=notes,
    )


def _plan_protocol(
    options: argparse.Namespace,
) -> tuple[ComposedConfig, Phase1Config | Phase2Config, Space, list[PlannedRuns]]:
    """Return the configuration of the plan, its settings, its space and its runs."""
    from synaptune.config.compose import compose_config
    from synaptune.protocols import phase1, phase2

    if options.plan == "phase2":
        protocol, composed = phase2, phase2.compose_phase2(options.overrides)
    else:
        overrides = ["search_space=all"] if options.plan == "all48" else []
        protocol = phase1
        composed = compose_config([*overrides, *options.overrides], protocol="phase1")
    config, space = protocol.read_config(composed), protocol.build_space(composed)
    return composed, config, space, protocol.plan_runs(config, space, workers=options.devices)


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


def _read_study_seconds(
    study: str,
) -> tuple[Callable[[PlannedRuns], SecondsRange], None, list[str]]:
    """Return the seconds of a run by stage, None for a worker's start-up, and a note.

    A study measures the start-up as a part of each worker's first run.
    """
    from synaptune.analysis.cost import read_study_seconds
    from synaptune.study.location import StudyConfig, resolve_location

    location = resolve_location(StudyConfig(), study)
    note = f"seconds of a run: median and 10 to 90 % of the complete runs of study {location.name}"
    return read_study_seconds(location.name, location.url), None, [note]


def _measure_seconds(
    config: ComposedConfig, options: argparse.Namespace
) -> tuple[Callable[[PlannedRuns], SecondsRange], float, list[str]]:
    """Measure a run on this device.

    Returns:
        The seconds of a run by stage, the seconds of a worker's start-up, and notes.
    """
    import tempfile
    from collections.abc import Mapping

    from omegaconf import OmegaConf

    from synaptune.analysis.cost import SecondsRange, estimate_run_seconds, measure_timing
    from synaptune.config.run import run
    from synaptune.config.settings import read_settings
    from synaptune.study.provenance import get_device_name

    def train(changes: Mapping[str, object], folder: Path) -> float:
        cfg = config.base.copy()
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value)
        return run(cfg, folder, overrides=[]).metrics["evaluation_seconds"]

    training = read_settings(config.base).training
    with tempfile.TemporaryDirectory() as folder:
        speed = measure_timing(train, Path(folder), steps=options.steps, warmup=options.warmup)
    notes = [
        f"measured: step {1000 * speed.step:.4g} ms over {options.steps} steps after"
        f" {options.warmup} steps of warm-up on {get_device_name()}; evaluation"
        f" {speed.evaluation:.3g} s, checkpoint {speed.save:.3g} s, once per run"
        f" {speed.fixed:.3g} s",
        f"a run: {training.steps} steps, {training.evaluations} evaluations; a validation run also"
        " scores the test split",
    ]
    return (
        lambda stage: SecondsRange(
            estimate_run_seconds(speed, training, with_test=stage.with_test)
        ),
        speed.start,
        notes,
    )
