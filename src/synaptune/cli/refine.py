"""`synaptune refine`: a narrower search space from the high performers of a study, or of a table of
runs.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from synaptune.core.errors import user_error


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "refine",
        help=(
            "a narrower search space from the high performers of a study, or of a CSV file of runs"
        ),
    )
    parser.add_argument(
        "study",
        metavar="STUDY|FILE.csv",
        help="a name below outputs/studies, a study's folder, or a CSV file of runs",
    )
    parser.add_argument(
        "--storage", metavar="URL", help="the database of the study, as in study.storage"
    )
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="evaluation metric to rank by (default: the study's objective)",
    )
    parser.add_argument("--maximize", action="store_true", help="more of the metric is better")
    best = parser.add_mutually_exclusive_group()
    best.add_argument(
        "--threshold",
        type=float,
        metavar="X",
        help="of the metric, from which on a run is a high performer",
    )
    best.add_argument(
        "--quantile",
        type=float,
        metavar="Q",
        help="the best part of the runs instead (default: a third)",
    )
    parser.add_argument(
        "--rule",
        choices=("tested", "plan"),
        default="tested",
        help="narrow what the data support, or as the focused-sweep plan does",
    )
    parser.add_argument(
        "--parameters",
        metavar="A,B",
        help="these only (default: all that vary and look like settings)",
    )
    parser.add_argument(
        "--rename",
        action="append",
        default=[],
        metavar="COLUMN=PARAMETER",
        help="what a column is called in the configuration; repeatable",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.yaml",
        help="the search space (default: STUDY-refined.yaml, in its folder); beside it FILE.md",
    )
    parser.add_argument(
        "--name",
        metavar="NAME",
        help=(
            "of the search space, and of its studies (default: STUDY-refined, or the name of FILE)"
        ),
    )
    parser.set_defaults(command=_run_refine)


def _run_refine(options: argparse.Namespace) -> None:
    from rich.console import Console

    from synaptune.analysis.refine.rule import refine
    from synaptune.analysis.refine.runs import RunSelection, read_study_runs
    from synaptune.analysis.refine.table import read_csv_runs
    from synaptune.core.files import write_atomic
    from synaptune.report.refinement import format_headline, format_refinement, print_refinement
    from synaptune.search.space.file import format_space_file
    from synaptune.study.reader import find_study, get_study_folder

    wanted = RunSelection(
        options.metric,
        options.maximize,
        _split_names(options.parameters),
        _parse_renames(options.rename),
    )
    path = Path(options.study)
    if options.storage is None and path.suffix.lower() == ".csv":
        runs, beside, source = read_csv_runs(path, wanted), path.parent, path.stem
    else:
        runs = read_study_runs(find_study(options.study, options.storage), wanted)
        beside = get_study_folder(options.study) if options.storage is None else Path()
        source = path.name or path.resolve().name  # whole: a study's name may have dots
    name = options.name or (f"{source}-refined" if options.out is None else options.out.stem)
    out: Path = options.out or beside / f"{name}.yaml"
    reasons = out.with_suffix(".md")
    _check_output(out, reasons)
    refinement = refine(
        runs, threshold=options.threshold, quantile=options.quantile, rule=options.rule
    )
    print_refinement(refinement, Console())
    head = (
        " ".join(format_headline(refinement).split()),
        f"rule {refinement.rule}; reasons in {reasons.name}; use: search_space={out}",
    )
    write_atomic(out, format_space_file(refinement.make_space_file(name), head).encode())
    write_atomic(reasons, format_refinement(refinement, str(out)).encode())
    print(
        f"written to {out} and {reasons}; use: python train.py -m hydra/sweeper=cma"
        f" search_space={out}"
    )


def _check_output(out: Path, reasons: Path) -> None:
    """Refuse names that cannot be used, and a Markdown file that is another's."""
    from synaptune.report.refinement import REFINEMENT_TITLE
    from synaptune.search.space.file import ENDINGS

    if out.suffix.lower() not in ENDINGS:
        raise user_error(got=f"--out {out}", expected="a name that ends in .yaml", do="correct it")
    if reasons.exists() and not reasons.read_text(encoding="utf-8", errors="replace").startswith(
        f"# {REFINEMENT_TITLE}"
    ):
        raise user_error(
            got=f"--out {out}, whose reasons would overwrite {reasons}",
            expected="a name that is free",
            do="choose another --out",
        )


def _split_names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _parse_renames(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        old, _, new = pair.partition("=")
        if not old or not new:
            raise user_error(got=f"--rename {pair}", expected="COLUMN=PARAMETER", do="correct it")
        found[old] = new
    return found
