"""The dashboard with studies that change while it runs, and with databases of other programs."""

import io
import json
import shutil
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import optuna
import pytest

from helpers.webclient import make_study, request

pytest.importorskip(
    "optuna_dashboard",
    reason="optuna-dashboard is not installed (pip install 'synaptune[dashboard]')",
)

from synaptune.core.errors import UserError
from synaptune.report.dashboard import page_cache, pages
from synaptune.report.dashboard.app import DashboardApp
from synaptune.report.dashboard.merged_storage import MergedStorage
from synaptune.report.dashboard.page_cache import PageCache
from synaptune.report.dashboard.study_index import StudyIndex
from synaptune.report.dashboard.study_status import PhaseStatus, StudyStatus, read_statuses
from synaptune.study.database.connection import open_storage
from synaptune.study.database.errors import as_user_errors
from synaptune.study.database.locks import Holder
from synaptune.study.reader import read_study
from synaptune.study.state import SearchPlan


def make_foreign_study(path: Path, name: str = "other", **notes) -> str:
    """Write a study with Optuna alone; returns the URL of its database."""
    url = f"sqlite:///{path}"
    study = optuna.create_study(study_name=name, storage=url)
    for key, value in notes.items():
        study.set_user_attr(key, value)
    for value in (2.0, 1.0):
        trial = study.ask()
        trial.set_user_attr("phase", {"odd": value})
        study.tell(trial, value)
    return url


def read_layout(path: Path) -> tuple:
    """Read the journal mode and the tables, which the dashboard must not change."""
    with sqlite3.connect(path) as database:
        mode = database.execute("PRAGMA journal_mode").fetchone()
        tables = database.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall()
    database.close()
    return mode, tables


@pytest.mark.slow
def test_the_dashboard_writes_to_no_database(tmp_path):
    (tmp_path / "foreign").mkdir()
    with sqlite3.connect(tmp_path / "foreign" / "study.db") as database:
        database.execute("CREATE TABLE patients (name)")
    database.close()
    url = make_foreign_study(tmp_path / "other.db")
    files = (tmp_path / "foreign" / "study.db", tmp_path / "other.db")
    before = [read_layout(path) for path in files]
    app = DashboardApp(StudyIndex(tmp_path, urls=[url]))
    (study,) = json.loads(request(app, "/api/studies").body)["study_summaries"]
    assert request(app, f"/api/studies/{study['study_id']}").status == 200
    assert "foreign/study.db, which is a database without studies" in request(app, "/").text
    with pytest.raises(UserError, match="without studies"), as_user_errors(url):
        open_storage(f"sqlite:///{files[0]}", "read")
    assert [read_layout(path) for path in files] == before


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("action", ["create", "rename", "tell"])
def test_optuna_dashboard_creates_and_renames_no_study(tmp_path, caplog, write, action):
    url = make_foreign_study(tmp_path / "study.db")
    before = (tmp_path / "study.db").read_bytes()
    app = DashboardApp(StudyIndex(tmp_path, [url]), write=write)
    (study,) = json.loads(request(app, "/api/studies").body)["study_summaries"]
    path, content = {
        "create": ("/api/studies", {"study_name": "b", "directions": ["minimize"]}),
        "rename": (f"/api/studies/{study['study_id']}/rename", {"study_name": "b"}),
        "tell": (f"/api/trials/{study['study_id']}/tell", {"state": "Fail"}),
    }[action]
    body = json.dumps(content).encode()
    answer = request(
        app,
        path,
        method="POST",
        CONTENT_TYPE="application/json",
        CONTENT_LENGTH=str(len(body)),
        **{"wsgi.input": io.BytesIO(body)},
    )
    assert answer.status == 403
    assert json.loads(answer.body)["reason"].endswith(".")
    assert (caplog.text, (tmp_path / "study.db").read_bytes()) == ("", before)


def test_a_new_study_with_an_old_name_replaces_the_old_one(tmp_path):
    """It may have the trial count, the ids and the inode of the old one."""
    path = tmp_path / "again" / "study.db"

    def make_database(shift: float) -> bytes:
        make_study(tmp_path, "again", 3)
        with sqlite3.connect(path) as database:
            database.execute("UPDATE trial_values SET value = value + ?", [shift])
        database.close()
        data = path.read_bytes()
        shutil.rmtree(path.parent)
        return data

    first, second = make_database(1000.0), make_database(2000.0)
    path.parent.mkdir()
    path.write_bytes(first)
    app, merged, values = (
        DashboardApp(StudyIndex(tmp_path)),
        MergedStorage(StudyIndex(tmp_path).list_databases),
        [],
    )
    for content in (first, second):
        path.write_bytes(content)  # in place, so that the inode stays the same
        (study,) = merged.get_all_studies()
        value = merged.get_all_trials(study._study_id)[0].value
        merged.remove_session()
        table = request(app, "/synaptune/study/again/trials.csv").text.splitlines()[1]
        values.append((value, float(table.split(",")[5])))
    assert [number // 1000 for pair in values for number in pair] == [1, 1, 2, 2]


def test_studies_with_the_same_name_get_different_names(tmp_path):
    for folder in ("one", "two"):
        make_study(tmp_path, folder, 2 if folder == "one" else 3)
        with sqlite3.connect(tmp_path / folder / "study.db") as database:
            database.execute("UPDATE studies SET study_name = 'same'")
        database.close()
    app = DashboardApp(StudyIndex(tmp_path))
    ids = {
        study["study_name"]: study["study_id"]
        for study in json.loads(request(app, "/api/studies").body)["study_summaries"]
    }
    assert set(ids) == {"same", "same (two)"}
    for name, count in (("same", 2), ("same (two)", 3)):
        # The export loads the study by its name.
        assert len(request(app, f"/csv/{ids[name]}").text.splitlines()) == 1 + count


@pytest.mark.parametrize(
    "notes",
    [{}, {"configuration": "mine"}, {"configuration": {"a": 1}}],
    ids=["none", "text", "table"],
)
def test_a_study_of_another_program_with_notes_of_the_same_names_is_listed(tmp_path, notes):
    url = make_foreign_study(tmp_path / "other.db", holder="me", engine={"kind": "diesel"}, **notes)
    (status,) = read_statuses(url)
    assert (status.holder, status.budget, status.trial_count) == (None, None, 2)
    if not isinstance(notes.get("configuration"), dict):
        assert status.phases == (PhaseStatus("search", 2, 2, 1, 1.0),)
    assert ">other</a>" in request(DashboardApp(StudyIndex(None, urls=[url])), "/").text


@pytest.mark.slow
def test_a_page_of_an_older_snapshot_has_its_version_and_is_made_again(tmp_path, monkeypatch):
    make_study(tmp_path, "s", 3)
    entry, delay = StudyIndex(tmp_path).find_study("s"), [0.2]

    def read_slowly(*values):
        time.sleep(delay[0])
        return read_study(*values)

    monkeypatch.setattr(page_cache, "read_study", read_slowly)
    cache = PageCache()
    old = entry.read_status()
    assert cache.get_snapshot(entry, old).version == old.version
    delay[0] = 0.0
    make_study(tmp_path, "s", 5)
    new = entry.read_status()
    parts = cache.get_parts(entry, new)  # during the pause of the snapshot
    assert (parts.version.partition("~")[0], new.version != old.version) == (old.version, True)
    assert parts.value.ended_count == 3
    deadline = time.monotonic() + 120
    while (parts := cache.get_parts(entry, entry.read_status())).version.partition("+")[
        0
    ] != new.version and time.monotonic() < deadline:
        time.sleep(0.1)
    assert parts.version.startswith(new.version)
    assert "5 evaluations" in " ".join(part.html for part in parts.value.parts)


def test_a_database_that_takes_too_long_gives_a_message(tmp_path, monkeypatch):
    make_study(tmp_path, "slow", 2)
    monkeypatch.setattr(page_cache.PageCache, "get_snapshot", lambda *_: None)
    app = DashboardApp(StudyIndex(tmp_path))
    for page in ("trials.csv", "trial/0"):
        reply = request(app, f"/synaptune/study/slow/{page}")
        assert reply.status == 503
        assert "could not be read within" in reply.text


def make_status(*phases: PhaseStatus, holder: Holder | None = None) -> StudyStatus:
    ended = sum(phase.ended_count for phase in phases)
    now = datetime.now(UTC)
    states = {"COMPLETE": ended, "RUNNING": 1}
    return StudyStatus("s", False, True, states, phases, now, now, holder, SearchPlan(300))


def test_the_bar_is_shown_during_the_search_and_not_in_other_phases():
    searching = make_status(PhaseStatus("search", 300, 299, 299, 2.1))
    validating = make_status(
        PhaseStatus("search", 300, 300, 299, 2.1), PhaseStatus("validation", 3, 2, 302, 2.2)
    )
    assert (pages.count_progress(searching), pages.count_progress(validating)) == ((299, 300), None)
    assert 'value="299" max="300"' in pages.render_status(searching, live="x")
    assert "<progress" not in pages.render_status(validating, live="x")


def test_a_process_of_another_machine_without_heartbeats_is_called_interrupted():
    long_ago = datetime.now(UTC) - timedelta(minutes=30)
    phase = PhaseStatus("search", 3, 2, 2, 1.0)
    study = make_status(phase, holder=Holder("another-machine", 1, long_ago))
    expected = "interrupted, 1 trial open, last sign of life of another-machine 30 min ago"
    assert pages.describe_state(study) == expected
    assert pages.describe_state(make_status(phase)) == "interrupted, 1 trial open"
