"""`synaptune parameters` and `synaptune sensitivity`: the parameters, their ranges, and what each does to the training loss."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from synaptune.core.errors import user_error

if TYPE_CHECKING:
    pass


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
