"""Writing of reports to a folder: an HTML page, and Markdown with its figures and tables."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path

from synaptune.analysis.evidence import gather_evidence
from synaptune.core.errors import user_error
from synaptune.core.files import replace_file, write_atomic
from synaptune.report.comparison import render_comparison, write_comparison_markdown
from synaptune.report.figures import draw_figures
from synaptune.report.markdown import write_markdown
from synaptune.report.page import render_html
from synaptune.report.tables import render_best_yaml
from synaptune.study.reader import StudySnapshot

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_PRINT_TIMEOUT = 120.0  # [s] that a browser has to print a page


def find_browser() -> str:
    """Find a browser that prints pages; raise UserError without one."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        raise user_error(
            got="--pdf without a browser that prints",
            expected=f"one of {', '.join(BROWSERS)} on the PATH",
            do="install Chromium, or open report.html and print it to a file",
        )
    return found


def write_pdf(page: Path, browser: str) -> Path:
    """Print a page to a PDF file beside it.

    Args:
        page: the HTML page.
        browser: path of the browser.

    Raises:
        UserError: the browser failed.
    """
    path = page.with_suffix(".pdf")
    options = ["--headless", "--disable-gpu", "--no-pdf-header-footer"]
    # A browser of the root user, as in a container, starts only without its sandbox.
    options += ["--no-sandbox"] if os.geteuid() == 0 else []
    command = [browser, *options, f"--print-to-pdf={path.resolve()}", page.resolve().as_uri()]
    path.unlink(missing_ok=True)
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_PRINT_TIMEOUT)
        reason = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    if not path.exists():
        raise user_error(
            got=f"no PDF from {browser} ({reason})",
            expected="a printed page",
            do=f"open {page} in a browser and print it",
        )
    return path


def write_zip(snapshot: StudySnapshot, folder: Path, best_yaml: str | None, *, pdf: bool) -> Path:
    """Write an archive to share: the report, best.yaml, and all trials as CSV.

    Args:
        snapshot: the study.
        folder: folder of its report, with the page and the Markdown.
        pdf: whether the archive holds the PDF file.
        best_yaml: text of best.yaml; None without a best trial.

    Returns:
        The path of the archive, `report.zip` in the folder.
    """
    from synaptune.study.table import tabulate_trials, to_csv

    path = folder / "report.zip"
    text = (folder / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"\(((?:figures|tables)/[\w-]+\.\w+)\)", text)
    names = ["report.html", "report.md", *(["report.pdf"] if pdf else []), *linked]
    with (
        replace_file(path) as draft,
        zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for name in names:
            archive.write(folder / name, name)
        archive.writestr("trials.csv", to_csv(tabulate_trials(snapshot.trials)))
        if best_yaml is not None:
            archive.writestr("best.yaml", best_yaml)
    return path


def write_report(
    snapshot: StudySnapshot,
    folder: Path,
    *,
    against: StudySnapshot | None = None,
    formats: str = "all",
    pdf: bool = False,
    archive: bool = False,
) -> list[Path]:
    """Write report.html, report.md, figures/ and tables/ of a study.

    Each file is written atomically, the page last.

    Args:
        snapshot: the study.
        folder: where to write.
        against: a study of random points to compare with; None means without.
        formats: `html`, `md` or `all`.
        pdf: also print the page to report.pdf.
        archive: also write report.zip, which holds both formats.

    Returns:
        The path of the page, or of the Markdown file when `formats` is `md`; then the PDF file and
        the archive, if asked for.

    Raises:
        UserError: a file cannot be written (no space, no permission), or no browser prints.
    """
    browser = find_browser() if pdf else None
    formats = "all" if archive else formats
    evidence = gather_evidence(snapshot, against=against)
    figures = list(draw_figures(evidence))
    path = folder / "report.md"
    if formats != "html":
        write_markdown(evidence, folder, figures)
    if formats != "md":
        path = folder / "report.html"
        write_atomic(path, render_html(evidence, drawn_figures=figures).encode())
    paths = [path]
    if browser is not None:
        paths.append(write_pdf(folder / "report.html", browser))
    if archive:
        paths.append(write_zip(snapshot, folder, render_best_yaml(evidence), pdf=pdf))
    return paths


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
