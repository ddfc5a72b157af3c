"""`synaptune dashboard`: the studies in a browser, also while they run."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from synaptune.cli.arguments import ArgumentTable, add_subcommand
from synaptune.core.errors import user_error
from synaptune.study.database.connection import make_sqlite_url

# An environment variable: other users of the machine can read the arguments of a process.
TOKEN_VARIABLE = "SYNAPTUNE_DASHBOARD_TOKEN"
_ARGUMENTS: ArgumentTable = {
    "study": dict(
        nargs="?",
        metavar="STUDY",
        help="name of a study below outputs/studies, or its folder (default: all studies)",
    ),
    "--storage": dict(metavar="URL", help="database of studies, as in study.storage"),
    "--host": dict(
        default="127.0.0.1",
        help="address to listen on (default %(default)s); an address of another machine needs"
        " --token",
    ),
    "--port": dict(
        type=int, default=8080, help="port (default %(default)s; 0 selects a free port)"
    ),
    "--token": dict(
        metavar="T",
        help="token that a browser needs; `auto` generates and prints one (environment variable:"
        f" {TOKEN_VARIABLE})",
    ),
    "--write": dict(
        action="store_true", help="let a browser archive studies, write notes and delete studies"
    ),
}


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    summary = "show the studies in a browser, also while they run"
    add_subcommand(commands, "dashboard", summary, _ARGUMENTS, _run_dashboard)


def _run_dashboard(options: argparse.Namespace) -> None:
    from importlib.util import find_spec
    from urllib.parse import quote

    from synaptune.report.dashboard.app import DashboardApp
    from synaptune.report.dashboard.auth import AccessControl, choose_token
    from synaptune.report.dashboard.server import listen, make_server_url, serve

    if find_spec("optuna_dashboard") is None:
        raise user_error(
            got="synaptune dashboard without optuna-dashboard",
            expected="the optional extra `dashboard`",
            do="pip install 'synaptune[dashboard]'",
        )
    token = os.environ.get(TOKEN_VARIABLE) or None if options.token is None else options.token
    token = choose_token(options.host, token)
    index, start = _make_index(options.study, options.storage)
    server = listen(options.host, options.port)
    access = AccessControl(token, options.write, cookie=f"synaptune-{server.server_port}")

    def print_url() -> None:
        query = f"?token={quote(token)}" if token else ""
        warning = "; the token gives access to all studies, and HTTP is not encrypted"
        print(f"dashboard: {make_server_url(server, options.host)}{query}", flush=True)
        print(f"Ctrl-C ends it{'' if token is None else warning}", flush=True)

    pages = DashboardApp(index, start=start, write=options.write)
    serve(server, pages, access, on_ready=print_url)
    # A thread may still compute a page. When Python ends, it ends such threads, which aborts the
    # process if one of them runs C++ code. Nothing is lost: a change of a study is a transaction.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _make_index(study: str | None, storage: str | None) -> Any:
    """Return the index of the studies to show, and the key of the requested study.

    Raises:
        UserError: the requested study or database does not exist.
    """
    from synaptune.report.dashboard.study_index import StudyIndex
    from synaptune.report.dashboard.study_status import read_statuses
    from synaptune.study.reader import STUDIES_ROOT, get_study_folder

    if study is None and storage is None:
        return StudyIndex(STUDIES_ROOT), None
    if storage is not None:
        read_statuses(storage)  # raises the error of an unreadable database before the server runs
        name, index = study, StudyIndex(STUDIES_ROOT, urls=[storage])
        databases = index.named_urls
    else:
        folder: Path = get_study_folder(str(study))
        databases = (make_sqlite_url(folder.resolve() / "study.db"),)
        if not read_statuses(databases[0]):
            raise user_error(
                got=f"{folder}/study.db without a study",
                expected="a study that has begun",
                do="check its name",
            )
        name, index = folder.resolve().name, StudyIndex(STUDIES_ROOT, folders=[folder])
    if study is None:
        return index, None
    entries = [entry for entry, _ in index.list_studies()[0] if entry.url in databases]
    # A folder has one study, whatever its name is in the database.
    matches = [entry for entry in entries if entry.name == name] or (
        entries if storage is None else []
    )
    if not matches:
        raise user_error(
            got=f"no study {study} there",
            expected="one of its studies",
            do="check its name, or leave it out to see all",
        )
    return index, matches[0].key
