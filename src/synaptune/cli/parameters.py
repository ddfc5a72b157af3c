"""`synaptune parameters` and `synaptune sensitivity`: the parameters, their ranges, and what each
does to the training loss.
"""

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
    from rich.console import Console

    from synaptune.report.console import print_table
    from synaptune.report.table_model import Column, Table
    from synaptune.synapse.circuit import SPECS

    names = ("default", "low", "high")
    columns = (
        Column("parameter"),
        *(Column(name, "value") for name in names),
        Column("scale"),
        Column("unit"),
    )
    rows = []
    for spec in SPECS:
        suffix = " x steps" if spec.of_run else ""
        bounds = [f"{bound:g}{suffix}" for bound in (spec.low, spec.high)]
        name = spec.name + (" *" if spec.phase == 1 else "")
        rows.append((name, f"{spec.default:g}", *bounds, spec.scale, spec.unit))
    note = (
        f"{len(SPECS)} parameters; * is searched in phase 1; docs/parameters.md tells what each"
        " means"
    )
    print_table(Table("parameters", "", columns, rows, note), Console())
