"""Routes of the dashboard. Paths outside / and /synaptune belong to optuna-dashboard."""

from __future__ import annotations

import importlib
import json
import mimetypes
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl, quote

from synaptune.core.errors import UserError, user_error
from synaptune.report.dashboard import pages, trials
from synaptune.report.dashboard.merged_storage import MergedStorage, ReadOnlyError
from synaptune.report.dashboard.page_cache import READ_TIMEOUT, PageCache, PagePart
from synaptune.report.dashboard.study_index import StudyEntry, StudyIndex
from synaptune.report.dashboard.study_status import StudyStatus
from synaptune.study.database.keys import ARCHIVED
from synaptune.study.reader import StudySnapshot

# Modules that a page may need. They are imported before threads start, because concurrent imports
# of a library can see it partially initialised.
_PRELOADED_MODULES = (
    *(
        "optuna",
        "optuna.importance",
        "optuna.storages._rdb.models",
        "optuna_dashboard",
        "sqlalchemy.orm",
    ),
    *(
        "matplotlib.figure",
        "matplotlib.backends.backend_svg",
        "scipy.stats",
        "sklearn.ensemble",
        "nevergrad",
        "cma",
    ),
    *("synaptune.analysis.evidence", "synaptune.report.page", "synaptune.search.optimizers.cma"),
)
REPORT_WAIT = 1.5  # [s] that a page waits for its sections before it is sent without them
_MAX_DIGITS = 18  # of a trial number; Python refuses to parse thousands of digits
_HTML, _JSON = "text/html; charset=utf-8", "application/json"


@dataclass(frozen=True)
class Response:
    """Status, content and additional headers."""

    body: str | bytes
    content_type: str = _HTML
    status: str = "200 OK"
    headers: list[tuple[str, str]] = field(default_factory=list)


class NotFound(Exception):
    """An address has no page."""


class DashboardApp:
    """The WSGI application without access control (auth.py)."""

    def __init__(self, index: StudyIndex, *, start: str | None = None, write: bool = False) -> None:
        """Create the application.

        Args:
            index: the studies.
            start: key of the study that / redirects to; None means the list of all studies.
            write: whether optuna-dashboard may change studies.
        """
        for name in _PRELOADED_MODULES:
            importlib.import_module(name)
        self._index, self._start, self._write = index, start, write
        self._cache = PageCache()
        self._lock = threading.Lock()
        self._optuna: Any = None

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/").encode("latin-1").decode("utf-8", "replace")
        words = [word for word in path.split("/") if word]
        if words and words[0] != "synaptune":
            return self._forward(environ, start_response)
        query = dict(parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True))
        try:
            if environ["REQUEST_METHOD"] == "POST":
                answer = self._change(words[1:])
            else:
                answer = self._route(words[1:], query, environ.get("QUERY_STRING", ""))
        except NotFound as error:
            answer = _make_message_page("Not found", str(error), "404 Not Found")
        except UserError as error:
            answer = _make_message_page(
                "This cannot be shown", str(error), "503 Service Unavailable"
            )
        except Exception as error:  # the failure of one page must not end the server
            traceback.print_exception(error, file=sys.stderr)
            answer = _make_message_page(
                "This page could not be made",
                f"{type(error).__name__}: {error}",
                "500 Internal Server Error",
            )
        body = answer.body.encode() if isinstance(answer.body, str) else answer.body
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(body))),
            *answer.headers,
        ]
        if not any(name == "Cache-Control" for name, _ in headers):
            headers.append(("Cache-Control", "no-store"))
        start_response(answer.status, headers)
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]

    def _route(self, words: list[str], query: dict[str, str], text: str) -> Response:
        match words:
            case []:
                if self._start is not None and "all" not in query:
                    return Response(
                        "",
                        status="302 Found",
                        headers=[
                            ("Location", f"{pages.BASE_PATH}/study/{quote(self._start, safe='')}")
                        ],
                    )
                studies, faults = self._index.list_studies()
                return _make_page(
                    "Studies",
                    "<h1>Studies</h1>",
                    pages.render_studies(studies, faults, write=self._write),
                    query,
                    live="/?all",
                )
            case ["style.css"]:
                return Response(_read_stylesheet(), "text/css; charset=utf-8")
            case ["live.js"]:
                return Response(
                    files("synaptune.report.dashboard").joinpath("live.js").read_bytes(),
                    "text/javascript; charset=utf-8",
                )
            case ["compare"]:
                return self._show_comparison(
                    [key for name, key in parse_qsl(text) if name == "study"]
                )
            case ["study", key, *rest]:
                return self._route_study(*self._find_study(key), rest, query)
        raise NotFound("There is no page at this address.")

    def _find_study(self, key: str) -> tuple[StudyEntry, StudyStatus]:
        entry = self._index.find_study(key)
        status = None if entry is None else entry.read_status()
        if entry is None or status is None:
            raise NotFound("There is no such study: it was deleted or has not started.")
        return entry, status

    def _change(self, words: list[str]) -> Response:
        """Change a study: mark it as archived, or remove the mark."""
        match words:
            case ["study", key, "archive" | "restore" as action]:
                entry, study = self._find_study(key)
                self._load_optuna()
                try:
                    number = self._storage.find_key(entry.url, entry.name)
                    self._storage.set_study_user_attr(number, ARCHIVED, action == "archive")
                except ReadOnlyError as error:
                    return _make_message_page("Not changed", str(error), "403 Forbidden")
                finally:
                    self._storage.remove_session()
                self._index.forget_listing()
                return Response(json.dumps({"study": study.name, "action": action}), _JSON)
        raise NotFound("There is no page at this address.")

    def _show_comparison(self, keys: list[str]) -> Response:
        """Show the comparison of several studies."""
        from synaptune.report.comparison import make_comparison

        studies = [self._find_study(key) for key in dict.fromkeys(keys)]
        if len(studies) < 2:
            raise user_error(
                got=f"{len(studies)} studies to compare",
                expected="two or more",
                do="go back and choose them in the list of studies",
            )
        sections = make_comparison([self._cache.get_evidence(*pair) for pair in studies])
        names = ", ".join(study.name for _, study in studies)
        head = pages.render_breadcrumbs(("Studies", "/?all"), ("Comparison", None))
        return Response(
            pages.render_page(
                f"Comparison of {names}",
                f"{head}<h1>{len(studies)} studies compared</h1><p>{escape(names)}</p>",
                [PagePart(section.key, section.title, section.html) for section in sections],
                contents=True,
            )
        )

    def _route_study(
        self, entry: StudyEntry, study: StudyStatus, words: list[str], query: dict[str, str]
    ) -> Response:
        match words:
            case []:
                return self._show_report(entry, study, query)
            case ["status"]:
                status = {
                    "text": pages.describe_status(study),
                    "running": study.is_running,
                    "state": study.state,
                    "version": self._cache.get_version(entry, study),
                    "bar": pages.count_progress(study),
                }
                return Response(json.dumps(status), _JSON)
            case ["trials"]:
                return self._show_trials(entry, study, query)
            case ["trial", number] if (
                number.isascii() and number.isdigit() and len(number) <= _MAX_DIGITS
            ):
                return self._show_trial(entry, study, int(number), query)
            case ["best.yaml" | "best.json" as name]:
                return self._send_best(entry, study, name)
            case ["trials.csv"]:
                from synaptune.study.table import tabulate_trials, to_csv

                snapshot = self._read_snapshot(entry, study)
                return _make_download(
                    to_csv(tabulate_trials(snapshot.trials)),
                    "text/csv; charset=utf-8",
                    f"{study.name}-trials.csv",
                )
            case ["optuna"]:
                self._load_optuna()
                key = self._storage.find_key(entry.url, entry.name)
                return Response(
                    "", status="302 Found", headers=[("Location", f"/dashboard/studies/{key}")]
                )
        raise NotFound("There is no page at this address.")

    def _read_snapshot(self, entry: StudyEntry, study: StudyStatus) -> StudySnapshot:
        """Read the complete study.

        Raises:
            UserError: it cannot be read, or reading takes longer than READ_TIMEOUT.
        """
        read = self._cache.get_snapshot(entry, study)
        if read is None:
            raise user_error(
                got=f"study {study.name}, which could not be read within {READ_TIMEOUT:.0f} s",
                expected="a database that answers",
                do="load this page again; reading continues in the background",
            )
        return read.value

    def _show_report(
        self, entry: StudyEntry, study: StudyStatus, query: dict[str, str]
    ) -> Response:
        timeout = READ_TIMEOUT if "live" in query else REPORT_WAIT
        cached = self._cache.get_parts(entry, study, timeout)
        parts = pages.make_waiting() if cached is None else cached.value.parts
        if cached is not None:
            parts = [*pages.explain_state(study, cached.value), *parts]
        return _make_page(
            study.name,
            pages.render_study_head(entry, study, "report", self._write),
            parts,
            query,
            live=pages.page_url(entry),
            version="" if cached is None else cached.version,
            contents=True,
        )

    def _show_trials(
        self, entry: StudyEntry, study: StudyStatus, query: dict[str, str]
    ) -> Response:
        view, cached = trials.TrialsView.from_query(query), self._cache.get_snapshot(entry, study)
        parts, version = pages.make_waiting(), ""
        if cached is not None:
            parts = trials.render_trials(entry, cached.value, view)
            is_current = cached.version == study.version
            version = self._cache.get_version(entry, study) if is_current else ""
        live = f"{pages.page_url(entry, 'trials')}?{view.to_query()}"
        head = pages.render_study_head(entry, study, "trials", self._write)
        return _make_page(f"{study.name}: trials", head, parts, query, live=live, version=version)

    def _show_trial(
        self, entry: StudyEntry, study: StudyStatus, number: int, query: dict[str, str]
    ) -> Response:
        snapshot = self._read_snapshot(entry, study)
        trial = next((trial for trial in snapshot.trials if trial.number == number), None)
        if trial is None:
            raise NotFound(f"Study {study.name} has no trial {number}.")
        numbers = {trial.number for trial in snapshot.trials}
        neighbours = "".join(
            f' <a class="tool" href="{pages.page_url(entry, "trial", str(neighbour))}">{text}</a>'
            for neighbour, text in ((number - 1, "previous"), (number + 1, "next"))
            if neighbour in numbers
        )
        breadcrumbs = pages.render_breadcrumbs(
            ("Studies", "/?all"),
            (study.name, pages.page_url(entry)),
            ("Trials", pages.page_url(entry, "trials")),
            (str(number), None),
        )
        live = pages.page_url(entry, "trial", str(number)) if trial.state == "running" else None
        return _make_page(
            f"{study.name}: trial {number}",
            f"{breadcrumbs}<h1>Trial {number}</h1><p>{neighbours}</p>",
            trials.render_trial(entry, snapshot, trial),
            query,
            live=live,
        )

    def _send_best(self, entry: StudyEntry, study: StudyStatus, name: str) -> Response:
        from synaptune.report.tables import render_best_yaml

        evidence = self._cache.get_evidence(entry, study)
        best, text = evidence.best, render_best_yaml(evidence)
        if text is None or best is None:
            raise NotFound(
                f"Study {study.name} has no best configuration yet: no trial of its search is "
                "complete."
            )
        if name == "best.yaml":
            return _make_download(
                text, "application/yaml; charset=utf-8", f"{study.name}-best.yaml"
            )
        content = {
            "study": study.name,
            "trial": best.number,
            "phase": evidence.phase,
            "objective": best.objective,
            "maximize": study.maximize,
            "parameters": {**evidence.fixed, **best.values},
        }
        return _make_download(
            json.dumps(content, indent=2) + "\n", _JSON, f"{study.name}-best.json"
        )

    def _load_optuna(self) -> Any:
        with self._lock:
            if self._optuna is None:
                import optuna_dashboard

                self._storage = MergedStorage(self._index.list_databases, write=self._write)
                self._optuna = optuna_dashboard.wsgi(self._storage)
            return self._optuna

    def _forward(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # optuna-dashboard requires the header
        try:
            return list(self._load_optuna()(environ, start_response))
        except ReadOnlyError as error:
            start_response(
                "403 Forbidden", [("Content-Type", _JSON), ("Cache-Control", "no-store")]
            )
            return [json.dumps({"reason": str(error)}).encode()]  # which optuna-dashboard shows
        finally:
            self._storage.remove_session()


def _make_page(
    title: str,
    head: str,
    parts: list[PagePart],
    query: dict[str, str],
    *,
    live: str | None,
    version: str = "",
    contents: bool = False,
) -> Response:
    """Make a page; with ?live=digests, the parts whose digest is not in that list."""
    if "live" not in query:
        return Response(
            pages.render_page(title, head, parts, live=live, version=version, contents=contents)
        )
    known = set(query["live"].split(","))
    changed = [
        {"key": part.key, "title": part.title, "digest": part.digest}
        | ({} if part.digest in known else {"html": pages.render_content(part)})
        for part in parts
    ]
    return Response(json.dumps({"version": version, "parts": changed}), _JSON)


def _make_message_page(title: str, text: str, status: str) -> Response:
    return Response(
        pages.render_page(
            title,
            pages.render_breadcrumbs(("Studies", "/?all")),
            pages.make_message(title, text),
            live=None,
        ),
        status=status,
    )


def _make_download(body: str, kind: str, name: str) -> Response:
    """Make a download with a file name that every file system accepts."""
    letters = (letter if letter.isalnum() or letter in " ._-+=" else "_" for letter in name)
    safe = "".join(letters).lstrip(".") or "study"
    plain = safe.encode("ascii", "replace").decode().replace("?", "_")
    return Response(
        body,
        kind,
        headers=[
            (
                "Content-Disposition",
                f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(safe)}",
            )
        ],
    )


def _read_stylesheet() -> str:
    from synaptune.report.figures.theme import make_css

    sheets = (
        files("synaptune.report").joinpath("page.css"),
        files("synaptune.report.dashboard").joinpath("dashboard.css"),
    )
    return make_css() + "\n".join(sheet.read_text(encoding="utf-8") for sheet in sheets)


# Overrides the table of the machine: a browser refuses a script of another type.
mimetypes.add_type("text/javascript", ".js")
