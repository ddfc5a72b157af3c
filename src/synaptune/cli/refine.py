"""`synaptune refine`: a narrower search space from the best runs of a study or of a CSV file."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synaptune.cli.arguments import (
    JSON_ARGUMENT,
    QUIET_ARGUMENT,
    STORAGE_ARGUMENT,
    ArgumentTable,
    add_arguments,
    add_subcommand,
    print_json,
)
from synaptune.core.errors import user_error

if TYPE_CHECKING:
    from synaptune.search.space.file import SpaceFile

_ARGUMENTS: ArgumentTable = {
    "study": dict(
        metavar="STUDY|FILE.csv",
        help="name of a study below outputs/studies, its folder, or a CSV file of runs",
    ),
    **STORAGE_ARGUMENT,
    "--metric": dict(
        metavar="NAME",
        help="evaluation metric that ranks the runs (default: the objective of the study)",
    ),
    "--maximize": dict(action="store_true", help="larger values of the metric are better"),
    "--rule": dict(
        choices=("tested", "plan"),
        default="tested",
        help="narrow what a test supports, or as the focused-sweep plan does",
    ),
    "--parameters": dict(
        metavar="A,B",
        help="parameters to refine (default: all that vary and are named like settings)",
    ),
    "--rename": dict(
        action="append",
        default=[],
        metavar="COLUMN=PARAMETER",
        help="name of the column's parameter in the configuration; repeatable",
    ),
    "--out": dict(
        type=Path,
        metavar="FILE.yaml",
        help="file of the search space (default: STUDY-refined.yaml in the folder of the study);"
        " the reasons are written beside it as FILE.md",
    ),
    "--name": dict(
        metavar="NAME",
        help="name of the search space and of its studies (default: STUDY-refined, or the name of"
        " FILE)",
    ),
    **JSON_ARGUMENT,
    **QUIET_ARGUMENT,
}
_LIMIT_ARGUMENTS: ArgumentTable = {
    "--threshold": dict(
        type=float, metavar="X", help="metric from which on a run is a high performer"
    ),
    "--quantile": dict(
        type=float, metavar="Q", help="share of the runs that are high performers (default: 1/3)"
    ),
}


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    summary = "narrow a search space to the high performers of a study or of a CSV file of runs"
    parser = add_subcommand(commands, "refine", summary, _ARGUMENTS, _run_refine)
    add_arguments(parser.add_mutually_exclusive_group(), _LIMIT_ARGUMENTS)


def _run_refine(options: argparse.Namespace) -> None:
    from synaptune.analysis.refine.rule import refine
    from synaptune.analysis.refine.runs import RunSelection, read_study_runs
    from synaptune.analysis.refine.table import read_csv_runs
    from synaptune.core.console import make_console
    from synaptune.core.files import write_atomic
    from synaptune.report.refinement import (
        format_headline,
        format_refinement,
        print_refinement,
        tabulate_proposals,
    )
    from synaptune.report.table_model import to_records
    from synaptune.search.space.file import format_space_file
    from synaptune.study.reader import find_study, get_study_folder

    selection = RunSelection(
        options.metric,
        options.maximize,
        _split_names(options.parameters),
        _parse_renames(options.rename),
    )
    path = Path(options.study)
    if options.storage is None and _is_table(path):
        runs, folder, source = read_csv_runs(path, selection), path.parent, path.stem
    else:
        runs = read_study_runs(find_study(options.study, options.storage), selection)
        folder = get_study_folder(options.study) if options.storage is None else Path()
        source = path.name or path.resolve().name  # not the stem: the name may have dots
    name = options.name or (f"{source}-refined" if options.out is None else options.out.stem)
    name = re.sub(r"[^\w.\- ]", "-", name)
    out: Path = options.out or folder / f"{name}.yaml"
    reasons = out.with_suffix(".md")
    _check_output(out, reasons)
    refinement = refine(
        runs, threshold=options.threshold, quantile=options.quantile, rule=options.rule
    )
    print_refinement(refinement, make_console())
    head = (
        " ".join(format_headline(refinement).split()),
        f"rule {refinement.rule}; reasons in {reasons.name}; use: search_space={out}",
    )
    file = refinement.make_space_file(name)
    write_atomic(out, format_space_file(file, head).encode())
    write_atomic(reasons, format_refinement(refinement, str(out)).encode())
    print(f"written to {out} and {reasons}; {_describe_use(file, out)}")
    if options.json:
        files = {"space": str(out), "reasons": str(reasons)}
        print_json(options, files | {"parameters": to_records(tabulate_proposals(refinement))})


def _is_table(path: Path) -> bool:
    """Return whether an argument is a file of runs, and not a study."""
    return path.is_file() or (path.suffix.lower() == ".csv" and not path.is_dir())


def _describe_use(file: SpaceFile, out: Path) -> str:
    """Return the commands that use a refined space, or the Python code if no command can."""
    from synaptune.analysis.refine.runs import shorten_list
    from synaptune.config.conf import CONF_DIR
    from synaptune.config.overrides import list_composed_names
    from synaptune.config.schema import register
    from synaptune.search.space.override_text import format_value

    register()
    known = set(list_composed_names([], CONF_DIR, "train"))
    unknown = [name for name in (*file.ranges, *file.fixed) if name not in known]
    if unknown:
        return (
            f"train.py has no {shorten_list(unknown)}, so that it cannot run the file"
            " (--rename COLUMN=NAME gives a column the name of a setting);\nin Python:"
            f" TrialManager({file.name!r}).optimize(objective, {_make_python_space(file)})"
        )
    words = [f"search_space={out}"] if file.ranges else []
    if not words:
        words = [f"{name}={format_value(value)}" for name, value in file.fixed.items()]
    search = "-m hydra/sweeper=cma " if file.ranges else ""
    return f"use: python train.py {search}{shlex.join(words)}"


def _make_python_space(file: SpaceFile) -> dict[str, tuple[Any, ...]]:
    """Return the search space as TrialManager takes it."""
    space: dict[str, tuple[Any, ...]] = {
        name: ("categorical", [value]) for name, value in file.fixed.items()
    }
    for name, entry in file.ranges.items():
        if "choices" in entry:
            space[name] = ("categorical", entry["choices"])
            space[name] += (entry["weights"],) if "weights" in entry else ()
        elif entry.get("integer"):
            space[name] = ("int", entry["low"], entry["high"])
            space[name] += (entry["step"],) if "step" in entry else ()
        else:
            kind = "log_uniform" if entry.get("log") else "uniform"
            space[name] = (kind, entry["low"], entry["high"])
    return space


def _check_output(out: Path, reasons: Path) -> None:
    """Refuse an unknown format, and a Markdown file that another program wrote."""
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
    renames = {}
    for pair in pairs:
        old, _, new = pair.partition("=")
        if not old or not new:
            raise user_error(got=f"--rename {pair}", expected="COLUMN=PARAMETER", do="correct it")
        renames[old] = new
    return renames
