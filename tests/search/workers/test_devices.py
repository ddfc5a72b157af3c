"""Each worker process gets one of `workers.devices`; the GPUs are pretended."""

import os
from dataclasses import replace

import pytest

from synaptune.core.errors import UserError
from synaptune.search.trial import Result, Trial
from synaptune.search.workers import devices
from synaptune.search.workers.base import FinishedTrial
from synaptune.search.workers.config import (
    TrialConfig,
    WorkersConfig,
    check_execution,
    make_workers,
    resolve_worker_count,
)


@pytest.fixture
def two_gpus(monkeypatch):
    monkeypatch.setattr(devices, "count_gpus", lambda: 2)
    monkeypatch.setattr("synaptune.search.workers.config.count_gpus", lambda: 2)
    monkeypatch.delenv(devices.VISIBLE, raising=False)


def read_device(trial):
    """The device that the process of a trial sees, as its only metric."""
    return Result(0.0, 0.0, facts={"sees": os.environ.get(devices.VISIBLE), "pid": os.getpid()})


def run_two(folder, config):
    """Run two trials at a time, twice; return what their processes saw."""
    workers = make_workers(config, TrialConfig(), read_device, folder)
    seen = set()
    try:
        for number in range(2):
            workers.start(Trial(number, number, (), {}))
        ended = []
        while len(ended) < 2:
            ended += workers.wait_for_trials(lambda *_: False)
        seen |= {(entry.result.facts["pid"], entry.result.facts["sees"]) for entry in ended}
    finally:
        workers.close()
    return seen


def test_each_worker_sees_its_own_device_of_those_that_this_process_sees(
    two_gpus, tmp_path, monkeypatch
):
    monkeypatch.setenv(devices.VISIBLE, "5,7")  # as a batch system gives a part of a machine
    config = resolve_worker_count(WorkersConfig())
    assert (config.slots, config.devices) == (2, ["0", "1"])
    check_execution(config, TrialConfig())
    seen = run_two(tmp_path, config)
    assert len({pid for pid, _ in seen}) == 2
    assert sorted(device for _, device in seen) == ["5", "7"]


def test_a_number_is_that_of_the_machine_where_every_device_is_visible(two_gpus):
    assert devices.get_device_id("1") == "1"
    assert devices.get_device_id("GPU-8f1") == "GPU-8f1"


def test_a_worker_of_the_device_cpu_sees_no_gpu(two_gpus, tmp_path):
    config = resolve_worker_count(WorkersConfig(devices=["cpu", "1"]))
    check_execution(config, TrialConfig())
    assert sorted(device for _, device in run_two(tmp_path, config)) == ["", "1"]


def read_devices(trials, on_report):
    for trial in trials:
        facts = read_device(trial).facts | {"batch": len(trials)}
        yield FinishedTrial(trial, Result(0.0, 0.0, facts=facts))


def test_a_population_has_a_process_on_each_device_with_an_equal_part_of_the_trials(
    two_gpus, tmp_path
):
    config = resolve_worker_count(WorkersConfig(kind="population", count=5))
    check_execution(config, TrialConfig())
    workers = make_workers(config, TrialConfig(), read_device, tmp_path, read_devices)
    try:
        for number in range(5):
            workers.start(Trial(number, number, (), {}))
        ended = []
        while len(ended) < 5:
            ended += workers.wait_for_trials(lambda *_: False)
    finally:
        workers.close()
    seen = {entry.trial.number: entry.result.facts for entry in ended}
    assert [seen[number]["sees"] for number in range(5)] == ["0", "0", "0", "1", "1"]
    assert [seen[number]["batch"] for number in range(5)] == [3, 3, 3, 2, 2]
    assert len({facts["pid"] for facts in seen.values()}) == 2


def test_a_population_takes_every_gpu_of_several_and_keeps_to_those_that_are_named(
    two_gpus, monkeypatch
):
    assert resolve_worker_count(WorkersConfig(kind="population")).devices == ["0", "1"]
    named = resolve_worker_count(WorkersConfig(kind="population", devices=["cpu"] * 20))
    assert (named.count, named.devices) == (20, ["cpu"] * 20)
    assert named.populations_per_device == 20
    monkeypatch.setattr("synaptune.search.workers.config.count_gpus", lambda: 1)
    one = resolve_worker_count(WorkersConfig(kind="population"))
    assert (one.count, one.devices, one.populations_per_device) == (16, [], 1)


def test_trials_that_can_share_a_program_do_so_on_a_gpu_unless_the_workers_are_chosen(
    two_gpus, monkeypatch
):
    config = resolve_worker_count(WorkersConfig(), can_batch=True)
    assert (config.kind, config.count, config.devices) == ("population", 16, ["0", "1"])
    for chosen in (WorkersConfig(count=2), WorkersConfig(kind="processes")):
        assert resolve_worker_count(chosen, can_batch=True).kind == chosen.kind
    assert resolve_worker_count(WorkersConfig(devices=["1"]), can_batch=True).devices == ["1"]
    monkeypatch.setattr("synaptune.search.workers.config.count_gpus", lambda: 0)
    assert resolve_worker_count(WorkersConfig(), can_batch=True).kind == "auto"


def test_one_worker_with_a_device_runs_in_a_process_that_sees_only_this_one(two_gpus, tmp_path):
    config = resolve_worker_count(WorkersConfig(devices=["1"]))
    assert config.slots == 1
    workers = make_workers(config, TrialConfig(), read_device, tmp_path)
    try:
        workers.start(Trial(0, 0, (), {}))
        (ended,) = workers.wait_for_trials(lambda *_: False)
    finally:
        workers.close()
    assert ended.result.facts["sees"] == "1"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (WorkersConfig(devices=["0", "2"]), "no device 2; torch finds GPUs 0 to 1"),
        (WorkersConfig(devices=["a"]), "no device a"),
        (WorkersConfig(kind="population", devices=["cpu", "3"]), "no device 3"),
        (
            WorkersConfig(kind="here", devices=["0"]),
            "expected workers.kind=processes or population",
        ),
        (
            WorkersConfig(kind="ray", devices=["cpu"]),
            "expected workers.kind=processes or population",
        ),
    ],
)
def test_a_device_that_cannot_be_assigned_is_refused(two_gpus, config, expected):
    with pytest.raises(UserError, match=expected.replace("(", r"\(")):
        check_execution(replace(config, count=1), TrialConfig())


def test_a_device_is_refused_on_a_machine_without_gpus(monkeypatch):
    monkeypatch.setattr(devices, "count_gpus", lambda: 0)
    with pytest.raises(UserError, match="torch finds no GPU here"):
        check_execution(WorkersConfig(count=1, devices=["0"]), TrialConfig())
