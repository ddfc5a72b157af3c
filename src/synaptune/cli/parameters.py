"""`synaptune parameters` and `synaptune sensitivity`: the parameters, their ranges, and what each does to the training loss."""

from __future__ import annotations

import argparse

from synaptune.core.errors import user_error


def _run_census(options: argparse.Namespace) -> None:
    if options.seeds < 2:
        raise user_error(
            got=f"--seeds {options.seeds}", expected="at least 2, for a spread", do="correct it"
        )
    from synaptune.analysis import sensitivity as census

    print(census.format_header())
    effects, dust = census.measure_sensitivities(
        census.ShortRun(seeds=options.seeds),
        on_result=lambda effect: print(census.format_row(effect), flush=True),
    )
    print(census.format_summary(effects, dust))


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
    note = f"{len(SPECS)} parameters; * is searched in phase 1; docs/parameters.md tells what each means"
    print_table(Table("parameters", "", columns, rows, note), Console())
