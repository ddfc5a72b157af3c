"""Upload of offline runs to a local server by the W&B client."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.wandb_server import run_server

pytest.importorskip("wandb", reason="wandb is an optional extra")

from helpers import wandb_search
from synaptune.cli import main as cli
from synaptune.cli.wandb import add_command
from synaptune.core.errors import UserError
from synaptune.study.callbacks.wandb_sync import count_uploaded, find_local_runs
from synaptune.study.database.locks import Holder
from synaptune.study.reader import find_study
from synaptune.training.loggers import wandb_run as wandb_runs

NAME = "offline"


@pytest.fixture(scope="module")
def logged(tmp_path_factory) -> Path:
    """Folder of a study with offline runs of the controller and of trials 0 to 3; 2 failed."""
    folder = tmp_path_factory.mktemp("sync") / NAME
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        wandb_search.main(folder, NAME, 1, "end")
    return folder


@pytest.fixture
def study(logged, tmp_path, monkeypatch) -> Path:
    """A copy of the study, in a process without a W&B account and mode."""
    for name in list(os.environ):
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setattr(wandb_runs, "_offline_reason", None)
    wandb_runs.is_server_reachable.cache_clear()
    shutil.copytree(logged, tmp_path / NAME, symlinks=True)
    return tmp_path / NAME


def wandb(*arguments: str) -> None:
    """Run the command `synaptune wandb`."""
    parser = argparse.ArgumentParser()
    add_command(parser.add_subparsers(required=True))
    options = parser.parse_args(["wandb", *arguments])
    options.command(options)


def names(study: Path, best: int | None = None) -> list[str]:
    return [run.name for run in find_local_runs(find_study(str(study)), study, best=best).chosen]


def test_every_trial_is_chosen_unless_the_number_of_best_trials_is_given(study):
    assert names(study, best=2) == ["controller", "trial 0", "trial 1"]
    assert names(study, best=0) == ["controller"]
    assert names(study) == [
        "controller",
        "trial 0",
        "trial 1",
        "trial 2",
        "trial 3",
    ]


def test_a_run_that_has_not_ended_is_sent_only_if_no_search_is_running(study):
    (file,) = study.glob("trials/1/wandb/offline-run-*/*.wandb")
    (file.parent / wandb_runs.OPEN_MARKER).touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Holder, "is_running", lambda self: True)
        assert names(study, best=2) == ["controller", "trial 0"]
    assert names(study, best=2) == ["controller", "trial 0", "trial 1"]
    file.write_bytes(file.read_bytes()[:7])  # a kill can leave a file with its header only
    assert names(study, best=2) == ["controller", "trial 0"]


def test_the_last_of_two_attempts_at_a_trial_is_sent(study):
    (first,) = study.glob("trials/0/wandb/offline-run-*")
    later = first.with_name(first.name.replace("offline-run-2", "offline-run-3"))
    shutil.copytree(first, later)
    (_, run) = find_local_runs(find_study(str(study)), study, best=1).chosen
    assert run.path.parent == later


def test_offline_runs_are_sent_once_and_missing_ones_later(study, monkeypatch, capsys):
    with run_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        wandb("sync", str(study), "--best", "1")
        out = capsys.readouterr().out
        assert "sent: 2 (controller, trial 0); sent before: 0; not sent: 3 beyond the best 1" in out
        assert count_uploaded(find_study(str(study)), study) == (1, 4)
        (controller,) = [
            run for run in server.runs.values() if run.about["jobType"] == "controller"
        ]
        assert [
            row["search/evaluation"] for row in controller.history if "search/evaluation" in row
        ] == [1, 2, 3, 4]
        assert controller.exit_code == 0
        requests = len(server.operations)
        words = ["wandb", "sync", str(study), "--best", "1", "--json", "--quiet"]
        assert cli.main(words) == 0
        out, err = capsys.readouterr()
        assert json.loads(out) == {
            **{"study": "offline", "sent": [], "sent_before": 2, "failed": []},
            "left_out": ["trial 1", "trial 2", "trial 3"],
        }
        assert err == ""
        assert len(server.operations) == requests
        wandb("sync", str(study), "--project", "other")
        out = capsys.readouterr().out
        assert "sent: 3 (trial 1, trial 2, trial 3); sent before: 2\n" in out
        assert count_uploaded(find_study(str(study)), study) == (4, 4)
        marked = [
            run.about["displayName"] for run in server.runs.values() if "is_best" in run.summary
        ]
        assert marked == ["offline-0"]
        sent = sorted(
            (run.about["project"], run.about["jobType"], run.announced)
            for run in server.runs.values()
        )
        assert [entry[:2] for entry in sent] == [("other", "search")] * 3 + [
            ("synaptune", "controller"),
            ("synaptune", "search"),
        ]
        assert server.unknown == []


@pytest.mark.slow
def test_a_published_report_adds_its_figures_to_the_run_of_an_offline_study(study):
    command = [sys.executable, "-m", "synaptune.cli.main", "wandb"]
    with run_server() as server:
        environment = os.environ | server.environment
        del environment["WANDB_MODE"]
        for action in ("sync", "report"):
            done = subprocess.run(
                [*command, action, str(study)],
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert (done.returncode, "not added" in done.stderr) == (0, False), done.stderr
        (controller,) = [
            run for run in server.runs.values() if run.about["jobType"] == "controller"
        ]
        assert controller.history[-1]["figure/convergence"]["_type"] == "image-file"
        (view,) = server.views.values()
        assert "figure/convergence" in view["spec"]
        assert "The panels show the runs of 4 of the 4 trials of the search." in view["spec"]
        assert server.unknown == []


def test_without_a_key_or_a_server_nothing_is_sent_and_the_reason_is_reported(study, monkeypatch):
    with socket.socket() as taken:  # bound and never listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(UserError, match="no API key"):
            wandb("sync", str(study))
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        with pytest.raises(UserError, match="no answer from http://127"):
            wandb("sync", str(study))
    shutil.rmtree(study / "trials")
    shutil.rmtree(study / "controller")
    with pytest.raises(UserError, match="no offline runs of offline"):
        wandb("sync", str(study))
