"""`synaptune report`: the report of a study, or a comparison of several studies."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from synaptune.cli.arguments import (
    JSON_ARGUMENT,
    QUIET_ARGUMENT,
    STORAGE_ARGUMENT,
    STUDY_ARGUMENTS,
    ArgumentTable,
    add_subcommand,
    print_json,
)
from synaptune.core.errors import user_error

_ARGUMENTS: ArgumentTable = {
    "studies": dict(STUDY_ARGUMENTS["study"], nargs="+"),
    **STORAGE_ARGUMENT,
    "--against": dict(
        metavar="STUDY", help="study of a random search with which the convergence is compared"
    ),
    "--out": dict(
        type=Path,
        metavar="FOLDER",
        help="folder to write to (default: the folder `report` of the first study)",
    ),
    "--format": dict(
        choices=("html", "md", "all"),
        default="all",
        help="one HTML page, Markdown with figures and tables, or both (default)",
    ),
    "--pdf": dict(action="store_true", help="also print the page to report.pdf, with Chromium"),
    "--zip": dict(
        action="store_true",
        help="also write report.zip to share: the report, best.yaml and all trials as CSV",
    ),
    **JSON_ARGUMENT,
    **QUIET_ARGUMENT,
}


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    summary = "write the report of a study as a page and as Markdown, or compare several studies"
    add_subcommand(commands, "report", summary, _ARGUMENTS, _run_report)


def _run_report(options: argparse.Namespace) -> None:
    several = len(options.studies) > 1
    if several and options.against is not None:
        raise user_error(
            got="--against with several studies",
            expected="one study",
            do="give one study, or leave --against out",
        )
    _check_formats(options, several)
    started_at = time.perf_counter()
    from synaptune.report.write import write_comparison, write_report
    from synaptune.study.reader import find_study, get_study_folder

    snapshots = [find_study(study, options.storage) for study in options.studies]
    folder = options.out or get_study_folder(options.studies[0]) / "report"
    if several:
        paths = [write_comparison(snapshots, folder, formats=options.format)]
    else:
        against = None if options.against is None else find_study(options.against, options.storage)
        paths = write_report(
            snapshots[0],
            folder,
            against=against,
            formats=options.format,
            pdf=options.pdf,
            archive=options.zip,
        )
    trials = sum(len(snapshot.trials) for snapshot in snapshots)
    seconds = time.perf_counter() - started_at
    for path in paths:
        rest = f", {trials} trials, {seconds:.1f} s" if path == paths[0] else ""
        print(f"wrote {path}: {path.stat().st_size / 1e3:.0f} kB{rest}")
    for snapshot in snapshots:
        if snapshot.state != "ended":
            print(f"{snapshot.name} is {snapshot.state}; the same command writes the report again")
    if options.json:
        states = {snapshot.name: snapshot.state for snapshot in snapshots}
        print_json(options, {"files": paths, "states": states})


def _check_formats(options: argparse.Namespace, several: bool) -> None:
    """Refuse --pdf and --zip where their parts are not written."""
    chosen = " and ".join(f"--{name}" for name in ("pdf", "zip") if getattr(options, name))
    if chosen and several:
        raise user_error(
            got=f"{chosen} with several studies", expected="one study", do="give one study"
        )
    if options.pdf and options.format == "md":
        raise user_error(
            got="--pdf with --format md", expected="a page to print", do="leave --format out"
        )
