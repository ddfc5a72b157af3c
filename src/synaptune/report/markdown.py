"""A study as GitHub-flavoured Markdown, with its figures as SVG files and its tables as CSV files beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synaptune.analysis.results import Evidence
from synaptune.core.files import write_atomic
from synaptune.report import findings as words
from synaptune.report import table_model as cells
from synaptune.report import tables
from synaptune.report.figures import Figure, draw_figures, make_svg_file
from synaptune.report.table_model import Column, Table

_SPECIAL_PATTERN = re.compile(r"([\\`*{}\[\]<>#|$~&]|\b_|_\b)")
_CODE_PATTERN = re.compile(r"(`[a-z][^`<>&|]*`)")


def write_markdown(
    evidence: Evidence, folder: Path, drawn_figures: Sequence[Figure] | None = None
) -> Path:
    """Write report.md, figures/*.svg and tables/*.csv below folder; returns the path of report.md.

    drawn: the study's figures, which take seconds to draw. Raises UserError: no space.
    """
    drawn_figures = list(draw_figures(evidence)) if drawn_figures is None else drawn_figures
    for figure in drawn_figures:
        write_atomic(folder / "figures" / f"{figure.key}.svg", make_svg_file(figure).encode())
    made = list(tables.make_all_tables(evidence))
    for table in made:
        write_atomic(folder / "tables" / f"{table.key}.csv", cells.format_csv(table).encode())
    path = folder / "report.md"
    write_atomic(path, (format_report(evidence, drawn_figures, made)).encode())
    return path


def format_report(
    evidence: Evidence, drawn_figures: Sequence[Figure], report_tables: Sequence[Table]
) -> str:
    """The Markdown of a study whose figures and tables lie beside it."""
    found = words.make_verdict(evidence)
    parts = [f"# Study {escape_markdown(evidence.name)}", f"**{escape_markdown(found.headline)}**"]
    if words.is_running(evidence):
        parts.append("*Running: trials have begun and not ended.*")
    parts.append(format_findings(found.findings))
    numbers = [[name, number] for name, number in tables.list_key_numbers(evidence)]
    parts.append(format_table(Table("numbers", "", (Column("what"), Column("value")), numbers)))
    parts += _format_section("What to do next", format_findings(words.advise(evidence)))
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
            _format_details(cells.format_key(key), entry)
            for key, entry in evidence.provenance.items()
        ),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _format_section(title: str, *blocks: str) -> list[str]:
    kept = [block for block in blocks if block]
    return [f"## {title}", *kept] if kept else []


def format_findings(found: Sequence[words.Finding]) -> str:
    """Sentences as a list."""
    return "\n".join(
        f"- **{escape_markdown(entry.title)}.** {escape_markdown(entry.text)}" for entry in found
    )


def format_figure(figure: Figure) -> str:
    """A figure of the folder, with its caption."""
    return f"![{escape_markdown(figure.title)}](figures/{figure.key}.svg)\n\n*{escape_markdown(figure.title)}.* {escape_markdown(figure.caption)}"


def _format_noise(evidence: Evidence) -> list[str]:
    rows = tables.list_noise(evidence) + (
        [] if evidence.validation is None else tables.list_statistics(evidence.validation.gain)
    )
    return (
        [format_table(Table("noise", "", (Column("noise, luck and tests"), Column("value")), rows))]
        if rows
        else []
    )


def _format_details(title: str, entry: Any) -> str:
    entries = entry if isinstance(entry, dict) else {title: entry}
    rows = [[str(key), cells.format_plain(part)] for key, part in entries.items()]
    if not rows:
        return ""
    table = format_table(Table("", "", (Column("what"), Column("value")), rows))
    return f"<details><summary>{escape_markdown(title)}</summary>\n\n{table}\n\n</details>"


def format_table(table: Table) -> str:
    """A table in GitHub's form, with its note under it."""
    heads = [escape_markdown(column.heading) for column in table.columns]
    rules = ["---" if column.kind in cells.LEFT_ALIGNED else "---:" for column in table.columns]
    rows = [
        [
            escape_markdown(cells.format_cell(cell, column.kind))
            for cell, column in zip(row, table.columns, strict=True)
        ]
        for row in table.rows
    ]
    lines = [f"| {' | '.join(row)} |" for row in (heads, rules, *rows)]
    return "\n".join(lines) + (f"\n\n{escape_markdown(table.note)}" if table.note else "")


def escape_markdown(text: str) -> str:
    """Text that Markdown shows as it is, in one line; `commands` stay code."""
    parts = _CODE_PATTERN.split(" ".join(text.split()))
    return "".join(
        part if at % 2 else _SPECIAL_PATTERN.sub(r"\\\1", part) for at, part in enumerate(parts)
    )


def make_fence(text: str) -> str:
    """A fence for a code block that the text cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)
