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


def place(folder, url):
    return StudyLocation("s", folder, url, "auto")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path):
    """A database for two controllers in different folders: of one machine, or as of two."""
    return (
        f"sqlite:///{tmp_path}/shared.db"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_url")
    )


@pytest.fixture
def other(tmp_path, url):
    """Another process that runs the study from a folder of its own."""
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


def test_a_second_controller_is_refused_and_told_who_the_first_is(tmp_path, url, other):
    with pytest.raises(UserError, match="another process") as raised:
        Study(place(tmp_path / "mine", url), {})
    host = re.escape(socket.gethostname())
    assert re.search(
        rf"host {host}, process {other.pid}, last sign of life \d+ s ago", str(raised.value)
    )


def test_death_lets_go_of_the_study(tmp_path, url, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    with Study(place(tmp_path / "mine", url), {}) as study:
        assert read_holder(study).is_same_process(Holder.current())


def terminate_lock(postgres):
    """End the connections that hold an advisory lock, as a network failure would."""
    return postgres.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
    )


def test_a_lock_whose_connection_was_lost_is_taken_again_before_the_next_trial(
    tmp_path, postgres, postgres_url
):
    with Study(place(tmp_path / "mine", postgres_url), {}) as study:
        assert len(terminate_lock(postgres)) == 1
        PhaseLedger(study, SPACE, "search", {}).start(0, (0.5,), {"x": 0.5}, 0)
        with pytest.raises(UserError, match="another process"):
            Study(place(tmp_path / "second", postgres_url), {})
    Study(place(tmp_path / "second", postgres_url), {}).close()


def test_a_controller_whose_study_was_taken_over_starts_nothing_more(
    tmp_path, postgres, postgres_url
):
    with Study(place(tmp_path / "mine", postgres_url), {}) as study:
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


def test_a_lock_left_to_our_own_lost_connection_is_waited_for(tmp_path, postgres, postgres_url):
    """A server learns late that a client's network is gone: until then its own lost connection
    keeps the lock from it.
    """
    with Study(place(tmp_path / "mine", postgres_url), {}, retry_timeout=0.5) as study:
        terminate_lock(postgres)
        ghost = ServerLock(add_driver(postgres_url), "s")
        with pytest.raises(UserError, match=r"no answer for 0\.5 s \(study s is still locked"):
            PhaseLedger(study, SPACE, "search", {}).start(0, (0.5,), {"x": 0.5}, 0)
        ghost.close()
        assert PhaseLedger(study, SPACE, "search", {}).start(0, (0.5,), {"x": 0.5}, 0).number == 0


def test_studies_of_different_names_share_a_database(tmp_path, url):
    with (
        Study(StudyLocation("a", tmp_path / "a", url, "auto"), {}),
        Study(StudyLocation("b", tmp_path / "b", url, "auto"), {}),
    ):
        pass


def test_a_key_fills_the_integers_of_the_server_and_never_changes():
    keys = [make_lock_key(str(number)) for number in range(200)]
    assert len(set(keys)) == 200
    assert min(keys) < 0 < max(keys)
    assert all(-(2**63) <= key < 2**63 for key in keys)
    assert make_lock_key("phase1") == 2695591989824269595  # sha256sum, its first 16 digits


def test_a_sign_of_life_is_written_at_once_and_then_now_and_again(tmp_path, monkeypatch):
    with Study(place(tmp_path, f"sqlite:///{tmp_path}/study.db"), {}) as study:
        first = read_holder(study)
        assert first.is_same_process(Holder.current())
        assert abs(datetime.now(UTC) - first.last_seen) < timedelta(seconds=30)
        study.write_note("holder", Holder("elsewhere", 1, first.last_seen).to_note())
        study.send_heartbeat()
        assert read_holder(study).host == "elsewhere"  # too soon to write again
        monkeypatch.setattr(module, "STUDY_HEARTBEAT_INTERVAL", 0.0)
        study.send_heartbeat()
        assert read_holder(study).is_same_process(first)
