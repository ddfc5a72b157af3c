"""A report as one self-contained HTML page.

The page loads nothing from the network. It is readable without JavaScript, on a phone, in dark mode
and on paper. All texts of the study are escaped here; a figure's SVG is escaped in report/figures.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from typing import Any, NamedTuple

from synaptune.analysis.results import Evidence
from synaptune.core.text import make_label
from synaptune.report import advice, findings, next_commands, tables
from synaptune.report.explorer import render_explorer
from synaptune.report.figures import Figure, draw_figures, make_css
from synaptune.report.outline import Block, Code, Details, Section, make_outline
from synaptune.report.table_model import LEFT_ALIGNED, Column, Table, format_cell
from synaptune.search.trial import get_loss

MAX_ROWS = 400  # trials up to which all are shown
BEST_ROWS = 200  # best trials that are shown of a larger number
_TALL_ROWS = 30  # rows above which a table scrolls
_TRIALS_NOTE = (
    "The trials of a study are numbered over all its phases, which also run points: sanity, "
    "screening, baseline, validation. An evaluation is a trial of the search; `baseline` is the "
    "start on the seed of the search."
)
_CODE_PATTERN = re.compile(r"`([a-z][^`<>&]*)`")


class RenderedSection(NamedTuple):
    """A section of the page.

    Attributes:
        key: anchor of the section.
        title: heading.
        html: content without the heading.
    """

    key: str
    title: str
    html: str


def render_html(evidence: Evidence, *, drawn_figures: Sequence[Figure] | None = None) -> str:
    """Render the whole page; the arguments are those of `make_sections`."""
    sections = make_sections(evidence, drawn_figures)
    return render_document(f"{evidence.name}: report", render_header(evidence), sections)


def make_sections(
    evidence: Evidence, drawn_figures: Sequence[Figure] | None = None
) -> list[RenderedSection]:
    """Make the sections of the page that have content, in their order.

    Args:
        evidence: the study.
        drawn_figures: the study's figures; None draws them, which takes seconds.
    """
    figures = list(draw_figures(evidence)) if drawn_figures is None else drawn_figures
    outline = make_outline(evidence, figures, list(tables.make_all_tables(evidence)))
    sections = render_sections(outline)
    if evidence.trials:
        sections.append(RenderedSection("trials", "Trials", _render_trials(evidence)))
    return sections


def render_sections(sections: Sequence[Section]) -> list[RenderedSection]:
    """Render the blocks of sections."""
    return [
        RenderedSection(
            section.key,
            section.title,
            "".join(render_block(block, section.title) for block in section.blocks),
        )
        for section in sections
    ]


def render_block(block: Block, heading: str) -> str:
    """Render a block of a section; a title that equals the section's heading is left out."""
    match block:
        case str():
            return f"<p>{render_prose(block)}</p>"
        case findings.Verdict(headline, tone, reasons):
            lead = f'<p class="headline {tone}">{render_prose(headline)}</p>'
            return lead + render_findings(reasons)
        case Figure(key, title, caption):
            return (
                f'<figure id="figure-{escape(key)}">{_render_title(title, heading)}'
                f"{render_drawing(block)}"
                f"<figcaption>{escape(caption)}</figcaption></figure>"
            )
        case Details(table):
            summary = f"<summary>{escape(table.title)}</summary>"
            return f"<details>{summary}{render_table(table)}</details>"
        case Table(key="numbers", rows=rows):
            pairs = (f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in rows)
            return f'<dl class="numbers"><div>{"</div><div>".join(pairs)}</div></dl>'
        case Table():
            return _render_title(block.title, heading) + render_table(block)
        case Code(text, note):
            return (
                (f"<p>{render_prose(note)}</p>" if note else "")
                + '<button class="tool" type="button" data-copies="best-yaml" hidden>Copy</button>'
                + f'<pre id="best-yaml">{escape(text)}</pre>'
            )
    return render_findings(block)


def render_drawing(figure: Figure) -> str:
    """Render a figure, of which the style shows the form that fits the width of the page."""
    narrow = f'<div class="drawing narrow">{figure.narrow}</div>' if figure.narrow else ""
    kind = "drawing wide" if figure.narrow else "drawing"
    return f'<div class="{kind}">{figure.svg}</div>{narrow}'


def _render_title(title: str, heading: str) -> str:
    return "" if title == heading else f"<h3>{escape(title)}</h3>"


def render_header(evidence: Evidence) -> str:
    """Render the name, the state and the time of a study."""
    state, pill = evidence.state, ""
    if state != "ended":
        pill = f'<span class="pill">{state}</span>'
    times = [
        f"{moment:%Y-%m-%d %H:%M}"
        for moment in (evidence.started_at, evidence.ended_at)
        if moment is not None
    ]
    if len(times) == 2 and times[0].split()[0] == times[1].split()[0]:
        times[1] = times[1].split()[1]
    facts = [f"phase {evidence.phase}"] if evidence.phase not in (None, "search") else []
    facts += [f"{' to '.join(times)} UTC"] if times else []
    return f"<h1>Study {escape(evidence.name)}{pill}</h1><p>{escape(' · '.join(facts))}</p>"


def render_document(title: str, head: str, sections: Sequence[RenderedSection]) -> str:
    """Render a page of sections, with a table of contents, the styles and the script.

    Args:
        title: title of the document, as text.
        head: header of the page, as HTML.
        sections: sections in their order.
    """
    style, *scripts = (
        files("synaptune.report").joinpath(name).read_text(encoding="utf-8")
        for name in ("page.css", "page.js", "explorer.js")
    )
    script = "".join(scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    contents = "".join(
        f'<li><a href="#{section.key}">{escape(section.title)}</a></li>' for section in sections
    )
    body = "".join(
        f'<section id="{section.key}"><h2>{escape(section.title)}</h2>{section.html}</section>\n'
        for section in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{make_css()}{style}</style></head>\n"
        f'<body><div class="layout"><header class="top">{head}</header>'
        f'<nav class="toc" aria-label="Contents"><ol>{contents}</ol></nav>\n'
        f"<main>\n{body}</main></div>\n"
        f"<script>{script}</script></body></html>\n"
    )


def render_findings(entries: Sequence[findings.Finding]) -> str:
    """Render findings under their headings; empty without any."""
    rows = "".join(
        f"<dt>{escape(entry.title)}</dt><dd>{render_prose(entry.text)}</dd>" for entry in entries
    )
    return f'<dl class="findings">{rows}</dl>' if rows else ""


def render_prose(text: str) -> str:
    """Escape a text, set `commands` as code, and keep per cent signs with their numbers."""
    return re.sub(
        r"(\d) %",
        "\\1\N{NO-BREAK SPACE}%",
        _CODE_PATTERN.sub(r"<code>\1</code>", escape(text, quote=False)),
    )


def _render_trials(evidence: Evidence) -> str:
    chosen, note = list(evidence.trials), _TRIALS_NOTE
    if len(chosen) > MAX_ROWS:
        complete = [trial for trial in chosen if trial.objective is not None]
        ranked = sorted(complete, key=lambda trial: get_loss(trial, evidence.maximize) or 0.0)
        chosen = (ranked or chosen)[:BEST_ROWS]
        which = "best" if ranked else "first"
        note = (
            f"The {which} {len(chosen)} of {len(evidence.trials)} trials; "
            f"{next_commands.format_command(evidence, 'export')} writes all. {_TRIALS_NOTE}"
        )
    field = (
        '<input class="tool" type="search" placeholder="Filter trials" aria-label="Filter trials" '
        'data-filters="table-trials" hidden>'
    )
    table = tables.tabulate_search_trials(evidence, chosen)._replace(note=note)
    html = render_table(table, sortable=True, names=evidence.names)
    return f'<div class="screen">{render_explorer(evidence, chosen)}{field}{html}</div>'


def render_table(table: Table, *, sortable: bool = False, names: Sequence[str] = ()) -> str:
    """Render a table that scrolls inside its frame.

    Args:
        table: the table.
        sortable: whether the page's script lets the reader sort the rows.
        names: parameter names; a heading that is one of them is shortened.
    """
    heads = "".join(_render_head(column, names) for column in table.columns)
    rows = [(row[0], "".join(map(_render_cell, row, table.columns))) for row in table.rows]
    if table.key == "trials":  # the explorer leads to the row of a trial
        body = "".join(f'<tr id="trial-{number}">{cells}</tr>\n' for number, cells in rows)
    else:
        body = "".join(f"<tr>{cells}</tr>\n" for _, cells in rows)
    note = f'<p class="note">{render_prose(table.note)}</p>' if table.note else ""
    kind = ' class="sortable"' if sortable else ""
    tall = " tall" if len(table.rows) > _TALL_ROWS else ""
    return (
        f'<div class="scroll{tall}" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f'<table id="table-{table.key}"{kind}><thead><tr>{heads}</tr></thead>'
        f"<tbody>\n{body}</tbody></table></div>{note}"
    )


def _render_head(column: Column, names: Sequence[str]) -> str:
    kind = "" if column.kind in LEFT_ALIGNED else ' class="number"'
    short = make_label(column.name, names) if column.name in names else column.heading
    title = f' title="{escape(column.name)}"' if short != column.heading else ""
    return f'<th scope="col"{kind}{title}>{escape(short)}</th>'


def _render_cell(cell: Any, column: Column) -> str:
    text, bar = escape(format_cell(cell, column.kind)), ""
    if column.kind == "name":
        prefix, dot, last = str(cell).rpartition(".")
        prefix = f'<span class="prefix">{escape(prefix + dot)}</span>'
        return f'<th scope="row">{prefix}<wbr>{escape(last)}</th>'
    if column.kind == "range":
        return f'<td class="range">{text}</td>'
    if column.kind == "text":
        return f'<td class="long">{text}</td>' if len(text) > 40 else f"<td>{text}</td>"
    if column.kind == "position" and cell is not None:
        edge = " edge" if min(cell, 1.0 - cell) < advice.EDGE else ""
        left = 100.0 * min(max(cell, 0.0), 1.0)
        bar = f'<span class="place{edge}"><i style="left:{left:z.0f}%"></i></span>'
    # The page's script sorts by this number where the text is not the number itself.
    number = cell.mean if column.kind == "gain" and cell is not None else cell
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    value = f' data-v="{number}"' if is_number and str(number) != text else ""
    return f'<td class="number"{value}>{bar}{text}</td>'
