"""A study on a PostgreSQL server: many controllers, lost connections and restarts.

No trial is lost and none is load_optuna_trials twice.
"""

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest

from helpers.mounts import mount_small
from synaptune.core.errors import UserError
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Result
from synaptune.study.database import connection as database
from synaptune.study.database.connection import add_driver, get_error_message
from synaptune.study.location import StudyLocation
from synaptune.study.study import PhaseLedger, Study

SPACE = Space((Dimension("x", "log", 0.1, 10.0), Dimension("n", "lin", 1, 5, integer=True)))
VALUES = {"x": 0.5, "n": 2}
UNIT = (0.1, 0.2)


def make_location(folder, url, name="s"):
    return StudyLocation(name, folder, url, "auto")


def make_ledger(study):
    return PhaseLedger(study, SPACE, "search", {"seed": 4})


def load_optuna_trials(url, name="s"):
    return optuna.load_study(study_name=name, storage=add_driver(url)).trials


def run_one(ledger, index):
    """Write one trial as a controller does."""
    trial = ledger.start(index, UNIT, VALUES, 0)
    for step in range(3):
        ledger.report(trial, index + step / 10, step)
    return ledger.finish(trial, Result(float(index), 0.1, {"val_loss": float(index)}))


def assert_complete(url, count):
    """Assert that every index has one complete trial with its values."""
    trials = load_optuna_trials(url)
    assert sorted(trial.user_attrs["index"] for trial in trials) == list(range(count))
    assert [trial.number for trial in trials] == list(range(count))
    for trial in trials:
        index = trial.user_attrs["index"]
        assert (trial.state.name, trial.value, trial.user_attrs["val_loss"], trial.params) == (
            "COMPLETE",
            index,
            index,
            VALUES,
        )
        assert trial.intermediate_values == {step: index + step / 10 for step in range(3)}


def test_synaptune_and_optuna_read_the_trials(tmp_path, postgres_url):
    with Study(make_location(tmp_path, postgres_url), {"a": 1}) as study:
        for index in range(3):
            run_one(make_ledger(study), index)
    with Study(make_location(tmp_path, postgres_url), {"a": 1}) as study:
        assert [trial.objective for trial in study.read_trials("search")] == [0.0, 1.0, 2.0]
    assert_complete(postgres_url, 3)


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
def test_several_threads_write_one_study_with_unique_numbers(tmp_path, request, kind):
    url = (
        request.getfixturevalue("postgres_url")
        if kind == "postgres"
        else f"sqlite:///{tmp_path}/study.db"
    )
    with Study(make_location(tmp_path, url), {}) as study, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda index: run_one(make_ledger(study), index), range(24)))
    assert_complete(url, 24)


def test_controllers_of_different_studies_can_create_the_tables_together(tmp_path, postgres_url):
    code = f"""
import sys
from pathlib import Path
from synaptune.study.location import StudyLocation
from synaptune.study.study import Study
folder = Path({str(tmp_path)!r}) / sys.argv[1]
with Study(StudyLocation(sys.argv[1], folder, {postgres_url!r}, "auto"), {{}}) as study:
    study.write_note("done", sys.argv[1])
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code, name], stderr=subprocess.PIPE, text=True)
        for name in "abc"
    ]
    assert [(process.wait(60), process.stderr.read()) for process in running] == [(0, "")] * 3
    assert sorted(optuna.get_all_study_names(add_driver(postgres_url))) == ["a", "b", "c"]


@pytest.mark.parametrize("pauses", [(0.05, 0.4, 0.25), (0.0, 0.7, 0.1)], ids=["slow", "quick"])
def test_restarts_of_the_server_lose_and_duplicate_no_trial(
    tmp_path, postgres, postgres_url, capsys, pauses
):
    failures, stop = [], threading.Event()

    def write(study):
        try:
            index = 0
            while not stop.is_set():
                run_one(make_ledger(study), index)
                index += 1
            failures.append(index)
        except BaseException as error:
            failures.append(error)

    with Study(make_location(tmp_path, postgres_url), {}) as study:
        writer = threading.Thread(target=write, args=(study,))
        writer.start()
        for _ in range(3):
            time.sleep(pauses[1])
            postgres.stop("immediate")
            time.sleep(pauses[0])
            postgres.start()
            time.sleep(pauses[2])
        stop.set()
        writer.join(60)
    (count,) = failures
    assert isinstance(count, int), count
    assert count > 3
    assert_complete(postgres_url, count)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 6
    assert ["answers again" in line for line in lines] == [False, True] * (len(lines) // 2)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_write_whose_commit_got_no_response_is_applied_once(
    tmp_path, postgres, postgres_url, moment
):
    """The connection ends just before or just after the commit: the client gets the same error."""
    armed = False
    with Study(make_location(tmp_path, postgres_url), {}) as study:
        dialect = study._storage.engine.dialect
        commit = dialect.do_commit

        def commit_and_lose(connection):
            nonlocal armed
            if armed:
                armed = False
                if moment == "after":
                    commit(connection)
                postgres.execute(
                    f"SELECT pg_terminate_backend({connection.driver_connection.info.backend_pid})"
                )
                connection.driver_connection.execute("SELECT 1")  # fails, as the commit would
            commit(connection)

        def call_with_loss(call, *arguments):
            nonlocal armed
            armed = True
            result = call(*arguments)
            assert not armed
            return result

        dialect.do_commit = commit_and_lose
        ledger = make_ledger(study)
        for index in range(2):
            trial = call_with_loss(ledger.start, index, UNIT, VALUES, 0)
            for step in range(3):
                call_with_loss(ledger.report, trial, index + step / 10, step)
            trial = call_with_loss(ledger.record_retry, trial, "out of memory")
            call_with_loss(
                ledger.finish, trial, Result(float(index), 0.1, {"val_loss": float(index)})
            )
        call_with_loss(study.write_note, "k", 1)
        assert study.read_note("k") == 1
        assert [trial.facts["attempts"] for trial in study.read_trials()] == [["out of memory"]] * 2
    assert_complete(postgres_url, 2)


def test_the_error_after_the_time_limit_names_the_cause(tmp_path, postgres, postgres_url, capsys):
    with Study(make_location(tmp_path, postgres_url), {}, retry_timeout=0.5) as study:
        trial = make_ledger(study).start(0, UNIT, VALUES, 0)
        postgres.stop("fast")
        try:
            with pytest.raises(UserError, match=r"no answer for 0\.5 s \(.*refused"):
                make_ledger(study).finish(trial, Result(1.0, 0.1))
        finally:
            postgres.start()
        make_ledger(study).finish(trial, Result(1.0, 0.1))
    assert [entry.state.name for entry in load_optuna_trials(postgres_url)] == ["COMPLETE"]
    assert "trying again for 0.5 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"), [("nosuch", "does not exist"), ("postgres?user=nosuch", "nosuch")]
)
def test_a_wrong_address_is_refused_at_once_without_its_password(
    tmp_path, postgres, wrong, message, capsys
):
    url = f"postgresql://synaptune:secret@127.0.0.1:{postgres.port}/{wrong}"
    with pytest.raises(UserError, match=message) as raised:
        Study(make_location(tmp_path, url), {})
    assert "secret" not in str(raised.value)
    assert capsys.readouterr().err == ""


def write_until_refused(study):
    """Write trials from index 1 on; returns the number of the last one and the error."""
    for index in range(1, 1000):
        try:
            run_one(make_ledger(study), index)
        except UserError as error:
            return index, str(error)
    pytest.fail("nothing was refused")


def test_a_server_that_becomes_read_only_ends_a_command_and_the_study_continues(
    tmp_path, postgres, postgres_url
):
    with Study(make_location(tmp_path, postgres_url), {}) as study:
        run_one(make_ledger(study), 0)
        try:
            postgres.execute("ALTER SYSTEM SET default_transaction_read_only = on")
            postgres.execute("SELECT pg_reload_conf()")
            refused, message = write_until_refused(study)
        finally:
            postgres.execute("ALTER SYSTEM RESET default_transaction_read_only")
            postgres.execute("SELECT pg_reload_conf()")
    assert "which cannot be written\n  expected: a study database with write permission" in message
    time.sleep(0.2)  # the server reads its settings
    with Study(make_location(tmp_path, postgres_url), {}) as study:
        assert_continues(study, refused)


def assert_continues(study, refused):
    """Assert that a study has every trial before the refused one, and takes the next."""
    states = [trial.state for trial in study.read_trials("search")]
    assert states[:refused] == ["complete"] * refused
    assert states[refused:] in ([], ["running"])
    assert run_one(make_ledger(study), refused + 1).state == "complete"


@pytest.fixture
def small_disk(postgres):
    """The URL of a database on a file system of 12 MB, and a file there to fill it with."""
    folder, tables = postgres.folder / "small", postgres.folder / "small" / "tables"
    folder.mkdir()
    with mount_small(folder):
        tables.mkdir()
        shutil.chown(tables, postgres.user or os.geteuid())
        postgres.execute(f"CREATE TABLESPACE small LOCATION '{tables}'")
        postgres.execute("CREATE DATABASE small TABLESPACE small")
        yield f"postgresql://synaptune@127.0.0.1:{postgres.port}/small", folder / "filler"
        postgres.execute("DROP DATABASE small WITH (FORCE)")
        postgres.execute("DROP TABLESPACE small")
    folder.rmdir()


def test_a_full_disk_of_the_server_ends_a_command_and_the_study_continues(
    tmp_path, small_disk, capfd
):
    url, filler = small_disk
    with Study(make_location(tmp_path, url), {}) as study:
        run_one(make_ledger(study), 0)
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))
        refused, message = write_until_refused(study)
    assert message.startswith("got a full or failing disk at postgresql")
    assert "make room; every finished trial is kept" in message
    assert capfd.readouterr().err == ""
    filler.unlink()
    with Study(make_location(tmp_path, url), {}) as study:
        assert_continues(study, refused)


def test_a_locked_sqlite_file_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(database, "LOCK_WAIT", 0.05)
    path = tmp_path / "study.db"
    with Study(make_location(tmp_path, f"sqlite:///{path}"), {}) as study:
        other = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.5, other.rollback)
        release.start()
        run_one(make_ledger(study), 0)
        release.join()
        other.close()
    assert_complete(f"sqlite:///{path}", 1)
    assert "locked" in capsys.readouterr().err


def test_a_permanent_lock_is_reported_after_the_time_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "LOCK_WAIT", 0.05)
    path = tmp_path / "study.db"
    with Study(make_location(tmp_path, f"sqlite:///{path}"), {}, retry_timeout=0.3) as study:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match=r"no answer for 0\.3 s \(database is locked\)"):
            make_ledger(study).start(0, UNIT, VALUES, 0)
        other.close()


CONTROLLER = """
import itertools
import sys
from pathlib import Path
from synaptune.study.location import StudyLocation
from synaptune.search.trial import Result
from synaptune.search.space.space import Dimension, Space
from synaptune.study.study import PhaseLedger, Study
space = Space((Dimension("x", "log", 0.1, 10.0), Dimension("n", "lin", 1, 5, integer=True)))
with Study(StudyLocation("s", Path(sys.argv[1]), sys.argv[2], "auto"), {}) as study:
    print("ready", flush=True)
    ledger = PhaseLedger(study, space, "search", {"seed": 4})
    trials = ledger.read_trials()
    waiting = [trial for trial in trials if trial.state == "running"]
    numbers, values = range(len(trials), int(sys.argv[3])), {"x": 0.5, "n": 2}
    fresh = (ledger.start(index, (0.1, 0.2), values, 0) for index in numbers)
    for trial in itertools.chain(waiting, fresh):
        for step in range(3):
            ledger.report(trial, trial.index + step / 10, step)
        value = float(trial.index)
        ledger.finish(trial, Result(value, 0.1, {"val_loss": value}))
"""


@pytest.mark.slow
def test_kills_of_controller_and_server_lose_and_duplicate_no_trial(
    tmp_path, postgres, postgres_url
):
    moments, count = random.Random(7), 200
    command = [sys.executable, "-c", CONTROLLER, str(tmp_path), postgres_url, str(count)]
    for kill in range(4):
        controller = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert controller.stdout is not None
        assert controller.stderr is not None
        message = controller.stdout.readline()
        assert message == "ready\n", controller.stderr.read()
        time.sleep(moments.uniform(0.0, 0.5))
        if kill % 2:
            postgres.stop("immediate")
        controller.kill()
        controller.communicate()
        if kill % 2:
            postgres.start()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert_complete(postgres_url, count)


def test_the_message_of_a_lost_connection_is_that_of_the_innermost_error():
    error = ConnectionError("server closed the connection\nunexpectedly")
    error.__cause__ = RuntimeError(())
    assert get_error_message(error) == "server closed the connection"
    assert get_error_message(RuntimeError(())) == "RuntimeError"
