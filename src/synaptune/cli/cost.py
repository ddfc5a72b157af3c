"""`synaptune cost`: device hours, money and days of a protocol before it runs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synaptune.core.errors import UserError

if TYPE_CHECKING:
    from synaptune.analysis.cost import PlannedRuns, SecondsRange
    from synaptune.config.compose import ComposedConfig
    from synaptune.protocols.config import Phase1Config, Phase2Config
    from synaptune.search.space.space import Space

_PLANS = ("phase1", "phase2", "all48")


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "cost", help="device hours, money and days of a plan, from a step time measured here"
    )
    parser.add_argument(
        "--plan",
        choices=_PLANS,
        default="phase1",
        help="the protocol of phase 1, of phase 2, or that of phase 1 over all parameters",
    )
    parser.add_argument(
        "--devices",
        type=int,
        default=1,
        help="devices that run at the same time (default %(default)s)",
    )
    parser.add_argument(
        "--price", type=float, default=None, help="of a device hour, in any currency"
    )
    parser.add_argument(
        "--study", default=None, help="take the seconds of this study's runs instead of measuring"
    )
    parser.add_argument(
        "--steps", type=int, default=20, help="steps that are timed (default %(default)s)"
    )
    parser.add_argument(
        "--warmup", type=int, default=5, help="steps before them (default %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.add_argument(
        "overrides",
        nargs="*",
        help="overrides of the run and the protocol, e.g. scale=gpu protocol.budget=100",
    )
    parser.set_defaults(command=_run_cost)


def _run_cost(options: argparse.Namespace) -> None:
    from synaptune.analysis.cost import price_plan

    _check_options(options)
    composed, config, space, plan = _plan_protocol(options)
    seconds, start, notes = (
        _read_study_seconds(options.study) if options.study else _measure_seconds(composed, options)
    )
    notes += [
        *(
            f"a generation of {stage.at_once} ends before the next begins"
            for stage in plan
            if stage.name in ("search", "joint")
        ),
        (
            f"one run at a time on each of {options.devices} like devices; no run fails or ends"
            " early; the optimizer's own time is left out"
        ),
    ]
    priced = price_plan(plan, seconds, devices=options.devices, start=start, price=options.price)
    if options.json:
        import json

        stages = [row._asdict() | {"seconds": row.seconds._asdict()} for row in priced.rows]
        asked = {
            "plan": options.plan,
            "budget": config.budget,
            "parameters": len(space.names),
            "devices": options.devices,
            "price": options.price,
        }
        print(json.dumps(asked | priced._asdict() | {"rows": stages, "notes": notes}, indent=1))
        return
    from rich.console import Console

    from synaptune.report.cost_table import print_cost

    print_cost(
        priced,
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
        composed = phase2.compose_phase2(options.overrides)
        config, space = phase2.read_config(composed), phase2.build_space(composed)
        return composed, config, space, phase2.plan_runs(config, space, workers=options.devices)
    everything = ["search_space=all"] if options.plan == "all48" else []
    composed = compose_config([*everything, *options.overrides], protocol="phase1")
    config, space = phase1.read_config(composed), phase1.build_space(composed)
    return composed, config, space, phase1.plan_runs(config, space, workers=options.devices)


def _check_options(options: argparse.Namespace) -> None:
    """Raise UserError with every fault."""
    is_budget_given = any(word.startswith("protocol.budget=") for word in options.overrides)
    checks = [
        (
            options.plan != "all48" or is_budget_given,
            "--plan all48 without protocol.budget: expected the evaluations you would give it",
        ),
        (options.devices >= 1, f"--devices {options.devices}: expected at least 1"),
        (
            options.price is None or 0.0 < options.price < math.inf,
            f"--price {options.price}: expected a number above 0",
        ),
        (options.steps >= 1, f"--steps {options.steps}: expected at least 1"),
        (options.warmup >= 1, f"--warmup {options.warmup}: expected at least 1"),
    ]
    faults = [fault for is_good, fault in checks if not is_good]
    if faults:
        raise UserError(
            "got a plan that cannot be priced\n  "
            + "\n  ".join(faults)
            + "\n  to do: correct these values"
        )


def _read_study_seconds(
    study: str,
) -> tuple[Callable[[PlannedRuns], SecondsRange], None, list[str]]:
    """Return the seconds of a run by stage as a study measured them, and a note about their source.

    The start of a worker is None: it is a part of the first run.
    """
    from synaptune.analysis.cost import read_study_seconds
    from synaptune.study.location import StudyConfig, resolve_location

    location = resolve_location(StudyConfig(), study)
    note = f"seconds of a run: median and 10 to 90 % of the complete runs of study {location.name}"
    return read_study_seconds(location.name, location.url), None, [note]


def _measure_seconds(
    config: ComposedConfig, options: argparse.Namespace
) -> tuple[Callable[[PlannedRuns], SecondsRange], float, list[str]]:
    """Seconds of a run by stage from one measured here, of a worker's start, and how they were
    measured.
    """
    import tempfile
    from collections.abc import Mapping

    from omegaconf import OmegaConf

    from synaptune.analysis.cost import SecondsRange, estimate_run_seconds, measure_timing
    from synaptune.config.run import run
    from synaptune.config.settings import read_settings
    from synaptune.study.provenance import get_device_name

    base = config.base

    def train(changes: Mapping[str, object], folder: Path) -> float:
        cfg = base.copy()
        for key, value in changes.items():
            OmegaConf.update(cfg, key, value)
        return run(cfg, folder, overrides=[]).metrics["evaluation_seconds"]

    training = read_settings(base).training
    with tempfile.TemporaryDirectory() as folder:
        speed = measure_timing(train, Path(folder), steps=options.steps, warmup=options.warmup)
    counted = f"over {options.steps} steps after {options.warmup} warm ones on {get_device_name()}"
    once = (
        f"evaluation {speed.evaluation:.3g} s, checkpoint {speed.save:.3g} s, once per run"
        f" {speed.fixed:.3g} s"
    )
    notes = [
        f"measured: step {1000 * speed.step:.4g} ms {counted}; {once}",
        (
            f"a run: {training.steps} steps, {training.evaluations} evaluations; validation scores"
            " the test split too"
        ),
    ]
    return (
        lambda stage: SecondsRange(
            estimate_run_seconds(speed, training, with_test=stage.with_test)
        ),
        speed.start,
        notes,
    )
