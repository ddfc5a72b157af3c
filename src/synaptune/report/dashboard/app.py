"""What is at which address. Our pages are below /synaptune and at /; everything else is optuna-dashboard's."""

from __future__ import annotations

import importlib
import json
import mimetypes
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl, quote

from synaptune.core.errors import UserError, mistake
from synaptune.report.dashboard import pages, trials
from synaptune.report.dashboard.page_cache import PATIENCE, Desks, Part
from synaptune.report.dashboard.study_index import Catalogue, Place
from synaptune.report.dashboard.study_status import Glance
from synaptune.study.reader import Record

# Everything that a page may need, imported before there are threads: two that import one library at once find it half made.
_NEEDED = (
    *("optuna", "optuna.importance", "optuna.storages._rdb.models", "optuna_dashboard", "sqlalchemy.orm"),
    *("matplotlib.figure", "matplotlib.backends.backend_svg", "scipy.stats", "sklearn.ensemble", "nevergrad", "cma"),
    *("synaptune.analysis.evidence", "synaptune.report.page", "synaptune.search.optimizers.cma"),
)
SOON = 1.5  # s that a page waits for its figures before it is sent without them
_DIGITS = 18  # of the number of a trial; Python refuses to read thousands
_HTML, _JSON = "text/html; charset=utf-8", "application/json"


@dataclass(frozen=True)
class Answer:
    """Status, content and further headers."""

    body: str | bytes
    kind: str = _HTML
    status: str = "200 OK"
    headers: list[tuple[str, str]] = field(default_factory=list)


class Missing(Exception):
    """There is nothing at an address."""


class Pages:
    """The WSGI application without the check of who looks."""

    def __init__(self, catalogue: Catalogue, *, start: str | None = None, write: bool = False) -> None:
        """start: the key of the study that / leads to; null leads to the list of all."""
        for name in _NEEDED:
            importlib.import_module(name)
        self._catalogue, self._start, self._write = catalogue, start, write
        self._desks = Desks()
        self._guard = threading.Lock()
        self._optuna: Any = None

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/").encode("latin-1").decode("utf-8", "replace")
        words = [word for word in path.split("/") if word]
        if words and words[0] != "synaptune":
            return self._pass_on(environ, start_response)
        query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
        try:
            answer = self._answer(words[1:], query)
        except Missing as error:
            answer = _said("Nothing here", str(error), "404 Not Found")
        except UserError as error:
            answer = _said("This cannot be shown", str(error), "503 Service Unavailable")
        except Exception as error:  # one page that cannot be made must not take the others with it
            traceback.print_exception(error, file=sys.stderr)
            answer = _said("This page could not be made", f"{type(error).__name__}: {error}", "500 Internal Server Error")
        body = answer.body.encode() if isinstance(answer.body, str) else answer.body
        headers = [("Content-Type", answer.kind), ("Content-Length", str(len(body))), *answer.headers]
        if not any(name == "Cache-Control" for name, _ in headers):
            headers.append(("Cache-Control", "no-store"))
        start_response(answer.status, headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    def _answer(self, words: list[str], query: dict[str, str]) -> Answer:
        match words:
            case []:
                if self._start is not None and "all" not in query:
                    return Answer("", status="302 Found", headers=[("Location", f"{pages.HOME}/study/{quote(self._start, safe='')}")])
                found, faults = self._catalogue.studies()
                return _page("Studies", "<h1>Studies</h1>", pages.studies(found, faults), query, live="/?all")
            case ["style.css"]:
                return Answer(_style(), "text/css; charset=utf-8")
            case ["live.js"]:
                return Answer(files("synaptune.report.dashboard").joinpath("live.js").read_bytes(), "text/javascript; charset=utf-8")
            case ["study", key, *rest]:
                place = self._catalogue.place(key)
                glance = None if place is None else place.glance()
                if place is None or glance is None:
                    raise Missing("There is no such study any more, or not yet.")
                return self._study(place, glance, rest, query)
        raise Missing("There is no page at this address.")

    def _study(self, place: Place, glance: Glance, words: list[str], query: dict[str, str]) -> Answer:
        match words:
            case []:
                return self._report(place, glance, query)
            case ["status"]:
                about = {"text": pages.standing(glance), "running": glance.running, "version": self._desks.version(place, glance)}
                return Answer(json.dumps(about | {"bar": pages.progress(glance)}), _JSON)
            case ["trials"]:
                return self._trials(place, glance, query)
            case ["trial", number] if number.isascii() and number.isdigit() and len(number) <= _DIGITS:
                return self._trial(place, glance, int(number), query)
            case ["best.yaml" | "best.json" as name]:
                return self._best(place, glance, name)
            case ["trials.csv"]:
                from synaptune.study.table import as_csv, columns

                record = self._record(place, glance)
                return _download(as_csv(columns(record.trials)), "text/csv; charset=utf-8", f"{glance.name}-trials.csv")
            case ["optuna"]:
                self._load_optuna()
                where = self._union.key_of(place.url, place.name)
                return Answer("", status="302 Found", headers=[("Location", f"/dashboard/studies/{where}")])
        raise Missing("There is no page at this address.")

    def _record(self, place: Place, glance: Glance) -> Record:
        """The study read whole. Raises UserError, also when that takes too long."""
        read = self._desks.record(place, glance)
        if read is None:
            raise mistake(
                got=f"study {glance.name}, which could not be read within {PATIENCE:.0f} s",
                expected="a database that answers",
                do="load this page again: it is being read",
            )
        return read.value

    def _report(self, place: Place, glance: Glance, query: dict[str, str]) -> Answer:
        polled = "live" in query
        made = self._desks.parts(place, glance) if polled else self._desks.parts(place, glance, SOON)
        parts = pages.waiting() if made is None else made.value
        version = "" if made is None else made.version
        head = pages.study_head(place, glance, "report")
        return _page(glance.name, head, parts, query, live=pages.address(place), version=version, contents=True)

    def _trials(self, place: Place, glance: Glance, query: dict[str, str]) -> Answer:
        view, read = trials.View.of(query), self._desks.record(place, glance)
        parts = pages.waiting() if read is None else trials.table(place, read.value, view)
        current = read is not None and read.version == glance.version
        version = self._desks.version(place, glance) if current else ""
        live = f"{pages.address(place, 'trials')}?{view.query()}"
        head = pages.study_head(place, glance, "trials")
        return _page(f"{glance.name}: trials", head, parts, query, live=live, version=version)

    def _trial(self, place: Place, glance: Glance, number: int, query: dict[str, str]) -> Answer:
        record = self._record(place, glance)
        trial = next((trial for trial in record.trials if trial.number == number), None)
        if trial is None:
            raise Missing(f"Study {glance.name} has no trial {number}.")
        numbers = {trial.number for trial in record.trials}
        around = "".join(
            f' <a class="tool" href="{pages.address(place, "trial", str(near))}">{text}</a>'
            for near, text in ((number - 1, "previous"), (number + 1, "next"))
            if near in numbers
        )
        way = pages.crumbs(
            ("Studies", "/?all"), (glance.name, pages.address(place)), ("Trials", pages.address(place, "trials")), (str(number), None)
        )
        live = pages.address(place, "trial", str(number)) if trial.state == "running" else None
        return _page(
            f"{glance.name}: trial {number}",
            f"{way}<h1>Trial {number}</h1><p>{around}</p>",
            trials.page(place, record, trial),
            query,
            live=live,
        )

    def _best(self, place: Place, glance: Glance, name: str) -> Answer:
        from synaptune.report.tables import best_yaml

        found = self._desks.evidence(place, glance)
        best, text = found.best, best_yaml(found)
        if text is None or best is None:
            raise Missing(f"Study {glance.name} has no best configuration yet: no trial of its search is complete.")
        if name == "best.yaml":
            return _download(text, "application/yaml; charset=utf-8", f"{glance.name}-best.yaml")
        about = {"study": glance.name, "trial": best.number, "phase": found.phase, "objective": best.objective, "maximize": glance.maximize}
        about["parameters"] = {**found.fixed, **best.values}
        return _download(json.dumps(about, indent=2) + "\n", _JSON, f"{glance.name}-best.json")

    def _load_optuna(self) -> Any:
        with self._guard:
            if self._optuna is None:
                import optuna_dashboard

                from synaptune.report.dashboard.merged_storage import Union

                self._union = Union(self._catalogue.databases, write=self._write)
                self._optuna = optuna_dashboard.wsgi(self._union)
            return self._optuna

    def _pass_on(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # optuna-dashboard expects one
        try:
            return list(self._load_optuna()(environ, start_response))
        finally:
            self._union.remove_session()


def _page(
    title: str, head: str, parts: list[Part], query: dict[str, str], *, live: str | None, version: str = "", contents: bool = False
) -> Answer:
    """A page, or with ?live=digests what of it is not among them."""
    if "live" not in query:
        return Answer(pages.document(title, head, parts, live=live, version=version, contents=contents))
    known = set(query["live"].split(","))
    changed = [
        {"key": part.key, "title": part.title, "digest": part.digest} | ({} if part.digest in known else {"html": pages.inside(part)})
        for part in parts
    ]
    return Answer(json.dumps({"version": version, "parts": changed}), _JSON)


def _said(title: str, text: str, status: str) -> Answer:
    return Answer(pages.document(title, pages.crumbs(("Studies", "/?all")), pages.message(title, text), live=None), status=status)


def _download(body: str, kind: str, name: str) -> Answer:
    """A file to keep, under a name that every file system takes."""
    safe = "".join(letter if letter.isalnum() or letter in " ._-+=" else "_" for letter in name).lstrip(".") or "study"
    plain = safe.encode("ascii", "replace").decode().replace("?", "_")
    return Answer(body, kind, headers=[("Content-Disposition", f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(safe)}")])


def _style() -> str:
    from synaptune.report.figures.theme import css

    sheets = (files("synaptune.report").joinpath("page.css"), files("synaptune.report.dashboard").joinpath("dashboard.css"))
    return css() + "\n".join(sheet.read_text(encoding="utf-8") for sheet in sheets)


mimetypes.add_type("text/javascript", ".js")  # whatever the machine's own table says: a browser refuses a script of another type
