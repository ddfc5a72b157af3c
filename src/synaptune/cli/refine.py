"""`synaptune refine`: a narrower search space from the high performers of a study, or of a table of runs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from synaptune.core.errors import mistake


def add(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("refine", help="a narrower search space from the high performers of a study, or of a CSV file of runs")
    parser.add_argument("study", metavar="STUDY|FILE.csv", help="a name below outputs/studies, a study's folder, or a CSV file of runs")
    parser.add_argument("--storage", metavar="URL", help="the database of the study, as in study.storage")
    parser.add_argument("--metric", metavar="NAME", help="evaluation metric to rank by (default: the study's objective)")
    parser.add_argument("--maximize", action="store_true", help="more of the metric is better")
    best = parser.add_mutually_exclusive_group()
    best.add_argument("--threshold", type=float, metavar="X", help="of the metric, from which on a run is a high performer")
    best.add_argument("--quantile", type=float, metavar="Q", help="the best part of the runs instead (default: a third)")
    parser.add_argument(
        "--rule", choices=("tested", "plan"), default="tested", help="narrow what the data support, or as the focused-sweep plan does"
    )
    parser.add_argument("--parameters", metavar="A,B", help="these only (default: all that vary and look like settings)")
    parser.add_argument(
        "--rename", action="append", default=[], metavar="COLUMN=PARAMETER", help="what a column is called in the configuration; repeatable"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.yaml", help="the search space (default: STUDY-refined.yaml, in its folder); beside it FILE.md"
    )
    parser.add_argument(
        "--name", metavar="NAME", help="of the search space, and of its studies (default: STUDY-refined, or the name of FILE)"
    )
    parser.set_defaults(command=_refine)


def _refine(options: argparse.Namespace) -> None:
    from rich.console import Console

    from synaptune.analysis.refine.rule import refine
    from synaptune.analysis.refine.runs import Wanted, of_study
    from synaptune.analysis.refine.table import of_csv
    from synaptune.core.files import write_atomic
    from synaptune.report.refinement import headline, markdown, show
    from synaptune.search.space.file import space_yaml
    from synaptune.study.reader import find_study, study_folder

    wanted = Wanted(options.metric, options.maximize, _listed(options.parameters), _renaming(options.rename))
    path = Path(options.study)
    if options.storage is None and path.suffix.lower() == ".csv":
        runs, beside, source = of_csv(path, wanted), path.parent, path.stem
    else:
        runs = of_study(find_study(options.study, options.storage), wanted)
        beside = study_folder(options.study) if options.storage is None else Path()
        source = path.name or path.resolve().name  # whole: a study's name may have dots
    name = options.name or (f"{source}-refined" if options.out is None else options.out.stem)
    out: Path = options.out or beside / f"{name}.yaml"
    reasons = out.with_suffix(".md")
    _check_out(out, reasons)
    refinement = refine(runs, threshold=options.threshold, quantile=options.quantile, rule=options.rule)
    show(refinement, Console())
    head = (" ".join(headline(refinement).split()), f"rule {refinement.rule}; reasons in {reasons.name}; use: search_space={out}")
    write_atomic(out, space_yaml(refinement.space(name), head).encode())
    write_atomic(reasons, markdown(refinement, str(out)).encode())
    print(f"written to {out} and {reasons}; use: python train.py -m hydra/sweeper=cma search_space={out}")


def _check_out(out: Path, reasons: Path) -> None:
    """Refuse names that cannot be used, and a Markdown file that is another's."""
    from synaptune.report.refinement import TITLE
    from synaptune.search.space.file import ENDINGS

    if out.suffix.lower() not in ENDINGS:
        raise mistake(got=f"--out {out}", expected="a name that ends in .yaml", do="correct it")
    if reasons.exists() and not reasons.read_text(encoding="utf-8", errors="replace").startswith(f"# {TITLE}"):
        raise mistake(
            got=f"--out {out}, whose reasons would overwrite {reasons}", expected="a name that is free", do="choose another --out"
        )


def _listed(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _renaming(pairs: list[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        old, _, new = pair.partition("=")
        if not old or not new:
            raise mistake(got=f"--rename {pair}", expected="COLUMN=PARAMETER", do="correct it")
        found[old] = new
    return found
