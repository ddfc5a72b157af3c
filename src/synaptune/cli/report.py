"""synaptune report STUDY [STUDY ...]   what a study found, as a page and as Markdown.

Several are compared.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from synaptune.core.errors import user_error

_FORMATS = ("html", "md", "all")


def add_command(commands: Any) -> None:
    """Add the command to an argument parser's subcommands."""
    report = commands.add_parser(
        "report",
        help="what a study found, as one page and as Markdown; several studies are compared",
    )
    report.add_argument(
        "studies",
        nargs="+",
        metavar="STUDY",
        help="a name below outputs/studies, or a study's folder; with --storage, its name there",
    )
    report.add_argument(
        "--storage", metavar="URL", help="the database of the studies, as in study.storage"
    )
    report.add_argument(
        "--against",
        metavar="STUDY",
        help="a study of random search to compare the convergence with",
    )
    report.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where to write it (default: the folder `report` of the first study)",
    )
    report.add_argument(
        "--format",
        choices=_FORMATS,
        default="all",
        help="a page, Markdown with figures and tables, or all (default)",
    )
    report.set_defaults(command=_run_report)


def _run_report(options: argparse.Namespace) -> None:
    several = len(options.studies) > 1
    if several and options.against is not None:
        raise user_error(
            got="--against with several studies",
            expected="one study",
            do="give one study, or leave --against out",
        )
    began = time.perf_counter()
    from synaptune.report.write import write_comparison, write_report
    from synaptune.study.reader import find_study, get_study_folder

    records = [find_study(study, options.storage) for study in options.studies]
    folder = (
        options.out if options.out is not None else get_study_folder(options.studies[0]) / "report"
    )
    if several:
        path = write_comparison(records, folder, formats=options.format)
    else:
        against = None if options.against is None else find_study(options.against, options.storage)
        path = write_report(records[0], folder, against=against, formats=options.format)
    running = [
        record.name
        for record in records
        if any(trial.state == "running" for trial in record.trials)
    ]
    trials = sum(len(record.trials) for record in records)
    print(
        f"wrote {path}: {path.stat().st_size / 1e3:.0f} kB, {trials} trials,"
        f" {time.perf_counter() - began:.1f} s"
    )
    if running:
        print(
            f"still running, or interrupted: {', '.join(running)}; the same command writes the"
            " report again"
        )
