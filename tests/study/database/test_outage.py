"""A study on a PostgreSQL server: many controllers, lost connections and restarts.

No trial is lost and none is stored twice.
"""

import random
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import optuna
import pytest

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


def place(folder, url, name="s"):
    return StudyLocation(name, folder, url, "auto")


def ledger(held):
    return PhaseLedger(held, SPACE, "search", {"seed": 4})


def stored(url, name="s"):
    return optuna.load_study(study_name=name, storage=add_driver(url)).trials


def run_one(book, index):
    """One trial as a controller writes it."""
    trial = book.start(index, UNIT, VALUES, 0)
    for step in range(3):
        book.report(trial, index + step / 10, step)
    return book.finish(trial, Result(float(index), 0.1, {"val_loss": float(index)}))


def assert_whole(url, count):
    """Every index once, complete, with its own values."""
    trials = stored(url)
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


def test_trials_come_back_and_optuna_reads_them(tmp_path, postgres_url):
    with Study(place(tmp_path, postgres_url), {"a": 1}) as held:
        for index in range(3):
            run_one(ledger(held), index)
    with Study(place(tmp_path, postgres_url), {"a": 1}) as held:
        assert [trial.objective for trial in held.read_trials("search")] == [0.0, 1.0, 2.0]
    assert_whole(postgres_url, 3)


@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
def test_several_threads_write_one_study_and_every_number_is_given_once(tmp_path, request, kind):
    url = (
        request.getfixturevalue("postgres_url")
        if kind == "postgres"
        else f"sqlite:///{tmp_path}/study.db"
    )
    with Study(place(tmp_path, url), {}) as held, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda index: run_one(ledger(held), index), range(24)))
    assert_whole(url, 24)


def test_controllers_of_different_studies_may_begin_an_empty_database_together(
    tmp_path, postgres_url
):
    code = f"""
import sys
from pathlib import Path
from synaptune.study.location import StudyLocation
from synaptune.study.study import Study
folder = Path({str(tmp_path)!r}) / sys.argv[1]
with Study(StudyLocation(sys.argv[1], folder, {postgres_url!r}, "auto"), {{}}) as held:
    held.write_note("done", sys.argv[1])
"""
    running = [
        subprocess.Popen([sys.executable, "-c", code, name], stderr=subprocess.PIPE, text=True)
        for name in "abc"
    ]
    assert [(process.wait(60), process.stderr.read()) for process in running] == [(0, "")] * 3
    assert sorted(optuna.get_all_study_names(add_driver(postgres_url))) == ["a", "b", "c"]


@pytest.mark.parametrize("pauses", [(0.05, 0.4, 0.25), (0.0, 0.7, 0.1)], ids=["slow", "quick"])
def test_a_server_that_is_killed_and_started_again_loses_and_doubles_nothing(
    tmp_path, postgres, postgres_url, capsys, pauses
):
    failures, stop = [], threading.Event()

    def write(held):
        try:
            index = 0
            while not stop.is_set():
                run_one(ledger(held), index)
                index += 1
            failures.append(index)
        except BaseException as error:
            failures.append(error)

    with Study(place(tmp_path, postgres_url), {}) as held:
        writer = threading.Thread(target=write, args=(held,))
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
    assert_whole(postgres_url, count)
    said = capsys.readouterr().err.splitlines()
    assert 2 <= len(said) <= 6
    assert ["answers again" in line for line in said] == [False, True] * (len(said) // 2)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_write_whose_commit_got_no_answer_is_applied_once(
    tmp_path, postgres, postgres_url, moment
):
    """The connection ends just before or just after the commit: the client gets the same error."""
    armed = False
    with Study(place(tmp_path, postgres_url), {}) as held:
        dialect = held._storage.engine.dialect
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

        def losing(call, *arguments):
            nonlocal armed
            armed = True
            answer = call(*arguments)
            assert not armed
            return answer

        dialect.do_commit = commit_and_lose
        book = ledger(held)
        for index in range(2):
            trial = losing(book.start, index, UNIT, VALUES, 0)
            for step in range(3):
                losing(book.report, trial, index + step / 10, step)
            trial = losing(book.record_retry, trial, "out of memory")
            losing(book.finish, trial, Result(float(index), 0.1, {"val_loss": float(index)}))
        losing(held.write_note, "k", 1)
        assert held.read_note("k") == 1
        assert [trial.facts["attempts"] for trial in held.read_trials()] == [["out of memory"]] * 2
    assert_whole(postgres_url, 2)


def test_a_server_that_stays_away_ends_the_patience_with_the_true_cause(
    tmp_path, postgres, postgres_url, capsys
):
    with Study(place(tmp_path, postgres_url), {}, retry_timeout=0.5) as held:
        trial = ledger(held).start(0, UNIT, VALUES, 0)
        postgres.stop("fast")
        try:
            with pytest.raises(UserError, match=r"no answer for 0\.5 s \(.*refused"):
                ledger(held).finish(trial, Result(1.0, 0.1))
        finally:
            postgres.start()
        ledger(held).finish(trial, Result(1.0, 0.1))
    assert [entry.state.name for entry in stored(postgres_url)] == ["COMPLETE"]
    assert "trying again for 0.5 s" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"), [("nosuch", "does not exist"), ("postgres?user=nosuch", "nosuch")]
)
def test_a_mistyped_address_is_refused_at_once_without_its_password(
    tmp_path, postgres, wrong, said, capsys
):
    url = f"postgresql://synaptune:secret@127.0.0.1:{postgres.port}/{wrong}"
    with pytest.raises(UserError, match=said) as raised:
        Study(place(tmp_path, url), {})
    assert "secret" not in str(raised.value)
    assert capsys.readouterr().err == ""


def test_a_sqlite_file_that_another_program_locks_is_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(database, "LOCK_WAIT", 0.05)
    path = tmp_path / "study.db"
    with Study(place(tmp_path, f"sqlite:///{path}"), {}) as held:
        other = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        release = threading.Timer(0.5, other.rollback)
        release.start()
        run_one(ledger(held), 0)
        release.join()
        other.close()
    assert_whole(f"sqlite:///{path}", 1)
    assert "locked" in capsys.readouterr().err


def test_a_lock_that_stays_is_said_after_the_patience(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "LOCK_WAIT", 0.05)
    path = tmp_path / "study.db"
    with Study(place(tmp_path, f"sqlite:///{path}"), {}, retry_timeout=0.3) as held:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match=r"no answer for 0\.3 s \(database is locked\)"):
            ledger(held).start(0, UNIT, VALUES, 0)
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
    print("held", flush=True)
    book = PhaseLedger(study, space, "search", {"seed": 4})
    trials = book.read_trials()
    waiting = [trial for trial in trials if trial.state == "running"]
    numbers, values = range(len(trials), int(sys.argv[3])), {"x": 0.5, "n": 2}
    fresh = (book.start(index, (0.1, 0.2), values, 0) for index in numbers)
    for trial in itertools.chain(waiting, fresh):
        for step in range(3):
            book.report(trial, trial.index + step / 10, step)
        book.finish(trial, Result(float(trial.index), 0.1, {"val_loss": float(trial.index)}))
"""


@pytest.mark.slow
def test_controller_and_server_killed_at_random_moments_lose_and_double_nothing(
    tmp_path, postgres, postgres_url
):
    moments, count = random.Random(7), 400
    words = [sys.executable, "-c", CONTROLLER, str(tmp_path), postgres_url, str(count)]
    for kill in range(8):
        controller = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert controller.stdout is not None
        assert controller.stderr is not None
        said = controller.stdout.readline()
        assert said == "held\n", controller.stderr.read()
        time.sleep(moments.uniform(0.0, 0.5))
        if kill % 2:
            postgres.stop("immediate")
        controller.kill()
        controller.communicate()
        if kill % 2:
            postgres.start()
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, done.stderr
    assert_whole(postgres_url, count)


def test_a_lost_connection_is_named_by_the_innermost_error_that_says_anything():
    error = ConnectionError("server closed the connection\nunexpectedly")
    error.__cause__ = RuntimeError(())
    assert get_error_message(error) == "server closed the connection"
    assert get_error_message(RuntimeError(())) == "RuntimeError"
