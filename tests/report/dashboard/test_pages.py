"""The pages of the dashboard on real studies, requested without a network."""

import contextlib
import json
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from helpers.webclient import make_study, request

pytest.importorskip(
    "optuna_dashboard",
    reason="optuna-dashboard is not installed (pip install 'synaptune[dashboard]')",
)

import yaml

from synaptune.cli.main import main
from synaptune.core.errors import UserError
from synaptune.report.dashboard.app import DashboardApp
from synaptune.report.dashboard.merged_storage import MergedStorage, ReadOnlyError
from synaptune.report.dashboard.page_cache import (
    REST_FACTOR,
    BackgroundValue,
    ReportParts,
    Versioned,
)
from synaptune.report.dashboard.pages import explain_state
from synaptune.report.dashboard.server import listen
from synaptune.report.dashboard.study_index import StudyIndex
from synaptune.report.dashboard.study_status import read_statuses
from synaptune.report.dashboard.trials import PAGE_SIZE, TrialsView, select_trials
from synaptune.report.figures import draw_figure
from synaptune.search.trial import find_best
from synaptune.study.reader import read_study

NASTY = '<script>alert("x")</script> & \'ü'
TRIALS = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two studies: one with more trials than a page, and one with markup in its name."""
    folder = tmp_path_factory.mktemp("studies")
    make_study(folder, "plain", TRIALS)
    make_study(folder, "nasty", 3)
    # Another program may give a study such a name.
    with sqlite3.connect(folder / "nasty" / "study.db") as database:
        database.execute("UPDATE studies SET study_name = ?", [NASTY])
    database.close()
    (folder / "broken").mkdir()
    (folder / "broken" / "study.db").write_text(
        "this is no database, and it is longer than a header"
    )
    return folder


@pytest.fixture(scope="module")
def pages(root) -> DashboardApp:
    return DashboardApp(StudyIndex(root))


@pytest.fixture(scope="module")
def record(root):
    return read_study(f"sqlite:///{root}/plain/study.db")


@pytest.fixture(scope="module")
def nasty(root) -> str:
    """The key of the study with markup in its name."""
    studies, _ = StudyIndex(root).list_studies()
    return next(entry.key for entry, _ in studies if entry.name == NASTY)


def parts(pages, path: str, digests: str = "", query: str = "") -> dict:
    """Request the live parts of a page until its figures are drawn; returns them by key."""
    deadline = time.monotonic() + 120.0
    while time.monotonic() < deadline:
        reply = request(pages, path, query=f"{query}&live={digests}")
        assert reply.status == 200, reply.text
        found = {part["key"]: part for part in json.loads(reply.body)["parts"]}
        if "state" not in found:
            return found
    raise AssertionError("the figures are not drawn in time")


def test_the_browser_lists_every_study_and_says_which_database_cannot_be_read(pages, record):
    listed = request(pages, "/").text
    best = find_best(record.search_trials)
    assert ">plain</a>" in listed
    assert f"{TRIALS} of {TRIALS}" in listed
    assert f"{best.objective:.5g}" in listed
    assert "broken/study.db, which is not a SQLite database" in listed


def test_a_name_with_markup_stays_text_on_every_page(pages, nasty):
    assert set(nasty) <= set("0123456789abcdef")
    for path in (
        "/",
        f"/synaptune/study/{nasty}",
        f"/synaptune/study/{nasty}/trials",
        f"/synaptune/study/{nasty}/trial/0",
    ):
        reply = request(pages, path)
        assert reply.status == 200
        assert "<script>alert" not in reply.text
        assert "&lt;script&gt;alert" in reply.text
    assert "<script>alert" not in json.dumps(parts(pages, f"/synaptune/study/{nasty}"))


def test_a_failure_is_shown_with_its_traceback_as_text(pages, record):
    failed = next(trial for trial in record.trials if trial.state == "failed")
    text = request(pages, f"/synaptune/study/plain/trial/{failed.number}").text
    assert "too &lt;b&gt;far&lt;/b&gt; &amp; away" in text
    assert "Traceback" in text
    assert "<b>far" not in text


def test_the_report_page_has_the_sections_of_the_report_with_their_figures(pages):
    sections = parts(pages, "/synaptune/study/plain")
    assert {"verdict", "search", "parameters"} <= set(sections)
    assert "<svg" in sections["search"]["html"]


def test_a_part_that_the_browser_has_is_not_sent_again(pages):
    first = parts(pages, "/synaptune/study/plain")
    digests = ",".join(part["digest"] for part in first.values() if part["key"] != "search")
    again = parts(pages, "/synaptune/study/plain", digests=digests)
    assert [key for key, part in again.items() if "html" in part] == ["search"]
    assert list(again) == list(first)


def test_the_trial_list_is_sorted_filtered_and_paged_by_the_server(pages, record):
    first = request(pages, "/synaptune/study/plain/trials", query="sort=number&order=asc").text
    second = request(
        pages, "/synaptune/study/plain/trials", query="sort=number&order=asc&page=2"
    ).text
    assert [first.count("data-number="), second.count("data-number=")] == [
        PAGE_SIZE,
        TRIALS - PAGE_SIZE,
    ]
    failed = [trial.number for trial in record.trials if trial.state == "failed"]
    only = request(pages, "/synaptune/study/plain/trials", query="state=failed").text
    assert failed
    assert only.count("data-number=") == len(failed)
    assert all(f'data-number="{number}"' in only for number in failed)


@pytest.mark.parametrize(
    "name", ["objective", "x", "n", "seconds", "number", "state", "nothing of the kind"]
)
@pytest.mark.parametrize("descending", [True, False])
def test_every_trial_is_in_the_list_once_whatever_it_is_sorted_by(record, name, descending):
    listed = select_trials(record, TrialsView(sort=name, descending=descending))
    assert sorted(trial.number for trial in listed) == [trial.number for trial in record.trials]


def test_trials_without_an_objective_come_last_in_both_orders(record):
    complete = sorted(trial.objective for trial in record.trials if trial.objective is not None)
    for descending, expected in ((False, complete), (True, complete[::-1])):
        listed = select_trials(record, TrialsView(sort="objective", descending=descending))
        assert [trial.objective for trial in listed[: len(complete)]] == expected


@pytest.mark.parametrize(
    "query",
    [
        "page=0",
        "page=-1",
        "page=99999999",
        "page=x",
        "page=²",
        "sort=<script>",
        "order=?",
        "phase='",
        "state=%00",
    ],
)
def test_an_invalid_query_still_gives_a_page(pages, query):
    reply = request(pages, "/synaptune/study/plain/trials", query=query)
    assert reply.status == 200
    assert "<script>" not in reply.text


def test_the_best_is_exported_as_yaml_and_json_under_the_name_of_the_study(pages, record):
    best = find_best(record.search_trials)
    text = request(pages, "/synaptune/study/plain/best.yaml")
    exported = json.loads(request(pages, "/synaptune/study/plain/best.json").body)
    assert yaml.safe_load(text.body) == {"parameters": best.values}
    assert exported["parameters"] == best.values
    assert (exported["trial"], exported["objective"], exported["study"]) == (
        best.number,
        best.objective,
        "plain",
    )
    assert 'filename="plain-best.yaml"' in text.headers["content-disposition"]


def test_the_name_of_a_download_cannot_leave_its_header(pages, nasty):
    header = request(pages, f"/synaptune/study/{nasty}/best.yaml").headers["content-disposition"]
    assert header.startswith('attachment; filename="_script_alert')
    assert header.count('"') == 2
    assert not set("<>/\r\n") & set(header)
    assert header.isascii()


@pytest.mark.parametrize(
    "path",
    [
        "/synaptune/study/none",
        "/synaptune/study/../plain",
        "/synaptune/study/..",
        "/synaptune/study/plain/../../x",
        "/synaptune/study/plain/trial/999",
        "/synaptune/study/plain/trial/-1",
        "/synaptune/study/plain/trial/" + 5000 * "9",
        "/synaptune/../etc/passwd",
        "/synaptune/style.css/x",
        "/synaptune/nothing",
        "/synaptune/study/\0",
    ],
)
def test_an_address_without_a_page_is_not_found(pages, path):
    assert request(pages, path).status == 404


def test_optuna_dashboard_lists_the_studies_of_all_databases(pages, root):
    studies = json.loads(request(pages, "/api/studies").body)["study_summaries"]
    assert {study["study_name"] for study in studies} == {"plain", NASTY}
    location = request(pages, "/synaptune/study/plain/optuna").headers["location"]
    number = int(location.rpartition("/")[2])
    assert next(study["study_name"] for study in studies if study["study_id"] == number) == "plain"
    detail = json.loads(request(pages, f"/api/studies/{number}").body)
    assert len(detail["trials"]) == TRIALS
    assert {trial["study_id"] for trial in detail["trials"]} == {number}
    assert request(pages, "/dashboard").status == 200


def test_optuna_dashboard_changes_nothing_without_write(root):
    reading, writing = (
        MergedStorage(StudyIndex(root).list_databases),
        MergedStorage(StudyIndex(root).list_databases, write=True),
    )
    key = reading.get_study_id_from_name("plain")
    with pytest.raises(ReadOnlyError):
        reading.set_study_system_attr(key, "note", "x")
    with pytest.raises(ReadOnlyError):
        reading.delete_study(key)
    writing.set_study_system_attr(key, "a key", "x")
    assert reading.get_study_system_attrs(key)["a key"] == "x"
    reading.close()
    writing.close()


def test_a_study_can_be_written_while_its_pages_are_read(pages, root):
    """The writer fails at once if a reader holds a lock."""
    done = threading.Event()
    answers: list[int] = []

    def poll():
        while not done.is_set():
            answers.append(request(pages, "/synaptune/study/plain/status").status)
            answers.append(request(pages, "/synaptune/study/plain/trials").status)

    thread = threading.Thread(target=poll)
    writer = sqlite3.connect(root / "plain" / "study.db", timeout=0.0, isolation_level=None)
    # The last connection that closes needs a lock for its cleanup. This connection has read before
    # and stays open, so it is never the other one.
    writer.execute("SELECT * FROM version_info").fetchall()
    thread.start()
    try:
        while len(answers) < 20:
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("UPDATE version_info SET schema_version = schema_version")
            writer.execute("COMMIT")
        writer.close()
    finally:
        done.set()
        thread.join()
    assert set(answers) == {200}


def test_a_deleted_study_is_reported_as_missing(tmp_path):
    manager = make_study(tmp_path, "gone", 2)
    assert manager.best_trial is not None
    pages = DashboardApp(StudyIndex(tmp_path))
    assert request(pages, "/synaptune/study/gone").status == 200
    for path in (tmp_path / "gone").iterdir():
        path.unlink()
    reply = request(pages, "/synaptune/study/gone")
    assert reply.status in (404, 503)
    assert not list((tmp_path / "gone").iterdir()), "the request created a file"


def test_the_status_agrees_with_the_complete_study(root, record):
    (status,) = read_statuses(f"sqlite:///{root}/plain/study.db")
    assert status.trial_count == status.ended_count == len(record.trials)
    assert status.failures == sum(trial.state == "failed" for trial in record.trials)
    assert status.search_phase.best == find_best(record.search_trials).objective
    assert status.budget == TRIALS


def test_a_value_is_computed_once_for_concurrent_requests():
    computations, start = [], threading.Event()

    def make():
        start.wait(120)
        computations.append(threading.get_ident())
        return Versioned("1", len(computations))

    value: BackgroundValue = BackgroundValue()
    results: list = []
    threads = [
        threading.Thread(target=lambda: results.append(value.get("1", make, 120))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    assert value.get("1", make, 0.0) is None
    start.set()
    for thread in threads:
        thread.join()
    assert results == [("1", 1)] * 8


def test_an_expensive_value_is_computed_again_only_after_a_pause():
    value: BackgroundValue = BackgroundValue()
    event = threading.Event()
    assert (
        value.get("1", lambda: Versioned("1", event.wait(100.0 / REST_FACTOR / 10.0)), 120)
        is not None
    )
    assert value.get("2", lambda: Versioned("2", "new"), 120).version == "1"


def test_a_value_of_an_older_version_is_computed_again():
    value: BackgroundValue = BackgroundValue()
    assert value.get("2", lambda: Versioned("1", "old"), 120) == ("1", "old")
    deadline = time.monotonic() + 120
    while (
        value.get("2", lambda: Versioned("2", "new"), 120).version == "1"
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    assert value.latest == ("2", "new")


def test_an_error_is_raised_and_the_value_computed_again_for_a_changed_study():
    value: BackgroundValue = BackgroundValue()
    with pytest.raises(UserError, match="locked"):
        value.get("1", lambda: (_ for _ in ()).throw(UserError("locked")), 120)
    deadline = time.monotonic() + 120
    result = None
    while result is None and time.monotonic() < deadline:
        with contextlib.suppress(UserError):
            result = value.get("2", lambda: Versioned("2", "fine"), 120)
    assert result == ("2", "fine")


def test_a_port_in_use_is_a_user_error_with_a_remedy():
    server = listen("127.0.0.1", 0)
    try:
        with pytest.raises(UserError, match=rf"port {server.server_port}.*another program"):
            listen("127.0.0.1", server.server_port)
    finally:
        server.server_close()


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", 70000, "65535"),
        ("203.0.113.7", 0, "address of this machine"),
        ("no such host", 0, "address"),
    ],
)
def test_an_address_that_cannot_be_used_is_a_user_error(host, port, message):
    with pytest.raises(UserError, match=message):
        listen(host, port)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--host", "0.0.0.0"], "without a token"), (["nothing"], "no study database")],
)
def test_the_command_refuses_other_machines_without_a_token_and_missing_studies(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["dashboard", "--port", "0", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_study_is_archived_and_restored_only_by_a_dashboard_that_writes(tmp_path):
    for name in ("one", "two"):
        make_study(tmp_path, name, 2)
    url = f"sqlite:///{tmp_path}/one/study.db"
    reading, writing = (DashboardApp(StudyIndex(tmp_path), write=write) for write in (False, True))
    assert request(reading, "/synaptune/study/one/archive", method="POST").status == 403
    assert "data-posts" not in request(reading, "/").text
    assert not read_statuses(url)[0].is_archived
    for action, archived in (("archive", True), ("restore", False)):
        assert f'data-posts="/synaptune/study/one/{action}"' in request(writing, "/").text
        assert request(writing, f"/synaptune/study/one/{action}", method="POST").status == 200
        assert read_study(url).notes["synaptune:archived"] is archived
        text = request(writing, "/").text
        assert ("Archived studies (1)" in text) is archived
        assert ("one (archived)</h1>" in request(writing, "/synaptune/study/one").text) is archived
    assert request(writing, "/synaptune/study/one/other", method="POST").status == 404


def test_chosen_studies_are_compared_and_one_study_is_not(pages, nasty):
    form = request(pages, "/").text
    assert f'name="study" value="{nasty}"' in form
    reply = request(pages, "/synaptune/compare", query=f"study=plain&study={nasty}")
    assert reply.status == 200
    assert "Results by study" in reply.text
    assert "<script>alert" not in reply.text
    alone = request(pages, "/synaptune/compare", query="study=plain&study=plain")
    assert (alone.status, "1 studies to compare" in alone.text) == (503, True)
    assert request(pages, "/synaptune/compare", query="study=plain&study=none").status == 404


def test_the_report_is_shown_before_its_figures_which_replace_the_last_ones(root, monkeypatch):
    app, address = DashboardApp(StudyIndex(root)), "/synaptune/study/plain"
    may_draw = threading.Event()

    def draw_late(key, evidence):
        assert may_draw.wait(30.0)
        return draw_figure(key, evidence)

    monkeypatch.setattr("synaptune.report.figures.draw_figure", draw_late)
    first = request(app, address).text
    assert "The figures are being drawn" in first
    assert 'id="verdict"' in first
    assert "<figure" not in first
    may_draw.set()
    deadline = time.monotonic() + 30.0
    while "being drawn" in (text := request(app, address).text):
        assert time.monotonic() < deadline
    assert "<figure" in text


def test_a_report_that_is_older_than_the_header_says_of_how_many_trials_it_is(root):
    (status,) = read_statuses(f"sqlite:///{root}/plain/study.db")
    (note,) = explain_state(status, ReportParts([], TRIALS - 5, is_drawing=False))
    assert f"of the first {TRIALS - 5} of {TRIALS} ended trials" in note.html
    assert explain_state(status, ReportParts([], TRIALS, is_drawing=False)) == []
