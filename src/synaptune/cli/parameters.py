"""`synaptune parameters` and `synaptune sensitivity`: the parameters and what they change."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from synaptune.cli.arguments import (
    JSON_ARGUMENT,
    QUIET_ARGUMENT,
    ArgumentTable,
    add_subcommand,
    print_json,
)
from synaptune.core.errors import user_error

_SENSITIVITY_ARGUMENTS: ArgumentTable = {
    "--seeds": dict(
        type=int,
        default=3,
        metavar="N",
        help="runs of each end, and of the spread over seeds (default %(default)s)",
    ),
    **JSON_ARGUMENT,
    **QUIET_ARGUMENT,
}


def add_command(commands: Any) -> None:
    """Add the subcommands `parameters` and `sensitivity`."""
    summary = "list the parameters with their ranges"
    arguments = {**JSON_ARGUMENT, **QUIET_ARGUMENT}
    add_subcommand(commands, "parameters", summary, arguments, _run_parameters)
    summary = "measure the training loss at both ends of every parameter (minutes)"
    add_subcommand(commands, "sensitivity", summary, _SENSITIVITY_ARGUMENTS, _run_sensitivity)


def _run_sensitivity(options: argparse.Namespace) -> None:
    if options.seeds < 2:
        raise user_error(
            got=f"--seeds {options.seeds}", expected="at least 2, for a spread", do="correct it"
        )
    from synaptune.analysis import sensitivity

    print(sensitivity.format_header())
    sensitivities, rounding_noise = sensitivity.measure_sensitivities(
        sensitivity.ShortRun(seeds=options.seeds),
        on_result=lambda result: print(sensitivity.format_row(result), flush=True),
    )
    print(sensitivity.format_summary(sensitivities, rounding_noise))
    if options.json:
        rows = [{**row._asdict(), "spec": row.spec.name} for row in sensitivities]
        print_json(options, {"rounding_noise": rounding_noise, "parameters": rows})


def _run_parameters(options: argparse.Namespace) -> None:
    from synaptune.core.console import make_console
    from synaptune.report.console import print_table
    from synaptune.report.table_model import Column, Table
    from synaptune.synapse.circuit import SPECS

    if options.json:
        print_json(options, [dataclasses.asdict(spec) for spec in SPECS])
        return
    columns = (
        Column("parameter"),
        *(Column(name, "value") for name in ("default", "low", "high")),
        Column("scale"),
        Column("unit"),
    )
    rows = []
    for spec in SPECS:
        name = f"{spec.name} *" if spec.phase == 1 else spec.name
        suffix = " x steps" if spec.of_run else ""
        bounds = f"{spec.low:g}{suffix}", f"{spec.high:g}{suffix}"
        rows.append((name, f"{spec.default:g}", *bounds, spec.scale, spec.unit))
    note = (
        f"{len(SPECS)} parameters; * is searched in phase 1; docs/parameters.md has the meaning of"
        " each"
    )
    print_table(Table("parameters", "", columns, rows, note), make_console())
