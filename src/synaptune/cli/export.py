"""`synaptune export`: the trials of a study as a table in a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from synaptune.cli.arguments import QUIET_ARGUMENT, STUDY_ARGUMENTS, ArgumentTable, add_subcommand
from synaptune.core.errors import user_error

_ARGUMENTS: ArgumentTable = {
    **STUDY_ARGUMENTS,
    "--format": dict(
        choices=("csv", "parquet"),
        help="format of the table (default: by the ending of FILE, else csv)",
    ),
    "--out": dict(
        type=Path, metavar="FILE", help="file to write (default: standard output; csv only)"
    ),
    **QUIET_ARGUMENT,
}


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    add_subcommand(
        commands, "export", "write the trials of a study as a table", _ARGUMENTS, _run_export
    )


def _run_export(options: argparse.Namespace) -> None:
    ending = "" if options.out is None else options.out.suffix.lower()
    if options.format is None and ending not in ("", ".csv", ".parquet"):
        raise user_error(
            got=f"--out {options.out}",
            expected="a name that ends in .csv or .parquet",
            do="choose such a name, or add --format csv for a table with another ending",
        )
    kind = options.format or ("parquet" if ending == ".parquet" else "csv")
    if options.out is None and kind == "parquet":
        raise user_error(
            got="--format parquet without a file", expected="--out FILE.parquet", do="add it"
        )
    from synaptune.core.files import write_atomic
    from synaptune.study.reader import find_study
    from synaptune.study.table import tabulate_trials, to_csv, to_parquet

    trials = find_study(options.study, options.storage).trials
    table = tabulate_trials(trials)
    content = to_parquet(table) if kind == "parquet" else to_csv(table).encode()
    if options.out is None:
        if options.stdout is None:
            raise user_error(
                got="no standard output", expected="a place for the table", do="give --out FILE"
            )
        options.stdout.flush()
        options.stdout.buffer.write(content)
        return
    write_atomic(options.out, content)
    print(f"wrote {options.out}: {len(trials)} trials, {len(table)} columns")
