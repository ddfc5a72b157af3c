"""The pages as HTML. Everything that comes from a study is escaped here; sections and figures come escaped from report/."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any
from urllib.parse import quote

from synaptune.core.text import format_duration
from synaptune.report.dashboard.page_cache import PagePart
from synaptune.report.dashboard.study_index import StudyEntry, UnreadableDatabase
from synaptune.report.dashboard.study_status import StudyStatus

BASE_PATH = "/synaptune"
_DOWNLOADS = ("yaml", "json", "csv")  # pages of a study that a browser keeps


def page_url(entry: StudyEntry, *rest: str) -> str:
    """The address of a study's page."""
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
    """A page; live: the address it asks for what changed; contents: whether it lists its parts."""
    listed = (
        "".join(f'<li><a href="#{part.key}">{escape(part.title)}</a></li>' for part in parts)
        if contents
        else ""
    )
    toc = f'<nav class="toc" aria-label="Contents"><ol>{listed}</ol></nav>' if contents else ""
    polled = f' data-live="{escape(live)}" data-version="{escape(version)}"' if live else ""
    body = "\n".join(map(render_part, parts))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · synaptune</title>"
        f'<link rel="icon" href="data:,"><link rel="stylesheet" href="{BASE_PATH}/style.css">'
        f'<script src="{BASE_PATH}/live.js" defer></script></head>\n'
        f'<body><div class="layout{" wide" if not contents else ""}"><header class="top">{head}</header>{toc}\n'
        f"<main{polled}>\n{body}\n</main></div></body></html>\n"
    )


def render_part(part: PagePart) -> str:
    """A part in its frame."""
    return f'<section id="{part.key}" data-digest="{part.digest}">{render_content(part)}</section>'


def render_content(part: PagePart) -> str:
    """A part as it is put into its frame."""
    return f"<h2>{escape(part.title)}</h2>{part.html}" if part.title else part.html


def render_breadcrumbs(*steps: tuple[str, str | None]) -> str:
    """The way to a page: text and address of each step, the last one without."""
    listed = "".join(
        f'<li><a href="{escape(link)}">{escape(text)}</a></li>'
        if link
        else f"<li>{escape(text)}</li>"
        for text, link in steps
    )
    return f'<nav class="crumbs" aria-label="Way here"><ol>{listed}</ol></nav>'


def render_study_head(entry: StudyEntry, study: StudyStatus, here: str) -> str:
    """Name, state and pages of a study; here: the key of the page shown."""
    pages = (
        ("report", "Report", page_url(entry)),
        ("trials", "Trials", page_url(entry, "trials")),
        ("yaml", "Best as YAML", page_url(entry, "best.yaml")),
        ("json", "Best as JSON", page_url(entry, "best.json")),
        ("csv", "All as CSV", page_url(entry, "trials.csv")),
        ("optuna", "Optuna Dashboard", page_url(entry, "optuna")),
    )
    links = "".join(
        f'<li><a href="{link}"{" aria-current=page" if key == here else " download" if key in _DOWNLOADS else ""}>{text}</a></li>'
        for key, text, link in pages
    )
    return (
        render_breadcrumbs(("Studies", "/?all"), (study.name, None))
        + f"<h1>{escape(study.name)}</h1>"
        + render_status(study, live=page_url(entry, "status"))
        + f'<nav class="pages" aria-label="Pages of the study"><ul>{links}</ul></nav>'
    )


def render_status(study: StudyStatus, *, live: str) -> str:
    """The line that says where a study stands; live: the address it is refreshed from."""
    how_far = count_progress(study)
    bar = (
        f'<progress value="{how_far[0]}" max="{how_far[1]}" aria-hidden="true"></progress>'
        if how_far is not None
        else ""
    )
    kind = "running" if study.is_running else "ended"
    text = f"<span>{escape(describe_status(study))}</span>"
    return f'<p class="status {kind}" role="status" data-status="{escape(live)}">{text}{bar}<small></small></p>'


def count_progress(study: StudyStatus) -> tuple[int, int] | None:
    """Trials that the search has ended, and those it will make; null while there is no search or another phase runs."""
    phase = study.current_phase
    if phase is None or not study.budget or study.search_phase != phase:
        return None
    return min(phase.ended_count, study.budget), study.budget


def describe_status(study: StudyStatus) -> str:
    """`running · search, 37 of 300 · best 2.1003 · last sign 12 s ago`."""
    phase = study.current_phase
    if phase is None:
        return "no trial has begun"
    words = [describe_state(study)]
    counted = (
        f"{phase.ended_count} of {study.budget}"
        if study.budget and study.search_phase == phase
        else f"{phase.ended_count} ended"
    )
    words.append(f"{phase.name}, {counted}")
    best = study.search_phase
    if best is not None and best.best is not None:
        words.append(f"best {best.best:.5g}")
    if study.failures:
        words.append(f"{study.failures} failed")
    if study.latest_event is not None:
        words.append(f"last sign {format_age(study.latest_event)}")
    return " · ".join(words)


def describe_state(study: StudyStatus) -> str:
    """`running`, or `ended`; `silent` where trials are open and their process is not known to be gone, as on another machine."""
    if study.is_running:
        return "running"
    open_ = study.trial_count - study.ended_count
    alive = study.holder is not None and not study.holder.has_ended()
    return (
        f"{'silent' if alive else 'ended'}, {open_} trial{'s' if open_ > 1 else ''} open"
        if open_
        else "ended"
    )


def render_studies(
    found: Iterable[tuple[StudyEntry, StudyStatus]], faults: Sequence[UnreadableDatabase]
) -> list[PagePart]:
    """The study browser."""
    newest = datetime.min.replace(tzinfo=UTC)
    listed = sorted(
        found, key=lambda pair: (pair[1].is_running, pair[1].latest_event or newest), reverse=True
    )
    rows = "".join(_render_study_row(place, glance) for place, glance in listed)
    heads = (
        "study",
        "state",
        "phase",
        "evaluations",
        "best",
        "failed",
        "optimizer",
        "last sign",
        "began",
    )
    numbers = ("evaluations", "best", "failed")
    cells = "".join(
        f'<th scope="col"{_number_class(head in numbers)}>{head}</th>' for head in heads
    )
    table = _wrap_scroll(
        "Studies",
        f'<table id="studies-table"><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>',
    )
    empty = "<p>No study has begun here. <code>make sweep-phase1</code> begins one.</p>"
    parts = [PagePart("studies", "", table if listed else empty)]
    if faults:
        said = "".join(
            f"<li><strong>{escape(fault.where)}</strong><pre>{escape(fault.reason)}</pre></li>"
            for fault in faults
        )
        parts.append(PagePart("unreadable", "Databases that could not be read", f"<ul>{said}</ul>"))
    return parts


def _render_study_row(entry: StudyEntry, study: StudyStatus) -> str:
    phase, search = study.current_phase, study.search_phase
    count = str(search.ended_count if search is not None else study.ended_count)
    count += f" of {study.budget}" if study.budget and search is not None else ""
    best = "" if search is None or search.best is None else f"{search.best:.5g}"
    dot = '<i class="dot" aria-hidden="true"></i>' if study.is_running else ""
    where = "" if study.is_ours else " (another program's)"
    return (
        f'<tr><th scope="row"><a href="{page_url(entry)}">{escape(study.name)}</a>{where}</th><td>{dot}{escape(describe_state(study))}</td>'
        f"<td>{escape(phase.name) if phase else ''}</td><td class='number'>{count}</td><td class='number'>{best}</td>"
        f"<td class='number'>{study.failures or ''}</td><td>{escape(str(study.optimizer or ''))}</td>"
        f"<td>{format_age(study.latest_event)}</td><td>{format_time(study.started_at)}</td></tr>"
    )


def render_listing(rows: Iterable[tuple[str, str]], label: str) -> str:
    """Names beside values that are HTML already."""
    made = "".join(
        f'<tr><th scope="row">{_insert_breaks(name)}</th><td class="fact">{text}</td></tr>'
        for name, text in rows
    )
    return _wrap_scroll(label, f'<table class="facts"><tbody>{made}</tbody></table>')


def _insert_breaks(name: str) -> str:
    """A name that may go on in another line after a dot or an underscore."""
    return escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _wrap_scroll(label: str, table: str) -> str:
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'
    )


def _number_class(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def make_message(title: str, text: str) -> list[PagePart]:
    """A page that has only something to say."""
    return [PagePart("message", title, f"<pre>{escape(text)}</pre>")]


def make_waiting() -> list[PagePart]:
    """Before the first sections are there."""
    return [
        PagePart(
            "waiting", "", '<p class="note">The figures are being drawn; they appear here.</p>'
        )
    ]


def render_value(value: Any) -> str:
    """A value for people, escaped: five digits of a number, everything of anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else escape(str(value))
    return (
        str(value)
        if isinstance(value, int)
        else f"{value:.5g}"
        if math.isfinite(value)
        else escape(str(value))
    )


def format_age(when: datetime | None) -> str:
    """How long ago, for people."""
    if when is None:
        return ""
    seconds = max(0.0, (datetime.now(UTC) - when).total_seconds())
    return (
        f"{format_duration(round(seconds) if seconds >= 10 else int(seconds))} ago"
        if seconds < 172_800
        else f"{seconds / 86_400:.0f} days ago"
    )


def format_time(when: datetime | None) -> str:
    """A time, for people and machines."""
    return (
        ""
        if when is None
        else f'<time datetime="{when.isoformat(timespec="seconds")}">{when:%Y-%m-%d %H:%M} UTC</time>'
    )
