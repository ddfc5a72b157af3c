"""Loggers: complete files, one W&B run for each trial, no prompt and no long wait."""

from __future__ import annotations

import http.server
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from synaptune.core.errors import UserError
from synaptune.training import trainer
from synaptune.training.config import LoggerConfig
from synaptune.training.loggers import progress as progress_module
from synaptune.training.loggers import wandb_run as wandb_runs
from synaptune.training.loggers.base import CsvWriter, RunLogger
from synaptune.training.loggers.progress import Progress, make_progress

needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="wandb is an optional extra"
)


@pytest.fixture(autouse=True)
def no_account(monkeypatch, tmp_path):
    """A process without W&B credentials, whose mode is undecided."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(wandb_runs, "_offline_reason", None)
    wandb_runs.is_server_reachable.cache_clear()


def test_a_resumed_csv_keeps_the_rows_up_to_its_checkpoint_and_drops_later_ones(tmp_path):
    path = tmp_path / "metrics.csv"
    fresh = CsvWriter(path, 0)
    for step in (1, 2, 3):
        fresh.log(step, {"train_loss": step / 2})
    fresh.close(0)
    path.write_text(path.read_text() + "4,0.")  # a row cut by a kill
    resumed = CsvWriter(path, 2)
    resumed.log(3, {"train_loss": 9.0})
    resumed.close(0)
    assert [line.split(",")[:3] for line in path.read_text().splitlines()[1:]] == [
        ["1", "", "0.5"],
        ["2", "", "1.0"],
        ["3", "", "9.0"],
    ]


@needs_wandb
def test_two_runs_in_one_process_become_two_closed_offline_runs(run, small, tmp_path):
    import wandb

    for name in ("first", "second"):
        run([*small, "logger.wandb=auto", "name=pair"], tmp_path / name)
        files = list((tmp_path / name / "wandb").glob("offline-run-*/run-*.wandb"))
        assert len(files) == 1
        # W&B's own process acknowledges the end of a run a moment before its last block is on disk.
        deadline = time.monotonic() + 300
        while b"val_loss" not in files[0].read_bytes() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert b"val_loss" in files[0].read_bytes()
        assert b"synapse.calcium.tau_c" in files[0].read_bytes()
    assert wandb.run is None


@needs_wandb
def test_without_a_network_runs_are_offline_at_once_and_the_reason_is_printed_once(
    tmp_path, monkeypatch, capfd
):
    with socket.socket() as taken:  # bound and never listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        started_at = time.monotonic()
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            run_logger = RunLogger(
                LoggerConfig(tensorboard=False),
                tmp_path / name,
                name="dead",
                flat_config={},
                resumed_from=0,
            )
            run_logger.log(1, {"val_loss": 1.0})
            run_logger.close()
            assert list((tmp_path / name / "wandb").glob("offline-run-*"))
        assert time.monotonic() - started_at < 20
    assert capfd.readouterr().err.count("wandb: offline") == 1


@pytest.mark.parametrize(
    ("value", "mode"),
    [
        ("dryrun", "offline"),
        ("OFFLINE", "offline"),
        ("Disabled", "disabled"),
        ("run", "online"),
        ("online", "online"),
        ("", "online"),
        ("no such mode", "offline"),
    ],
)
def test_wandb_mode_of_the_environment_is_read_as_wandb_reads_it(monkeypatch, capsys, value, mode):
    monkeypatch.setenv("WANDB_MODE", value)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr(wandb_runs, "is_server_reachable", wandb_runs.functools.cache(lambda: True))
    assert wandb_runs._choose_mode("auto") == mode
    assert ("WANDB_MODE=no such mode" in capsys.readouterr().err) == (value == "no such mode")


@needs_wandb
def test_a_server_that_never_answers_counts_as_unreachable_in_time(monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(wandb_runs, "PROBE_SECONDS", 0.3)
        started_at = time.monotonic()
        assert not wandb_runs.is_server_reachable()
        assert time.monotonic() - started_at < 3


@needs_wandb
@pytest.mark.slow
def test_a_run_that_the_server_refuses_is_offline(tmp_path, monkeypatch, capfd):
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(404)
            self.end_headers()

        do_POST = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        run = wandb_runs.open_run(LoggerConfig(), tmp_path, name="refused", flat_config={})
        assert run is not None
        run.close(0)
        server.shutdown()
    assert list((tmp_path / "wandb").glob("offline-run-*"))
    assert "did not accept the run" in capfd.readouterr().err


@needs_wandb
@pytest.mark.parametrize(("value", "left"), [("no such mode", "offline"), ("", "online")])
def test_a_wandb_mode_that_the_client_refuses_does_not_prevent_the_run(
    run, small, tmp_path, monkeypatch, value, left
):
    monkeypatch.setenv("WANDB_MODE", value)
    run([*small, "logger.wandb=offline"], tmp_path)
    assert os.environ["WANDB_MODE"] == left
    assert len(wandb_runs.find_run_ids(tmp_path)) == 1


@needs_wandb
def test_without_an_api_key_and_standard_input_a_run_prompts_for_nothing(small, tmp_path, root):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("WANDB")
    }
    command = [
        sys.executable,
        str(root / "train.py"),
        *small,
        "logger.wandb=online",
        "training.steps=2",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert "wandb: offline (no API key" in done.stderr
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_tensorboard_events_contain_the_losses(run, small, tmp_path):
    run([*small, "logger.tensorboard=true"], tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("val_loss")] == [12, 24]


def test_a_pipe_gets_a_line_for_each_validation(capsys):
    progress = make_progress("lines", 10, 0, in_search=False)
    progress.update(5, 2.0, 100.0)
    progress.show_validation(5, 1.5)
    progress.close()
    assert capsys.readouterr().out.startswith(
        "step  5/10  train 2.0000  100 tokens/s  val 1.5000 nats/token"
    )
    assert isinstance(make_progress("auto", 10, 0, in_search=True), Progress)


def test_a_run_does_not_end_with_the_disk_of_its_output(monkeypatch):
    progress = make_progress("lines", 10, 0, in_search=False)
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        progress.show_validation(5, 1.5)
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space"):
            full.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())


def test_the_progress_bar_is_closed_when_a_logger_fails(run, small, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise UserError("no wandb")

    opened: list[str] = []
    monkeypatch.setattr(trainer, "RunLogger", refused)
    monkeypatch.setattr(trainer, "make_progress", lambda *_, **__: opened.append("a bar"))
    with pytest.raises(UserError, match="no wandb"):
        run(small, tmp_path)
    assert not opened


def test_the_bar_opens_and_closes_twice(capsys):
    for _ in range(2):
        progress = make_progress("bar", 10, 0, in_search=False)
        progress.update(5, 2.0, 100.0)
        progress.show_validation(10, 1.5)
        progress.close()
    assert "training" in capsys.readouterr().out


def test_a_log_file_gets_a_line_every_half_minute_and_no_flood(monkeypatch, capsys):
    clock = [0.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: clock[0])
    progress = make_progress("lines", 1000, 0, evaluations=1000, in_search=False)
    for step in range(1, 1001):
        clock[0] += 0.125
        progress.update(step, 2.0, 100.0)
        progress.show_validation(step, 2.5)
    lines = capsys.readouterr().out.splitlines()
    steps = [line.removeprefix("step").split("/")[0].strip() for line in lines]
    assert steps == ["240", "480", "720", "960", "1000"]
    slow = make_progress("lines", 10, 0, evaluations=1, in_search=False)
    clock[0] += 31.0
    slow.update(5, 2.0, 100.0)
    assert capsys.readouterr().out == "step  5/10  train 2.0000  100 tokens/s  31.0 s\n"
