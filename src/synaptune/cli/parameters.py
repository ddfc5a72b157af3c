"""`synaptune parameters` and `synaptune sensitivity`: the parameters, their ranges, and what each does to the training loss."""

from __future__ import annotations

import argparse
from typing import Any

from synaptune.core.errors import user_error


def add_command(commands: Any) -> None:
    """Add the subcommands `parameters` and `sensitivity`."""
    parameters = commands.add_parser("parameters", help="list the parameters with their ranges")
    parameters.set_defaults(command=_run_parameters)
    sensitivity = commands.add_parser(
        "sensitivity", help="what both ends of every parameter do to the training loss (minutes)"
    )
    sensitivity.add_argument(
        "--seeds",
        type=int,
        default=3,
        help="runs that measure the spread over seeds (default %(default)s)",
    )
    sensitivity.set_defaults(command=_run_sensitivity)


def _run_sensitivity(options: argparse.Namespace) -> None:
    if options.seeds < 2:
        raise user_error(
            got=f"--seeds {options.seeds}", expected="at least 2, for a spread", do="correct it"
        )
    from synaptune.analysis import sensitivity

    print(sensitivity.format_header())
    effects, dust = sensitivity.measure_sensitivities(
        sensitivity.ShortRun(seeds=options.seeds),
        on_result=lambda effect: print(sensitivity.format_row(effect), flush=True),
    )
    print(sensitivity.format_summary(effects, dust))


def _run_parameters(_: argparse.Namespace) -> None:
    from synaptune.synapse.circuit import SPECS

    rows = [("parameter", "default", "low", "high", "scale", "unit")]
    for spec in SPECS:
        low, high = (
            f"{bound:g} x steps" if spec.of_run else f"{bound:g}" for bound in (spec.low, spec.high)
        )
        rows.append(
            (
                spec.name + (" *" if spec.phase == 1 else ""),
                f"{spec.default:g}",
                low,
                high,
                spec.scale,
                spec.unit,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    print(
        f"{len(SPECS)} parameters; * is searched in phase 1; docs/parameters.md tells what each means"
    )
