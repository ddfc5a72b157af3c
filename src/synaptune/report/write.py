"""Writing of reports to a folder: an HTML page, and Markdown with its figures and tables."""

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
    """Write report.html, report.md, figures/ and tables/ of a study.

    Each file is written atomically, the page last.

    Args:
        snapshot: the study.
        folder: where to write.
        against: a study of random points to compare with; None means without.
        formats: `html`, `md` or `all`.

    Returns:
        The path of the page, or of the Markdown file when `formats` is `md`.

    Raises:
        UserError: a file cannot be written (no space, no permission).
    """
    evidence = gather_evidence(snapshot, against=against)
    figures = list(draw_figures(evidence))
    path = folder / "report.md"
    if formats != "html":
        write_markdown(evidence, folder, figures)
    if formats != "md":
        path = folder / "report.html"
        write_atomic(path, render_html(evidence, drawn_figures=figures).encode())
    return path


def write_comparison(
    snapshots: Sequence[StudySnapshot], folder: Path, *, formats: str = "all"
) -> Path:
    """Write comparison.html, comparison.md, figures/ and tables/ of several studies.

    The formats, the result and the errors are those of `write_report`.
    """
    studies = [gather_evidence(snapshot, deep=False) for snapshot in snapshots]
    path = folder / "comparison.md"
    if formats != "html":
        write_comparison_markdown(studies, folder)
    if formats != "md":
        path = folder / "comparison.html"
        write_atomic(path, render_comparison(studies).encode())
    return path
