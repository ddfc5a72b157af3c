"""What the dashboard shows when studies change under it, and of databases that are not ours."""

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
from synaptune.report.dashboard import page_cache as desk
from synaptune.report.dashboard import pages
from synaptune.report.dashboard.app import DashboardApp
from synaptune.report.dashboard.merged_storage import MergedStorage
from synaptune.report.dashboard.page_cache import PageCache
from synaptune.report.dashboard.study_index import StudyIndex
from synaptune.report.dashboard.study_status import PhaseStatus, StudyStatus, read_statuses
from synaptune.study.database.connection import open_storage
from synaptune.study.database.errors import as_user_errors
from synaptune.study.database.locks import Holder
from synaptune.study.reader import read_study


def made_elsewhere(path: Path, name: str = "other", **notes) -> str:
    """A study that Optuna wrote without us."""
    url = f"sqlite:///{path}"
    study = optuna.create_study(study_name=name, storage=url)
    for key, value in notes.items():
        study.set_user_attr(key, value)
    for value in (2.0, 1.0):
        trial = study.ask()
        trial.set_user_attr("phase", {"odd": value})
        study.tell(trial, value)
    return url


def content(path: Path) -> tuple:
    """Everything that looking must not change."""
    with sqlite3.connect(path) as database:
        mode = database.execute("PRAGMA journal_mode").fetchone()
        tables = database.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall()
    database.close()
    return mode, tables


def test_looking_writes_to_no_database(tmp_path):
    (tmp_path / "foreign").mkdir()
    with sqlite3.connect(tmp_path / "foreign" / "study.db") as database:
        database.execute("CREATE TABLE patients (name)")
    database.close()
    url = made_elsewhere(tmp_path / "other.db")
    files = (tmp_path / "foreign" / "study.db", tmp_path / "other.db")
    before = [content(path) for path in files]
    app = DashboardApp(StudyIndex(tmp_path, urls=[url]))
    (study,) = json.loads(request(app, "/api/studies").body)["study_summaries"]
    assert request(app, f"/api/studies/{study['study_id']}").status == 200
    assert "foreign/study.db, which is a database without studies" in request(app, "/").text
    with pytest.raises(UserError, match="without studies"), as_user_errors(url):
        open_storage(f"sqlite:///{files[0]}", "read")
    assert [content(path) for path in files] == before


def test_a_study_begun_anew_under_its_name_is_shown_and_not_the_old_one(tmp_path):
    """Its numbers of trials, ids and the number of its file may be those of the old one."""
    path = tmp_path / "again" / "study.db"

    def written(shift: float) -> bytes:
        make_study(tmp_path, "again", 3)
        with sqlite3.connect(path) as database:
            database.execute("UPDATE trial_values SET value = value + ?", [shift])
        database.close()
        kept = path.read_bytes()
        shutil.rmtree(path.parent)
        return kept

    first, second = written(1000.0), written(2000.0)
    path.parent.mkdir()
    path.write_bytes(first)
    app, union, seen = (
        DashboardApp(StudyIndex(tmp_path)),
        MergedStorage(StudyIndex(tmp_path).list_databases),
        [],
    )
    for content in (first, second):
        path.write_bytes(content)  # in place: the same file to the file system
        (study,) = union.get_all_studies()
        shown = union.get_all_trials(study._study_id)[0].value
        union.remove_session()
        table = request(app, "/synaptune/study/again/trials.csv").text.splitlines()[1]
        seen.append((shown, float(table.split(",")[5])))
    assert [value // 1000 for pair in seen for value in pair] == [1, 1, 2, 2]


def test_studies_of_one_name_are_told_apart(tmp_path):
    for folder in ("one", "two"):
        make_study(tmp_path, folder, 2 if folder == "one" else 3)
        with sqlite3.connect(tmp_path / folder / "study.db") as database:
            database.execute("UPDATE studies SET study_name = 'same'")
        database.close()
    app = DashboardApp(StudyIndex(tmp_path))
    found = {
        study["study_name"]: study["study_id"]
        for study in json.loads(request(app, "/api/studies").body)["study_summaries"]
    }
    assert set(found) == {"same", "same (two)"}
    for name, count in (("same", 2), ("same (two)", 3)):
        # The export loads the study by its name.
        assert len(request(app, f"/csv/{found[name]}").text.splitlines()) == 1 + count


@pytest.mark.parametrize(
    "notes",
    [{}, {"configuration": "mine"}, {"configuration": {"a": 1}}],
    ids=["none", "text", "table"],
)
def test_a_study_of_another_program_with_notes_of_our_names_is_listed(tmp_path, notes):
    url = made_elsewhere(tmp_path / "other.db", holder="me", engine={"kind": "diesel"}, **notes)
    (glance,) = read_statuses(url)
    assert (glance.holder, glance.budget, glance.trial_count) == (None, None, 2)
    if not isinstance(notes.get("configuration"), dict):
        assert glance.phases == (PhaseStatus("search", 2, 2, 1, 1.0),)
    assert ">other</a>" in request(DashboardApp(StudyIndex(None, urls=[url])), "/").text


def test_a_page_made_of_an_older_record_says_so_and_is_made_again(tmp_path, monkeypatch):
    make_study(tmp_path, "s", 3)
    place, slow = StudyIndex(tmp_path).find_study("s"), [0.2]

    def reading(*values):
        time.sleep(slow[0])
        return read_study(*values)

    monkeypatch.setattr(desk, "read_study", reading)
    desks = PageCache()
    old = place.read_status()
    assert desks.get_snapshot(place, old).version == old.version
    slow[0] = 0.0
    make_study(tmp_path, "s", 5)
    new = place.read_status()
    made = desks.get_parts(place, new)  # while the record rests
    assert (made.version, new.version != old.version) == (old.version, True)
    until = time.monotonic() + 120
    while (made := desks.get_parts(place, place.read_status())).version.partition("+")[
        0
    ] != new.version and time.monotonic() < until:
        time.sleep(0.1)
    assert made.version.startswith(new.version)
    assert "5 evaluations" in " ".join(part.html for part in made.value)


def test_a_database_that_takes_too_long_is_said_in_words(tmp_path, monkeypatch):
    make_study(tmp_path, "slow", 2)
    monkeypatch.setattr(desk.PageCache, "get_snapshot", lambda *_: None)
    app = DashboardApp(StudyIndex(tmp_path))
    for page in ("trials.csv", "trial/0"):
        reply = request(app, f"/synaptune/study/slow/{page}")
        assert reply.status == 503
        assert "could not be read within" in reply.text


def glance_of(*phases: PhaseStatus, holder: Holder | None = None) -> StudyStatus:
    ended = sum(phase.ended_count for phase in phases)
    now = datetime.now(UTC)
    return StudyStatus(
        "s", False, True, {"COMPLETE": ended, "RUNNING": 1}, phases, now, now, holder, 300
    )


def test_the_bar_is_there_while_the_search_runs_and_gone_in_its_other_phases():
    searching = glance_of(PhaseStatus("search", 300, 299, 299, 2.1))
    validating = glance_of(
        PhaseStatus("search", 300, 300, 299, 2.1), PhaseStatus("validation", 3, 2, 302, 2.2)
    )
    assert (pages.count_progress(searching), pages.count_progress(validating)) == ((299, 300), None)
    assert 'value="299" max="300"' in pages.render_status(searching, live="x")
    assert "<progress" not in pages.render_status(validating, live="x")


def test_a_silent_process_of_another_machine_is_said_to_be_silent():
    long_ago = datetime.now(UTC) - timedelta(minutes=30)
    phase = PhaseStatus("search", 3, 2, 2, 1.0)
    assert (
        pages.describe_state(glance_of(phase, holder=Holder("another-machine", 1, long_ago)))
        == "silent, 1 trial open"
    )
    assert pages.describe_state(glance_of(phase)) == "ended, 1 trial open"
