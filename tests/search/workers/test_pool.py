"""Worker processes that are killed, hang or run out of memory, and the results of their trials."""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Client
from pathlib import Path

import pytest

from helpers.paths import TESTS
from synaptune.core.errors import UserError
from synaptune.search.loop import Search, run_searches
from synaptune.search.optimizers.registry import Engine
from synaptune.search.optimizers.snapshot import StateFile
from synaptune.search.plan import Plan
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Result, Trial
from synaptune.search.workers.base import InlineWorkers, NeverStop, SequentialEvaluation
from synaptune.search.workers.messages import EndedTrial, Ready
from synaptune.search.workers.pool import Pool
from synaptune.search.workers.reporting import report
from synaptune.search.workers.spawners import LocalSpawner, SlurmSpawner
from synaptune.study.location import StudyLocation
from synaptune.study.study import PhaseLedger, Study

SPACE = Space(
    (Dimension("x", "lin", 0.0, 10.0, start=1.0), Dimension("y", "log", 1.0, 100.0, start=10.0))
)


def bowl(trial):
    return Result((trial.values["x"] - 3.0) ** 2 + trial.values["y"] / 100.0, 0.0)


def drive(
    folder,
    evaluate=bowl,
    *,
    name="cma",
    budget=16,
    count=3,
    timeout=None,
    retries=1,
    rate=1.0,
    said=None,
    spawner=None,
    judge=None,
    processes=None,
):
    engine = Engine(name, 7, workers=3)
    spawner = spawner or LocalSpawner(processes or max(1, count))
    if processes is not None:  # each evaluates its share as a batch
        workers = Pool(evaluate, spawner, count, processes=processes)
    elif count:
        workers = Pool(SequentialEvaluation(evaluate), spawner, count, timeout)
    else:
        workers = InlineWorkers(evaluate, timeout)
    with Study(
        StudyLocation("s", folder, f"sqlite:///{folder}/study.db", "auto"), {"a": 1}
    ) as study:
        try:
            found = Search(
                SPACE,
                engine,
                Plan(budget, max_failure_rate=rate, retries=retries),
                PhaseLedger(study, SPACE, "search", {}),
                StateFile(folder / "optimizer.pkl", engine, SPACE.describe()),
                stopper=judge or NeverStop(),
                on_message=[].append if said is None else said.append,
            )
            return run_searches([found], workers)[0]
        finally:
            workers.close()


def sequence(trials):
    return [(trial.number, trial.index, trial.unit, trial.objective) for trial in trials]


def alone(folder, index):
    """Whether this is the first attempt at a trial, as a file remembers."""
    try:
        os.close(os.open(folder / f"began{index}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def test_processes_search_as_this_process_does_whichever_ends_first(tmp_path):
    def uneven(trial):
        time.sleep(0.05 * (trial.index % 3 == 0))
        return bowl(trial)

    whole = sequence(drive(tmp_path / "here", count=0))
    assert sequence(drive(tmp_path / "pool", uneven)) == whole


def test_workers_live_on_from_trial_to_trial(tmp_path):
    def named(trial):
        return Result(1.0, 0.0, facts={"pid": os.getpid()})

    trials = drive(tmp_path, named, count=2, name="random", budget=12)
    pids = {trial.facts["pid"] for trial in trials}
    assert len(pids) <= 2
    assert os.getpid() not in pids


def test_a_trial_whose_worker_is_killed_is_tried_again_and_then_failed(tmp_path):
    def fatal(trial):
        if trial.index == 5 or (trial.index == 2 and alone(tmp_path, 2)):
            os.kill(os.getpid(), signal.SIGKILL)
        return bowl(trial)

    said = []
    trials = drive(tmp_path, fatal, said=said)
    assert [trial.index for trial in trials if trial.state == "failed"] == [5]
    assert trials[5].facts["failure"] == "worker"
    assert trials[5].reason == "its worker died (signal SIGKILL)"
    assert trials[5].facts["attempts"] == ["its worker died (signal SIGKILL)"]
    assert trials[2].state == "complete"
    assert sum("trying it again" in line for line in said) == 2


@pytest.mark.parametrize("count", [0, 2])
def test_a_trial_past_its_time_is_ended_and_the_search_goes_on(tmp_path, count):
    def hung(trial):
        if trial.index == 3:
            time.sleep(60.0)
        return bowl(trial)

    trials = drive(tmp_path, hung, count=count, timeout=0.5, budget=8)
    assert [
        (trial.index, trial.facts["failure"]) for trial in trials if trial.state == "failed"
    ] == [(3, "timeout")]
    assert "trial.timeout" in trials[3].reason


@pytest.mark.slow
@pytest.mark.parametrize(("timeout", "kind"), [(1.0, "timeout"), (None, "worker")])
def test_a_stopped_worker_is_ended_and_the_search_goes_on(tmp_path, monkeypatch, timeout, kind):
    def stopped(trial):
        if trial.index == 3:
            os.kill(os.getpid(), signal.SIGSTOP)
        return bowl(trial)

    monkeypatch.setattr("synaptune.search.workers.pool.HEARTBEAT_TIMEOUT", 8.0)
    trials = drive(tmp_path, stopped, count=2, timeout=timeout, budget=5, retries=0)
    failed = [trial for trial in trials if trial.state == "failed"]
    assert [(trial.index, trial.facts["failure"]) for trial in failed] == [(3, kind)]


@pytest.mark.slow
def test_a_trial_out_of_memory_fails_alone(tmp_path):
    def hungry(trial):
        resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))
        return Result(float(len(bytearray(2**33))), 0.0) if trial.index == 1 else bowl(trial)

    trials = drive(tmp_path, hungry, count=2, budget=5)
    assert [
        (trial.index, trial.facts["failure"]) for trial in trials if trial.state == "failed"
    ] == [(1, "memory")]


@pytest.mark.parametrize("count", [0, 2])
def test_each_kind_of_failure_is_recorded_with_its_reason(tmp_path, count):
    def failing(trial):
        if trial.index == 1:
            raise ArithmeticError("told to fail")
        return Result(float("nan"), 0.0) if trial.index == 2 else bowl(trial)

    trials = drive(tmp_path, failing, count=count, budget=5)
    assert {
        trial.index: (trial.facts["failure"], trial.reason)
        for trial in trials
        if trial.state == "failed"
    } == {
        1: ("error", "ArithmeticError: told to fail"),
        2: ("number", "the objective is nan, expected a finite number"),
    }
    assert "in failing" in trials[1].facts["traceback"]


@pytest.mark.parametrize("count", [0, 2])
def test_reported_values_are_stored_and_can_stop_a_trial(tmp_path, count):
    def learning(trial):
        for step in range(1, 5):
            if report(step, trial.values["x"] / step):
                return Result(None, 0.0, pruned=True, estimate=trial.values["x"] / 4)
        return bowl(trial)

    class Second(NeverStop):
        def __call__(self, trial, step, value):
            return (trial.index, step) == (2, 2)

    trials = drive(tmp_path, learning, count=count, name="random", budget=6, judge=Second())
    assert [trial.index for trial in trials if trial.state == "pruned"] == [2]
    assert trials[2].estimate == trials[2].values["x"] / 4


def test_a_mistake_in_every_trial_of_the_workers_stops_the_search(tmp_path):
    def wrong(trial):
        raise UserError("got no data\n  expected: data\n  to do: bring some")

    with pytest.raises(UserError, match="got no data"):
        drive(tmp_path, wrong, count=2)


def test_workers_that_never_start_stop_the_search_with_the_cause(tmp_path):
    class Unloadable:
        def __reduce__(self):
            return (__import__, ("no_such_module_of_a_user",))

    with pytest.raises(UserError, match="no_such_module_of_a_user"):
        drive(tmp_path, Unloadable(), count=1)


class Elsewhere:
    """Starts workers as threads of this process that connect through a port."""

    remote = True

    def spawn(self, address, key, place):
        threading.Thread(target=self._work, args=(address[1], key, place), daemon=True).start()
        return self

    def _work(self, port, key, place):
        link = Client(("127.0.0.1", port), authkey=key)
        link.send(place)
        link.recv()
        link.send(Ready())
        with contextlib.suppress(OSError, EOFError):
            while True:
                (trial,) = link.recv()
                link.send(EndedTrial(trial.number, bowl(trial)))

    def poll(self):
        return None

    def kill(self):
        pass

    def close(self):
        pass


def one_trial(pool):
    """The objective of a trial; None if its worker did not connect in time."""
    ended = []

    def run():
        pool.start(Trial(0, 0, (0.5, 0.5), {"x": 1.0, "y": 1.0}))
        ended.extend(pool.wait_for_trials(lambda *_: False))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(15.0)
    return ended[0].result.objective if ended else None


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\x04abcd", b"\xff" * 64])
def test_unauthenticated_connections_do_not_block_workers(said):
    pool = Pool(SequentialEvaluation(bowl), Elsewhere(), 1)
    strangers = [socket.create_connection(("127.0.0.1", pool._address[1])) for _ in range(3)]
    for stranger in strangers:
        stranger.sendall(said)
    try:
        assert one_trial(pool) == pytest.approx(4.01)
    finally:
        pool.close()
        for stranger in strangers:
            stranger.close()


def test_a_silent_connection_is_closed(monkeypatch):
    monkeypatch.setattr("synaptune.search.workers.pool._HANDSHAKE_TIMEOUT", 0.2)
    pool = Pool(SequentialEvaluation(bowl), Elsewhere(), 1)
    try:
        with socket.create_connection(("127.0.0.1", pool._address[1]), timeout=30.0) as stranger:
            while stranger.recv(1024):  # the pool's question, then the end
                pass
        assert one_trial(pool) == pytest.approx(4.01)
    finally:
        pool.close()


def test_an_evaluation_that_cannot_be_pickled_is_refused_and_closes_the_spawner():
    spawner, lock, closed = Elsewhere(), threading.Lock(), []
    spawner.close = lambda: closed.append(True)
    with pytest.raises(UserError, match=r"cannot be sent to a worker[\s\S]*to do"):
        Pool(SequentialEvaluation(lambda trial: lock), spawner, 1)
    assert closed


CONTROLLER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from search.workers.test_pool import drive, bowl
folder = Path({folder!r})

def slow(trial):
    with open(folder / "pids", "a") as pids:
        pids.write(f"{{os.getpid()}}\\n")
    time.sleep(0.2)
    return bowl(trial)

drive(folder, slow)
"""


def test_a_killed_controller_takes_its_workers_with_it_and_the_search_goes_on_as_undisturbed(
    tmp_path,
):
    whole = sequence(drive(tmp_path / "whole", count=0))
    code = CONTROLLER.format(tests=str(TESTS), folder=str(tmp_path))
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "pids").exists() or len((tmp_path / "pids").read_text().splitlines()) < 5:
        time.sleep(0.01)
        assert process.poll() is None
    process.kill()
    process.wait()
    deadline = time.monotonic() + 300.0
    pids = {int(line) for line in (tmp_path / "pids").read_text().splitlines()}
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert sequence(drive(tmp_path)) == whole


def test_jobs_of_submitit_are_workers_too(tmp_path):
    pytest.importorskip("submitit")
    spawner = SlurmSpawner(tmp_path / "submitit", "local", {"timeout_min": 5})
    assert sequence(drive(tmp_path / "jobs", count=2, spawner=spawner, budget=8)) == sequence(
        drive(tmp_path / "here", count=0, budget=8)
    )


SLURM = {
    "sbatch": """
echo 7$$ > "{folder}/job"; echo "Submitted batch job 7$$"
export SLURM_JOB_ID=7$$ SLURM_NTASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0 SLURM_NODEID=0
export SLURM_JOB_NUM_NODES=1 SLURM_JOB_NODELIST=localhost
setsid bash "$1" > /dev/null 2>&1 < /dev/null &
""",
    "srun": """
while [[ $1 == --* ]]; do [[ $1 == --unbuffered ]] && shift || shift 2; done; exec "$@"
""",
    "sacct": "printf 'no table'",
    "scancel": "true",
}


def install_slurm(folder, monkeypatch, **programs):
    """Put programs of these texts on the PATH, and give the folder of a study."""
    for name, text in (SLURM | programs).items():
        path = folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text.replace('{folder}', str(folder))}")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}/bin", prepend=os.pathsep)


def test_a_job_script_quotes_the_folder_of_the_study(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    install_slurm(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a b$(touch ran)`touch ran`';touch ran;\"c"
    spawner = SlurmSpawner(folder / "submitit", "slurm", {"timeout_min": 5})
    assert sequence(drive(folder, count=2, spawner=spawner, budget=8)) == sequence(
        drive(tmp_path / "here", count=0, budget=8)
    )
    assert not list(tmp_path.rglob("ran"))


@pytest.mark.parametrize(
    ("sbatch", "folder", "said"),
    [
        ("echo sbatch: error: invalid account >&2; exit 1", "s", "invalid account"),
        ("printf 'no number'", "s", "no number"),
        (r"printf '\377\000'", "s", "a job that cannot be submitted"),
        ("true", "a\ntouch ran\n", "line breaks"),
    ],
)
def test_a_job_that_cannot_be_submitted_is_an_error_with_the_reason(
    tmp_path, monkeypatch, sbatch, folder, said
):
    pytest.importorskip("submitit")
    install_slurm(tmp_path, monkeypatch, sbatch=sbatch)
    with pytest.raises(UserError, match=rf"{said}[\s\S]*to do"):
        SlurmSpawner(tmp_path / folder, "slurm").spawn(("127.0.0.1", 9), b"key", 0)


def test_workers_without_slurm_are_refused_before_a_trial(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"srun[\s\S]*or choose workers=processes"):
        SlurmSpawner(tmp_path, "slurm")


@pytest.mark.slow
def test_tasks_of_ray_are_workers_too(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    from synaptune.search.workers.spawners import RaySpawner

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")

    def fatal(trial):
        if trial.index == 2 and alone(tmp_path, 2):
            os.kill(os.getpid(), signal.SIGKILL)
        return bowl(trial)

    said = []
    trials = drive(
        tmp_path / "ray", fatal, count=2, spawner=RaySpawner(cpus=0.5), budget=8, said=said
    )
    assert sequence(trials) == sequence(drive(tmp_path / "here", count=0, budget=8))
    assert sum("trying it again" in line for line in said) == 1


@pytest.mark.slow
def test_a_ray_cluster_that_has_ended_is_an_error_before_ray_ends_the_process(tmp_path):
    pytest.importorskip("ray")
    code = """
import os, signal, subprocess, sys, time
from synaptune.core.errors import UserError
from synaptune.search.workers.spawners import RaySpawner
spawner = RaySpawner(cpus=0.5)
found = subprocess.run(["pgrep", "-P", str(os.getpid()), "gcs_server"], capture_output=True)
os.kill(int(found.stdout), signal.SIGKILL)
time.sleep(0.5)
try:
    spawner.spawn(("127.0.0.1", 9), b"key", 0)
except UserError as error:
    print(error, flush=True)
os._exit(0)
"""
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    assert "which does not answer" in done.stdout, done.stderr
    assert "ray start --head" in done.stdout
