"""The pages as HTML.

Text from a study is escaped here. Sections and figures are already escaped by report/.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any
from urllib.parse import quote

from synaptune.core.text import format_duration
from synaptune.report.dashboard.page_cache import PagePart, ReportParts
from synaptune.report.dashboard.study_index import StudyEntry, UnreadableDatabase
from synaptune.report.dashboard.study_status import StudyStatus

BASE_PATH = "/synaptune"
_STUDY_HEADS = (
    "study",
    "state",
    "phase",
    "evaluations",
    "best",
    "failed",
    "optimizer",
    "last event",
    "started",
)
_NUMBER_HEADS = ("evaluations", "best", "failed")
_DOWNLOADS = ("yaml", "json", "csv")  # keys of the pages that a browser downloads


def page_url(entry: StudyEntry, *rest: str) -> str:
    """Return the address of a page of a study."""
    return "/".join((BASE_PATH, "study", quote(entry.key, safe=""), *rest))


def render_page(
    title: str,
    head: str,
    parts: Sequence[PagePart],
    *,
    live: str | None = None,
    version: str = "",
    contents: bool = False,
) -> str:
    """Render a page.

    Args:
        title: title of the page.
        head: HTML of its header.
        parts: its parts.
        live: address from which the page requests changed parts; None for a page that never
        changes.
        version: version of the parts.
        contents: whether to list the parts in a table of contents.
    """
    toc = ""
    if contents:
        titled = (part for part in parts if part.title)
        items = (f'<li><a href="#{part.key}">{escape(part.title)}</a></li>' for part in titled)
        toc = f'<nav class="toc" aria-label="Contents"><ol>{"".join(items)}</ol></nav>'
    live_data = f' data-live="{escape(live)}" data-version="{escape(version)}"' if live else ""
    body = "\n".join(map(render_part, parts))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · synaptune</title>"
        f'<link rel="icon" href="data:,"><link rel="stylesheet" href="{BASE_PATH}/style.css">'
        f'<script src="{BASE_PATH}/live.js" defer></script></head>\n'
        f'<body><div class="layout{" wide" if not contents else ""}">'
        f'<header class="top">{head}</header>{toc}\n'
        f"<main{live_data}>\n{body}\n</main></div></body></html>\n"
    )


def render_part(part: PagePart) -> str:
    """Render a part with its section element."""
    return f'<section id="{part.key}" data-digest="{part.digest}">{render_content(part)}</section>'


def render_content(part: PagePart) -> str:
    """Render a part without its section element."""
    return f"<h2>{escape(part.title)}</h2>{part.html}" if part.title else part.html


def render_breadcrumbs(*steps: tuple[str, str | None]) -> str:
    """Render the path to a page: text and address of each step; the last step has no address."""
    items = "".join(
        f'<li><a href="{escape(link)}">{escape(text)}</a></li>'
        if link
        else f"<li>{escape(text)}</li>"
        for text, link in steps
    )
    return f'<nav class="crumbs" aria-label="Breadcrumbs"><ol>{items}</ol></nav>'


def render_study_head(entry: StudyEntry, study: StudyStatus, current: str, write: bool) -> str:
    """Render name, state and pages of a study.

    Args:
        entry: location of the study.
        study: status of the study.
        current: key of the present page.
        write: whether the dashboard may change the study.
    """
    pages = (
        ("report", "Report", page_url(entry)),
        ("trials", "Trials", page_url(entry, "trials")),
        ("yaml", "Best as YAML", page_url(entry, "best.yaml")),
        ("json", "Best as JSON", page_url(entry, "best.json")),
        ("csv", "All as CSV", page_url(entry, "trials.csv")),
        ("optuna", "Optuna Dashboard", page_url(entry, "optuna")),
    )
    links = ""
    for key, text, link in pages:
        kind = " aria-current=page" if key == current else " download" if key in _DOWNLOADS else ""
        links += f'<li><a href="{link}"{kind}>{text}</a></li>'
    links += f"<li>{_render_archive_button(entry, study)}</li>" if write else ""
    return (
        render_breadcrumbs(("Studies", "/?all"), (study.name, None))
        + f"<h1>{escape(study.name)}{' (archived)' if study.is_archived else ''}</h1>"
        + render_status(study, live=page_url(entry, "status"))
        + f'<nav class="pages" aria-label="Pages of the study"><ul>{links}</ul></nav>'
    )


def render_status(study: StudyStatus, *, live: str) -> str:
    """Render the status line of a study; `live` is the address from which it is updated."""
    progress = count_progress(study)
    bar = (
        f'<progress value="{progress[0]}" max="{progress[1]}" aria-hidden="true"></progress>'
        if progress is not None
        else ""
    )
    text = f"<span>{escape(describe_status(study))}</span>"
    return (
        f'<p class="status {study.state}" role="status" data-status="{escape(live)}">'
        f"{text}{bar}<small></small></p>"
    )


def count_progress(study: StudyStatus) -> tuple[int, int] | None:
    """Return the ended trials and the budget of the search; None outside a search phase."""
    phase = study.current_phase
    if phase is None or not study.budget or study.search_phase != phase:
        return None
    return min(phase.ended_count, study.budget), study.budget


def describe_status(study: StudyStatus) -> str:
    """Describe the status: `running · search, 37 of 300 · best 2.1003 · last event 12 s ago`."""
    phase = study.current_phase
    if phase is None:
        return "no trial has started"
    search = study.search_phase
    count = f"{phase.ended_count} ended"
    if study.budget and search == phase:
        count = f"{phase.ended_count} of {study.budget}"
    words = (
        describe_state(study),
        f"{phase.name}, {count}",
        "" if search is None or search.best is None else f"best {search.best:.5g}",
        f"{study.failures} failed" if study.failures else "",
        f"last event {format_age(study.latest_event)}" if study.latest_event else "",
    )
    return " · ".join(word for word in words if word)


def describe_state(study: StudyStatus) -> str:
    """Describe the state: `running`, `ended`, or `interrupted` with what was left open."""
    words, holder = [str(study.state)], study.holder
    open_count = study.trial_count - study.ended_count
    if study.state == "interrupted" and open_count:
        words.append(f"{open_count} trial{'s' if open_count > 1 else ''} open")
        if holder is not None and holder.state in ("open", None) and not holder.has_ended():
            age = format_age(holder.last_seen)  # it may still run, on another machine
            words.append(f"last sign of life of {holder.host} {age}")
    return ", ".join(words)


def _render_archive_button(entry: StudyEntry, study: StudyStatus) -> str:
    """Render the button that marks a study as archived, or removes the mark; it needs a script."""
    action, text = ("restore", "Restore") if study.is_archived else ("archive", "Archive")
    target, label = page_url(entry, action), f"{text} study {study.name}"
    return (
        f'<button class="tool" type="button" data-posts="{escape(target)}" '
        f'aria-label="{escape(label)}" hidden>{text}</button>'
    )


def render_studies(
    studies: Iterable[tuple[StudyEntry, StudyStatus]],
    faults: Sequence[UnreadableDatabase],
    *,
    write: bool = False,
) -> list[PagePart]:
    """Render the list of studies: running ones first, then by their latest event.

    Args:
        studies: the studies.
        faults: databases that cannot be read.
        write: whether the dashboard may change studies.
    """
    earliest = datetime.min.replace(tzinfo=UTC)
    ordered = sorted(
        studies,
        key=lambda pair: (pair[1].is_running, pair[1].latest_event or earliest),
        reverse=True,
    )
    current = [pair for pair in ordered if not pair[1].is_archived]
    archived = [pair for pair in ordered if pair[1].is_archived]
    empty = "<p>There is no study yet. <code>make sweep-phase1</code> starts one.</p>"
    if archived:
        empty = "<p>All studies are archived.</p>"
    content = _render_table(current, write) if current else empty
    if archived:
        summary = f"<summary>Archived studies ({len(archived)})</summary>"
        content += f"<details>{summary}{_render_table(archived, write)}</details>"
    if len(ordered) > 1:
        button = '<p><button class="tool">Compare the chosen studies</button></p>'
        content = f'<form action="{BASE_PATH}/compare">{content}{button}</form>'
    parts = [PagePart("studies", "", content)]
    if faults:
        items = "".join(
            f"<li><strong>{escape(fault.url)}</strong><pre>{escape(fault.reason)}</pre></li>"
            for fault in faults
        )
        parts.append(PagePart("unreadable", "Databases that cannot be read", f"<ul>{items}</ul>"))
    return parts


def _render_table(studies: Sequence[tuple[StudyEntry, StudyStatus]], write: bool) -> str:
    heads = "".join(
        f'<th scope="col"{" class=number" if head in _NUMBER_HEADS else ""}>{head}</th>'
        for head in (*_STUDY_HEADS, *([""] if write else []))
    )
    rows = "".join(_render_study_row(entry, status, write) for entry, status in studies)
    return _wrap_scroll(
        "Studies",
        f'<table class="studies"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>',
    )


def _render_study_row(entry: StudyEntry, study: StudyStatus, write: bool) -> str:
    phase, search = study.current_phase, study.search_phase
    count = str(search.ended_count if search is not None else study.ended_count)
    count += f" of {study.budget}" if study.budget and search is not None else ""
    best = "" if search is None or search.best is None else f"{search.best:.5g}"
    dot = '<i class="dot" aria-hidden="true"></i>' if study.is_running else ""
    origin = "" if study.is_ours else " (another program's)"
    choice = (
        f'<input type="checkbox" name="study" value="{escape(entry.key)}" '
        f'aria-label="Compare study {escape(study.name)}"> '
    )
    link = f'<a href="{page_url(entry)}">{escape(study.name)}</a>'
    button = f"<td>{_render_archive_button(entry, study)}</td>" if write else ""
    return (
        f'<tr><th scope="row">{choice}{link}{origin}</th>'
        f"<td>{dot}{escape(describe_state(study))}</td>"
        f"<td>{escape(phase.name) if phase else ''}</td><td class='number'>{count}</td>"
        f"<td class='number'>{best}</td><td class='number'>{study.failures or ''}</td>"
        f"<td>{escape(str(study.optimizer or ''))}</td>"
        f"<td>{format_age(study.latest_event)}</td><td>{format_time(study.started_at)}</td>{button}</tr>"
    )


def render_listing(rows: Iterable[tuple[str, str]], label: str) -> str:
    """Render a table of names and values; the values are HTML."""
    lines = "".join(
        f'<tr><th scope="row">{_insert_breaks(name)}</th><td class="fact">{text}</td></tr>'
        for name, text in rows
    )
    return _wrap_scroll(label, f'<table class="facts"><tbody>{lines}</tbody></table>')


def _insert_breaks(name: str) -> str:
    """Escape a name and allow line breaks after its dots and underscores."""
    return escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _wrap_scroll(label: str, table: str) -> str:
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'
    )


def make_message(title: str, text: str) -> list[PagePart]:
    """Make the parts of a page that shows only a message."""
    return [PagePart("message", title, f"<pre>{escape(text)}</pre>")]


def make_waiting() -> list[PagePart]:
    """Make the parts of a page whose sections are not ready yet."""
    note = '<p class="note">The study is being read; its report appears here.</p>'
    return [PagePart("waiting", "", note)]


def explain_state(study: StudyStatus, report: ReportParts) -> list[PagePart]:
    """Explain a report that is older than the header, or whose figures are not drawn; else nothing.

    Args:
        study: status of the study, which the header shows.
        report: the report below it.
    """
    notes = []
    if report.ended_count != study.ended_count:
        notes.append(
            f"This report is of the first {report.ended_count} of {study.ended_count} ended trials."
        )
    if report.is_drawing:
        notes.append(
            "The figures are being drawn, one after another; an earlier one stays until then."
        )
    elif notes:
        notes.append(
            "The next one follows after a pause, which leaves the processor to the search."
        )
    text = " ".join(notes)
    return [PagePart("state", "", f'<p class="note">{text}</p>')] if text else []


def render_value(value: Any) -> str:
    """Format and escape a value; a float has five digits."""
    if isinstance(value, float) and math.isfinite(value):
        return f"{value:.5g}"
    return "" if value is None else escape(str(value))


def format_age(moment: datetime | None) -> str:
    """Format the time since a moment."""
    if moment is None:
        return ""
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    return f"{format_duration(round(seconds) if seconds >= 10 else int(seconds))} ago"


def format_time(moment: datetime | None) -> str:
    """Format a moment as an HTML time element."""
    if moment is None:
        return ""
    text = f"{moment:%Y-%m-%d %H:%M} UTC"
    return f'<time datetime="{moment.isoformat(timespec="seconds")}">{text}</time>'
