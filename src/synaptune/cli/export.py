"""`synaptune export`: the trials of a study as a table in a file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from synaptune.core.errors import user_error


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("export", help="write the trials of a study as a table")
    parser.add_argument(
        "study",
        metavar="STUDY",
        help="a name below outputs/studies, or a study's folder; with --storage, its name there",
    )
    parser.add_argument(
        "--storage", metavar="URL", help="the database of the study, as in study.storage"
    )
    parser.add_argument(
        "--format", choices=("csv", "parquet"), help="(default: by the name of FILE, else csv)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="file to write (default: the terminal; csv only)",
    )
    parser.set_defaults(command=_run_export)


def _run_export(options: argparse.Namespace) -> None:
    kind = options.format or (
        "parquet" if options.out is not None and options.out.suffix == ".parquet" else "csv"
    )
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
        sys.stdout.write(content.decode())
        return
    write_atomic(options.out, content)
    print(f"wrote {options.out}: {len(trials)} trials, {len(table)} columns")
