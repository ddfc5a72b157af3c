"""A report as GitHub-flavoured Markdown, with figures as SVG files and tables as CSV files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synaptune.analysis.results import Evidence
from synaptune.core.files import write_atomic
from synaptune.report import advice, findings, table_model, tables
from synaptune.report.figures import Figure, draw_figures, make_svg_file
from synaptune.report.table_model import Column, Table

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
    drawn_figures = list(draw_figures(evidence)) if drawn_figures is None else drawn_figures
    for figure in drawn_figures:
        write_atomic(folder / "figures" / f"{figure.key}.svg", make_svg_file(figure).encode())
    report_tables = list(tables.make_all_tables(evidence))
    for table in report_tables:
        write_atomic(folder / "tables" / f"{table.key}.csv", table_model.format_csv(table).encode())
    path = folder / "report.md"
    write_atomic(path, format_report(evidence, drawn_figures, report_tables).encode())
    return path


def format_report(
    evidence: Evidence, drawn_figures: Sequence[Figure], report_tables: Sequence[Table]
) -> str:
    """Format the Markdown of a study whose figures and tables lie in the same folder."""
    verdict = findings.make_verdict(evidence)
    parts = [
        f"# Study {escape_markdown(evidence.name)}",
        f"**{escape_markdown(verdict.headline)}**",
    ]
    if findings.is_running(evidence):
        parts.append("*Running: some trials have not ended.*")
    parts.append(format_findings(verdict.findings))
    numbers = [[name, number] for name, number in tables.list_key_numbers(evidence)]
    parts.append(format_table(Table("numbers", "", (Column("what"), Column("value")), numbers)))
    parts += _format_section("What to do next", format_findings(advice.advise(evidence)))
    figures_by_key, tables_by_key = (
        {figure.key: figure for figure in drawn_figures},
        {table.key: table for table in report_tables},
    )
    for title, keys in (
        ("Validation and noise", ("seeds", "validation", "gates")),
        ("Parameters", ("parameters", "importance", "ablation", "profiles")),
        ("The search", ("convergence", "evolution", "correlation", "parallel")),
        ("Inside the model", ("curves", "dynamics", "experts")),
        ("Hypotheses", ("hypotheses",)),
        ("Cost", ("cost",)),
        ("Failures", ("failures",)),
    ):
        blocks = [format_figure(figures_by_key[key]) for key in keys if key in figures_by_key]
        blocks += [format_table(tables_by_key[key]) for key in keys if key in tables_by_key]
        if title.startswith("Validation"):
            blocks += _format_noise(evidence)
        parts += _format_section(title, *blocks)
    yaml = tables.render_best_yaml(evidence)
    parts += (
        _format_section("Best configuration", f"{make_fence(yaml)}yaml\n{yaml}{make_fence(yaml)}")
        if yaml is not None
        else []
    )
    parts += _format_section(
        "Tables", "\n".join(f"- [{table.title}](tables/{table.key}.csv)" for table in report_tables)
    )
    parts += _format_section(
        "Provenance",
        *(
            _format_details(table_model.format_key(key), entry)
            for key, entry in evidence.provenance.items()
        ),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _format_section(title: str, *blocks: str) -> list[str]:
    content = [block for block in blocks if block]
    return [f"## {title}", *content] if content else []


def format_findings(entries: Sequence[findings.Finding]) -> str:
    """Format findings as a list."""
    return "\n".join(
        f"- **{escape_markdown(entry.title)}.** {escape_markdown(entry.text)}" for entry in entries
    )


def format_figure(figure: Figure) -> str:
    """Format the image of a figure in the folder, with its caption."""
    title, caption = escape_markdown(figure.title), escape_markdown(figure.caption)
    return f"![{title}](figures/{figure.key}.svg)\n\n*{title}.* {caption}"


def _format_noise(evidence: Evidence) -> list[str]:
    rows = tables.list_noise(evidence) + (
        [] if evidence.validation is None else tables.list_statistics(evidence.validation.gain)
    )
    return (
        [format_table(Table("noise", "", (Column("noise and tests"), Column("value")), rows))]
        if rows
        else []
    )


def _format_details(title: str, entry: Any) -> str:
    entries = entry if isinstance(entry, dict) else {title: entry}
    rows = [[str(key), table_model.format_plain(part)] for key, part in entries.items()]
    if not rows:
        return ""
    table = format_table(Table("", "", (Column("what"), Column("value")), rows))
    return f"<details><summary>{escape_markdown(title)}</summary>\n\n{table}\n\n</details>"


def format_table(table: Table) -> str:
    """Format a table for GitHub, with its note below."""
    heads = [escape_markdown(column.heading) for column in table.columns]
    rules = [
        "---" if column.kind in table_model.LEFT_ALIGNED else "---:" for column in table.columns
    ]
    rows = [
        [
            escape_markdown(table_model.format_cell(cell, column.kind))
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
