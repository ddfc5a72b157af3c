"""A report as GitHub-flavoured Markdown, with figures as SVG files and tables as CSV files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from synaptune.analysis.results import Evidence
from synaptune.core.files import write_atomic
from synaptune.report import findings, tables
from synaptune.report.figures import Figure, draw_figures, make_svg_file
from synaptune.report.outline import Block, Code, Details, Section, make_outline
from synaptune.report.table_model import LEFT_ALIGNED, Table, format_cell, format_csv

_SPECIAL_PATTERN = re.compile(r"([\\`*{}\[\]<>#|$~&]|\b_|_\b)")
_CODE_PATTERN = re.compile(r"(`[a-z][^`<>&|]*`)")


def write_markdown(
    evidence: Evidence, folder: Path, drawn_figures: Sequence[Figure] | None = None
) -> Path:
    """Write report.md, figures/*.svg and tables/*.csv below a folder.

    Args:
        evidence: the study.
        folder: where to write.
        drawn_figures: the study's figures; None draws them, which takes seconds.

    Returns:
        The path of report.md.

    Raises:
        UserError: a file cannot be written, for example on a full disk.
    """
    figures = list(draw_figures(evidence)) if drawn_figures is None else drawn_figures
    report_tables = list(tables.make_all_tables(evidence))
    state = "" if evidence.state == "ended" else f" ({evidence.state})"
    heading = f"Study {evidence.name}{state}"
    outline = make_outline(evidence, figures, report_tables)
    return write_document(folder / "report.md", heading, outline, report_tables)


def write_document(
    path: Path, heading: str, sections: Sequence[Section], report_tables: Sequence[Table]
) -> Path:
    """Write a Markdown file, its figures as SVG files, and tables as CSV files.

    Args:
        path: path of the Markdown file; the other files are written to folders beside it.
        heading: title of the document.
        sections: content.
        report_tables: tables to write as CSV files.
    """
    parts = [f"# {escape_markdown(heading)}"]
    for section in sections:
        parts += [f"## {section.title}", *map(format_block, section.blocks)]
        for block in section.blocks:
            if isinstance(block, Figure):
                figure_path = path.parent / "figures" / f"{block.key}.svg"
                write_atomic(figure_path, make_svg_file(block).encode())
    for table in report_tables:
        write_atomic(path.parent / "tables" / f"{table.key}.csv", format_csv(table).encode())
    links = [f"- [{table.title}](tables/{table.key}.csv)" for table in report_tables]
    parts += ["## Tables", "\n".join(links)] if links else []
    write_atomic(path, ("\n\n".join(parts) + "\n").encode())
    return path


def format_block(block: Block) -> str:
    """Format a block of a section."""
    match block:
        case str():
            return escape_markdown(block)
        case findings.Verdict(headline, _, reasons):
            return f"**{escape_markdown(headline)}**\n\n{format_block(reasons)}"
        case Figure(key, title, caption):
            title = escape_markdown(title)
            return f"![{title}](figures/{key}.svg)\n\n*{title}.* {escape_markdown(caption)}"
        case Details(table):
            summary = f"<summary>{escape_markdown(table.title)}</summary>"
            return f"<details>{summary}\n\n{format_table(table)}\n\n</details>"
        case Table():
            return format_table(block)
        case Code(text, note):
            fence = make_fence(text)
            return f"{escape_markdown(note)}\n\n{fence}yaml\n{text}{fence}".strip()
    return "\n".join(
        f"- **{escape_markdown(entry.title)}.** {escape_markdown(entry.text)}" for entry in block
    )


def format_table(table: Table) -> str:
    """Format a table for GitHub, with its note below."""
    heads = [escape_markdown(column.heading) for column in table.columns]
    rules = ["---" if column.kind in LEFT_ALIGNED else "---:" for column in table.columns]
    rows = [
        [
            escape_markdown(format_cell(cell, column.kind))
            for cell, column in zip(row, table.columns, strict=True)
        ]
        for row in table.rows
    ]
    lines = [f"| {' | '.join(row)} |" for row in (heads, rules, *rows)]
    return "\n".join(lines) + (f"\n\n{escape_markdown(table.note)}" if table.note else "")


def escape_markdown(text: str) -> str:
    """Escape a text and put it on one line; `commands` remain code."""
    parts = _CODE_PATTERN.split(" ".join(text.split()))  # every second part is code
    return "".join(
        part if index % 2 else _SPECIAL_PATTERN.sub(r"\\\1", part)
        for index, part in enumerate(parts)
    )


def make_fence(text: str) -> str:
    """Make a fence for a code block that is longer than any fence in the text."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)
