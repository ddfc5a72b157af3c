"""One controller for each study: a second one is refused until the first one has ended."""

import re
import signal
import socket
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from synaptune.core.errors import UserError
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Result, TrialExistsError
from synaptune.study import study as module
from synaptune.study.database.connection import add_driver
from synaptune.study.database.locks import Holder, ServerLock, make_lock_key
from synaptune.study.location import StudyLocation
from synaptune.study.study import PhaseLedger, Study

SPACE = Space((Dimension("x", "lin", 0.0, 1.0),))
HOLD = """
import sys, time
from pathlib import Path
from synaptune.study.location import StudyLocation
from synaptune.study.study import Study
with Study(StudyLocation("s", Path(sys.argv[1]), sys.argv[2], "auto"), {}):
    print("held", flush=True)
    time.sleep(60)
"""


def read_holder(study: Study) -> Holder:
    return Holder.from_note(study.read_note("holder"))


def make_location(folder, url):
    return StudyLocation("s", folder, url, "auto")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    """A database for two controllers in different folders, on one machine or as on two machines."""
    return (
        f"sqlite:///{tmp_path}/shared.db"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_url")
    )


@pytest.fixture
def other(tmp_path, url):
    """Another process that runs the study in another folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "other"), url],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_controller_is_refused_with_the_name_of_the_first(tmp_path, url, other):
    with pytest.raises(UserError, match="another process") as raised:
        Study(make_location(tmp_path / "mine", url), {})
    host = re.escape(socket.gethostname())
    assert re.search(
        rf"host {host}, process {other.pid}, last sign of life \d+ s ago", str(raised.value)
    )


def test_a_killed_process_releases_the_study(tmp_path, url, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    with Study(make_location(tmp_path / "mine", url), {}) as study:
        assert read_holder(study).is_same_process(Holder.current())


def terminate_lock(postgres):
    """End the connections that hold an advisory lock, as a network failure would."""
    return postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
    )


def test_a_lock_with_a_lost_connection_is_acquired_again_before_the_next_trial(
    tmp_path, postgres, postgres_url
):
    with Study(make_location(tmp_path / "mine", postgres_url), {}) as study:
        assert len(terminate_lock(postgres)) == 1
        PhaseLedger(study, SPACE, "search", {}).start(0, (0.5,), {"x": 0.5}, 0)
        with pytest.raises(UserError, match="another process"):
            Study(make_location(tmp_path / "second", postgres_url), {})
    Study(make_location(tmp_path / "second", postgres_url), {}).close()


def test_a_controller_that_lost_its_study_starts_no_trial(tmp_path, postgres, postgres_url):
    with Study(make_location(tmp_path / "mine", postgres_url), {}) as study:
        terminate_lock(postgres)
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "other"), postgres_url],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            with pytest.raises(
                UserError, match=f"another process is running .*process {process.pid}"
            ):
                PhaseLedger(study, SPACE, "search", {}).start(0, (0.5,), {"x": 0.5}, 0)
        finally:
            process.kill()
            process.wait()
        assert study.read_trials() == []


def test_a_lock_that_a_lost_connection_of_this_process_holds_is_waited_for(
    tmp_path, postgres, postgres_url
):
    """A server detects a lost connection late, and until then the connection holds the lock."""
    with Study(make_location(tmp_path / "mine", postgres_url), {}, retry_timeout=0.5) as study:
        terminate_lock(postgres)
        lost_connection = ServerLock(add_driver(postgres_url), "s")
        with pytest.raises(UserError, match=r"no answer for 0\.5 s \(study s is still locked"):
            PhaseLedger(study, SPACE, "search", {}).start(0, (0.5,), {"x": 0.5}, 0)
        lost_connection.close()
        assert PhaseLedger(study, SPACE, "search", {}).start(0, (0.5,), {"x": 0.5}, 0).number == 0


def share(folder, url, configuration=None):
    return Study(make_location(folder, url), configuration or {}, shared=True)


def start_trial(study, index):
    return PhaseLedger(study, SPACE, "search", {}).start(index, (0.5,), {"x": 0.5}, 0)


def test_processes_that_share_a_study_exclude_one_that_does_not(tmp_path, url):
    first, second = share(tmp_path / "first", url), share(tmp_path / "second", url)
    first.close()
    with second, pytest.raises(UserError, match="another process"):
        Study(make_location(tmp_path / "third", url), {})
    alone = Study(make_location(tmp_path / "third", url), {})
    with alone, pytest.raises(UserError, match="another process"):
        share(tmp_path / "first", url)


def test_a_study_that_another_process_has_opened_is_not_replaced(tmp_path, url):
    with share(tmp_path / "first", url, {"a": 1}) as study:
        with pytest.raises(UserError, match="another configuration"):
            share(tmp_path / "second", url, {"a": 2})
        start_trial(study, 0)
    with share(tmp_path / "second", url, {"a": 2}) as study:  # no trial of it has ended
        assert study.read_trials() == []


def test_an_index_belongs_to_one_process_until_that_process_ends(tmp_path, url):
    first, second = share(tmp_path / "first", url), share(tmp_path / "second", url)
    assert start_trial(first, 0).number == 0
    with pytest.raises(TrialExistsError):
        start_trial(second, 0)
    assert start_trial(second, 1).number == 1
    assert [second.owns(trial) for trial in second.read_trials()] == [False, True]
    first.close()
    assert [second.owns(trial) for trial in second.read_trials()] == [True, True]
    third = share(tmp_path / "first", url)
    assert [third.owns(trial) for trial in third.read_trials()] == [False, False]
    second.close()
    assert [third.owns(trial) for trial in third.read_trials()] == [True, True]
    third.close()


def test_the_first_result_counts_if_a_lost_connection_gave_a_trial_to_two_processes(
    tmp_path, postgres, postgres_url
):
    with share(tmp_path, postgres_url) as first, share(tmp_path, postgres_url) as second:
        trial = start_trial(first, 0)
        start_trial(second, 1)
        terminate_lock(postgres)
        taken = second.read_trials()[0]
        assert second.owns(taken)
        second.finish(taken, Result(1.0, 0.1))
        first.report(trial, 2.0, 1)
        first.finish(trial, Result(2.0, 0.1))
        assert start_trial(first, 2).facts["process"] not in {0, 1}
        assert [trial.objective for trial in first.read_trials()] == [1.0, None, None]


def test_studies_of_different_names_share_a_database(tmp_path, url):
    with (
        Study(StudyLocation("a", tmp_path / "a", url, "auto"), {}),
        Study(StudyLocation("b", tmp_path / "b", url, "auto"), {}),
    ):
        pass


def test_lock_keys_are_fixed_64_bit_integers():
    keys = [make_lock_key(str(number)) for number in range(200)]
    assert len(set(keys)) == 200
    assert min(keys) < 0 < max(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert make_lock_key("phase1") == 2695591989824269595  # sha256sum, its first 16 digits


def test_a_heartbeat_is_written_at_the_start_and_after_each_interval(tmp_path, monkeypatch):
    with Study(make_location(tmp_path, f"sqlite:///{tmp_path}/study.db"), {}) as study:
        first = read_holder(study)
        assert first.is_same_process(Holder.current())
        assert abs(datetime.now(UTC) - first.last_seen) < timedelta(seconds=30)
        study.write_note("holder", Holder("elsewhere", 1, first.last_seen).to_note())
        study.send_heartbeat()
        assert read_holder(study).host == "elsewhere"  # too soon to write again
        monkeypatch.setattr(module, "STUDY_HEARTBEAT_INTERVAL", 0.0)
        study.send_heartbeat()
        assert read_holder(study).is_same_process(first)
