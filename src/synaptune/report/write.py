"""Reports written to a folder: a page, and Markdown with its figures and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from synaptune.analysis.evidence import gather_evidence
from synaptune.core.files import write_atomic
from synaptune.report.comparison import render_comparison, write_comparison_markdown
from synaptune.report.figures import draw_figures
from synaptune.report.markdown import write_markdown
from synaptune.report.page import render_html
from synaptune.study.reader import StudySnapshot


def write_report(
    snapshot: StudySnapshot,
    folder: Path,
    *,
    against: StudySnapshot | None = None,
    formats: str = "all",
) -> Path:
    """Write report.html, report.md, figures/ and tables/ of a study; returns the page, or the Markdown where only that is asked for.

    Each file is whole or not there, and the page comes last. against: a study of random points to compare with; formats: `html`,
    `md` or `all`. Raises UserError: no space, no right to write.
    """
    found = gather_evidence(snapshot, against=against)
    drawn = list(draw_figures(found))
    path = folder / "report.md"
    if formats != "html":
        write_markdown(found, folder, drawn)
    if formats != "md":
        path = folder / "report.html"
        write_atomic(path, render_html(found, drawn_figures=drawn).encode())
    return path


def write_comparison(
    records: Sequence[StudySnapshot], folder: Path, *, formats: str = "all"
) -> Path:
    """Write comparison.html, comparison.md, figures/ and tables/ of several studies, as `write_report` does for one."""
    found = [gather_evidence(record, deep=False) for record in records]
    path = folder / "comparison.md"
    if formats != "html":
        write_comparison_markdown(found, folder)
    if formats != "md":
        path = folder / "comparison.html"
        write_atomic(path, render_comparison(found).encode())
    return path
