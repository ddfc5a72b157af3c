"""`synaptune dashboard`: the studies in the browser, while they run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from synaptune.core.errors import user_error
from synaptune.study.database.connection import make_sqlite_url

# Of the environment: unlike an argument, other users of the machine cannot see it
TOKEN_VARIABLE = "SYNAPTUNE_DASHBOARD_TOKEN"


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("dashboard", help="the studies in the browser, while they run")
    parser.add_argument(
        "study",
        nargs="?",
        metavar="STUDY",
        help="a name below outputs/studies, or a study's folder (default: all)",
    )
    parser.add_argument(
        "--storage", metavar="URL", help="a database of studies, as in study.storage"
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help=(
            "address to listen on (default %(default)s); any other than this machine's needs"
            " --token"
        ),
    )
    parser.add_argument(
        "--port", type=int, default=8080, help="port (default %(default)s; 0 takes any free one)"
    )
    parser.add_argument(
        "--token",
        metavar="T",
        help=(
            f"what a browser has to show; `auto` makes one and prints it (or set {TOKEN_VARIABLE})"
        ),
    )
    parser.add_argument(
        "--write", action="store_true", help="let Optuna Dashboard write notes, and delete studies"
    )
    parser.set_defaults(command=_run_dashboard)


def _run_dashboard(options: argparse.Namespace) -> None:
    from importlib.util import find_spec
    from urllib.parse import quote

    from synaptune.report.dashboard.app import DashboardApp
    from synaptune.report.dashboard.auth import AccessControl, choose_token
    from synaptune.report.dashboard.server import listen, serve, server_url

    if find_spec("optuna_dashboard") is None:
        raise user_error(
            got="no optuna-dashboard",
            expected="it installed",
            do="pip install 'synaptune[dashboard]'",
        )
    token = choose_token(
        options.host,
        os.environ.get(TOKEN_VARIABLE) or None if options.token is None else options.token,
    )
    catalogue, start = _make_index(options.study, options.storage)
    server = listen(options.host, options.port)
    access = AccessControl(token, options.write, cookie=f"synaptune-{server.server_port}")
    where = server_url(server, options.host)

    def print_url() -> None:
        print(f"dashboard: {where}{f'?token={quote(token)}' if token else ''}", flush=True)
        print(
            "Ctrl-C ends it"
            + (
                ""
                if token is None
                else (
                    "; whoever has the token may look, so share it with care (HTTP is not"
                    " encrypted)"
                )
            ),
            flush=True,
        )

    pages = DashboardApp(catalogue, start=start, write=options.write)
    serve(server, pages, access, on_ready=print_url)


def _make_index(study: str | None, storage: str | None) -> Any:
    """The studies to show, and the key of the one that was asked for.

    Raises UserError for one that is not there.
    """
    from synaptune.report.dashboard.study_index import StudyIndex
    from synaptune.report.dashboard.study_status import read_statuses
    from synaptune.study.reader import STUDIES_ROOT, get_study_folder

    if storage is not None:
        read_statuses(storage)  # a database that cannot be read is said here, not in the browser
        catalogue = StudyIndex(STUDIES_ROOT, urls=[storage])
        if study is None:
            return catalogue, None
        found = [
            place
            for place, _ in catalogue.list_studies()[0]
            if place.name == study and place.url in catalogue.named_urls
        ]
    elif study is not None:
        folder: Path = get_study_folder(study)
        url = make_sqlite_url(folder.resolve() / "study.db")
        names = [glance.name for glance in read_statuses(url)]
        catalogue = StudyIndex(STUDIES_ROOT, folders=[folder])
        places = [place for place, _ in catalogue.list_studies()[0] if place.url == url]
        found = sorted(places, key=lambda place: place.name != folder.resolve().name)
        if not names:
            raise user_error(
                got=f"{folder}/study.db without a study",
                expected="a study that has begun",
                do="check its name",
            )
    else:
        return StudyIndex(STUDIES_ROOT), None
    if not found:
        raise user_error(
            got=f"no study {study} there",
            expected="one of its studies",
            do="check its name, or leave it out to see all",
        )
    return catalogue, found[0].key
