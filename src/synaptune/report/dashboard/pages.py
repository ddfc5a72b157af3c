"""The pages as HTML. Everything that comes from a study is escaped here; sections and figures come escaped from report/."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any
from urllib.parse import quote

from synaptune.core.text import duration
from synaptune.report.dashboard.page_cache import Part
from synaptune.report.dashboard.study_index import Place, Unreadable
from synaptune.report.dashboard.study_status import Glance

HOME = "/synaptune"
_FILES = ("yaml", "json", "csv")  # pages of a study that a browser keeps


def address(place: Place, *rest: str) -> str:
    """The address of a study's page."""
    return "/".join((HOME, "study", quote(place.key, safe=""), *rest))


def document(title: str, head: str, parts: Sequence[Part], *, live: str | None = None, version: str = "", contents: bool = False) -> str:
    """A page; live: the address it asks for what changed; contents: whether it lists its parts."""
    listed = "".join(f'<li><a href="#{part.key}">{escape(part.title)}</a></li>' for part in parts) if contents else ""
    toc = f'<nav class="toc" aria-label="Contents"><ol>{listed}</ol></nav>' if contents else ""
    polled = f' data-live="{escape(live)}" data-version="{escape(version)}"' if live else ""
    body = "\n".join(map(section, parts))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · synaptune</title>"
        f'<link rel="icon" href="data:,"><link rel="stylesheet" href="{HOME}/style.css">'
        f'<script src="{HOME}/live.js" defer></script></head>\n'
        f'<body><div class="layout{" wide" if not contents else ""}"><header class="top">{head}</header>{toc}\n'
        f"<main{polled}>\n{body}\n</main></div></body></html>\n"
    )


def section(part: Part) -> str:
    """A part in its frame."""
    return f'<section id="{part.key}" data-digest="{part.digest}">{inside(part)}</section>'


def inside(part: Part) -> str:
    """A part as it is put into its frame."""
    return f"<h2>{escape(part.title)}</h2>{part.html}" if part.title else part.html


def crumbs(*steps: tuple[str, str | None]) -> str:
    """The way to a page: text and address of each step, the last one without."""
    listed = "".join(
        f'<li><a href="{escape(link)}">{escape(text)}</a></li>' if link else f"<li>{escape(text)}</li>" for text, link in steps
    )
    return f'<nav class="crumbs" aria-label="Way here"><ol>{listed}</ol></nav>'


def study_head(place: Place, glance: Glance, here: str) -> str:
    """Name, state and pages of a study; here: the key of the page shown."""
    pages = (
        ("report", "Report", address(place)),
        ("trials", "Trials", address(place, "trials")),
        ("yaml", "Best as YAML", address(place, "best.yaml")),
        ("json", "Best as JSON", address(place, "best.json")),
        ("csv", "All as CSV", address(place, "trials.csv")),
        ("optuna", "Optuna Dashboard", address(place, "optuna")),
    )
    links = "".join(
        f'<li><a href="{link}"{" aria-current=page" if key == here else " download" if key in _FILES else ""}>{text}</a></li>'
        for key, text, link in pages
    )
    return (
        crumbs(("Studies", "/?all"), (glance.name, None))
        + f"<h1>{escape(glance.name)}</h1>"
        + status(glance, live=address(place, "status"))
        + f'<nav class="pages" aria-label="Pages of the study"><ul>{links}</ul></nav>'
    )


def status(glance: Glance, *, live: str) -> str:
    """The line that says where a study stands; live: the address it is refreshed from."""
    how_far = progress(glance)
    bar = f'<progress value="{how_far[0]}" max="{how_far[1]}" aria-hidden="true"></progress>' if how_far is not None else ""
    kind = "running" if glance.running else "ended"
    text = f"<span>{escape(standing(glance))}</span>"
    return f'<p class="status {kind}" role="status" data-status="{escape(live)}">{text}{bar}<small></small></p>'


def progress(glance: Glance) -> tuple[int, int] | None:
    """Trials that the search has ended, and those it will make; null while there is no search or another phase runs."""
    phase = glance.current
    if phase is None or not glance.budget or glance.searched != phase:
        return None
    return min(phase.ended, glance.budget), glance.budget


def standing(glance: Glance) -> str:
    """`running · search, 37 of 300 · best 2.1003 · last sign 12 s ago`."""
    phase = glance.current
    if phase is None:
        return "no trial has begun"
    words = [state(glance)]
    counted = f"{phase.ended} of {glance.budget}" if glance.budget and glance.searched == phase else f"{phase.ended} ended"
    words.append(f"{phase.name}, {counted}")
    best = glance.searched
    if best is not None and best.best is not None:
        words.append(f"best {best.best:.5g}")
    if glance.failures:
        words.append(f"{glance.failures} failed")
    if glance.latest is not None:
        words.append(f"last sign {ago(glance.latest)}")
    return " · ".join(words)


def state(glance: Glance) -> str:
    """`running`, or `ended`; `silent` where trials are open and their process is not known to be gone, as on another machine."""
    if glance.running:
        return "running"
    open_ = glance.trials - glance.ended
    alive = glance.holder is not None and not glance.holder.has_ended()
    return f"{'silent' if alive else 'ended'}, {open_} trial{'s' if open_ > 1 else ''} open" if open_ else "ended"


def studies(found: Iterable[tuple[Place, Glance]], faults: Sequence[Unreadable]) -> list[Part]:
    """The study browser."""
    newest = datetime.min.replace(tzinfo=UTC)
    listed = sorted(found, key=lambda pair: (pair[1].running, pair[1].latest or newest), reverse=True)
    rows = "".join(_study(place, glance) for place, glance in listed)
    heads = ("study", "state", "phase", "evaluations", "best", "failed", "optimizer", "last sign", "began")
    numbers = ("evaluations", "best", "failed")
    cells = "".join(f'<th scope="col"{_number(head in numbers)}>{head}</th>' for head in heads)
    table = _scroll("Studies", f'<table id="studies-table"><thead><tr>{cells}</tr></thead><tbody>{rows}</tbody></table>')
    empty = "<p>No study has begun here. <code>make sweep-phase1</code> begins one.</p>"
    parts = [Part("studies", "", table if listed else empty)]
    if faults:
        said = "".join(f"<li><strong>{escape(fault.where)}</strong><pre>{escape(fault.reason)}</pre></li>" for fault in faults)
        parts.append(Part("unreadable", "Databases that could not be read", f"<ul>{said}</ul>"))
    return parts


def _study(place: Place, glance: Glance) -> str:
    phase, search = glance.current, glance.searched
    count = str(search.ended if search is not None else glance.ended)
    count += f" of {glance.budget}" if glance.budget and search is not None else ""
    best = "" if search is None or search.best is None else f"{search.best:.5g}"
    dot = '<i class="dot" aria-hidden="true"></i>' if glance.running else ""
    where = "" if glance.ours else " (another program's)"
    return (
        f'<tr><th scope="row"><a href="{address(place)}">{escape(glance.name)}</a>{where}</th><td>{dot}{escape(state(glance))}</td>'
        f"<td>{escape(phase.name) if phase else ''}</td><td class='number'>{count}</td><td class='number'>{best}</td>"
        f"<td class='number'>{glance.failures or ''}</td><td>{escape(str(glance.optimizer or ''))}</td>"
        f"<td>{ago(glance.latest)}</td><td>{moment(glance.began)}</td></tr>"
    )


def listing(rows: Iterable[tuple[str, str]], label: str) -> str:
    """Names beside values that are HTML already."""
    made = "".join(f'<tr><th scope="row">{_broken(name)}</th><td class="fact">{text}</td></tr>' for name, text in rows)
    return _scroll(label, f'<table class="facts"><tbody>{made}</tbody></table>')


def _broken(name: str) -> str:
    """A name that may go on in another line after a dot or an underscore."""
    return escape(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _scroll(label: str, table: str) -> str:
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'


def _number(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def message(title: str, text: str) -> list[Part]:
    """A page that has only something to say."""
    return [Part("message", title, f"<pre>{escape(text)}</pre>")]


def waiting() -> list[Part]:
    """Before the first sections are there."""
    return [Part("waiting", "", '<p class="note">The figures are being drawn; they appear here.</p>')]


def number(value: Any) -> str:
    """A value for people, escaped: five digits of a number, everything of anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else escape(str(value))
    return str(value) if isinstance(value, int) else f"{value:.5g}" if math.isfinite(value) else escape(str(value))


def ago(when: datetime | None) -> str:
    """How long ago, for people."""
    if when is None:
        return ""
    seconds = max(0.0, (datetime.now(UTC) - when).total_seconds())
    return f"{duration(round(seconds) if seconds >= 10 else int(seconds))} ago" if seconds < 172_800 else f"{seconds / 86_400:.0f} days ago"


def moment(when: datetime | None) -> str:
    """A time, for people and machines."""
    return "" if when is None else f'<time datetime="{when.isoformat(timespec="seconds")}">{when:%Y-%m-%d %H:%M} UTC</time>'
