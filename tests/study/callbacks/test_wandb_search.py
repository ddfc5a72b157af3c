"""A sweep with the W&B client and a local server that stores what it receives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import processes
from helpers.paths import TESTS
from helpers.wandb_server import Run, Server, hide_wandb, run_server

pytest.importorskip("wandb", reason="wandb is an optional extra")

from synaptune.core.errors import UserError
from synaptune.search.trial import Trial
from synaptune.study.callbacks.wandb_search import (
    HistoryFile,
    WandbCallback,
    open_search_run,
    read_run_config,
)
from synaptune.study.location import StudyLocation
from synaptune.study.study import Study
from synaptune.training.config import LoggerConfig
from synaptune.training.loggers.wandb_run import (
    OPEN_MARKER,
    get_study_identity,
    make_run_id,
    open_run,
)

SEARCH = TESTS / "helpers" / "wandb_search.py"
MINIMUM_AND_LAST = [1, 5]  # codes of the client
NAME = "it's #1"  # not every character of it may be in an id


def search(
    folder: Path, generations: int, how: str, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the search of wandb_search.py."""
    command = [str(SEARCH), str(folder), NAME, str(generations), how]
    return processes.run(command, folder.parent, env=hide_wandb() | environment)


@dataclass
class Upload:
    """The data that a killed and resumed search sent."""

    server: Server
    folder: Path

    @property
    def id(self) -> str:
        (run_id,) = [name for name in self.server.runs if name.endswith("-controller")]
        return run_id

    @property
    def run(self) -> Run:
        return self.server.runs[self.id]


@pytest.fixture(scope="module")
def upload(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wandb") / "study"
    with run_server() as server:
        killed = search(folder, 2, "kill", server.environment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        ended = search(folder, 3, "report", server.environment)
        assert ended.returncode == 0, ended.stderr
        assert server.unknown == []
        yield Upload(server, folder)


def test_the_controllers_run_has_the_name_of_its_study_and_ends_with_success(upload):
    about = upload.run.about
    assert (about["groupName"], about["jobType"], about["tags"]) == (
        NAME,
        "controller",
        ["mine", NAME, "controller"],
    )
    assert upload.run.config["seed"] == 0
    assert upload.run.exit_code == 0


def test_a_killed_and_resumed_search_has_every_trial_and_generation_once_and_in_order(upload):
    history = upload.run.history
    assert [row["_step"] for row in history] == list(range(len(history)))
    assert [row["search/evaluation"] for row in history if "search/evaluation" in row] == list(
        range(1, 13)
    )
    generations = [row for row in history if "search/generation/number" in row]
    assert [row["search/generation/number"] for row in generations] == [1, 2, 3]
    assert [row["search/generation/failed"] for row in generations] == [1, 0, 0]
    assert generations[0]["search/generation/best"] == 2.0
    assert generations[0]["search/generation/sigma/synapse.a.x"] == pytest.approx(0.2)


def test_the_best_objective_never_rises_and_a_failed_trial_has_no_objective(upload):
    rows = [row for row in upload.run.history if "search/evaluation" in row]
    assert [row["search/best"] for row in rows] == [2.0] * 12
    assert [row["search/evaluation"] for row in rows if "search/objective" not in row] == [3]
    assert [row["search/failed"] for row in rows] == [0, 0, *[1] * 10]
    assert upload.run.summary["search/best_trial"] == 0
    assert upload.run.summary["search/best_synapse.b.y"] == 0.1


def test_tables_have_every_generation_and_trial_of_both_processes(upload):
    tables = {
        path.split("/")[-1].split("_")[0]: json.loads(body)
        for path, body in upload.run.files.items()
        if path.endswith(".table.json")
    }
    assert [row[0] for row in tables["generations"]["data"]] == [1, 2, 3]
    assert tables["trials"]["columns"] == [
        "trial",
        "evaluation",
        "generation",
        "state",
        "objective",
        "synapse.a.x",
        "synapse.b.y",
    ]
    assert [row[0] for row in tables["trials"]["data"]] == list(range(12))
    assert [row[3] for row in tables["trials"]["data"]].count("failed") == 1


def test_heatmaps_and_parallel_coordinates_are_sent_as_images(upload):
    pictures = {path: body for path, body in upload.run.files.items() if path.endswith(".png")}
    for name in ("search/generation/distribution_", "search/distribution_", "search/parallel_"):
        assert any(path.startswith(f"media/images/{name}") for path in pictures), sorted(pictures)
    assert all(body.startswith(b"\x89PNG") and len(body) > 5000 for body in pictures.values())


def test_report_best_values_and_checkpoint_are_artifacts_of_the_controllers_run(upload):
    artifacts = {artifact["artifactTypeName"]: artifact for artifact in upload.server.artifacts}
    for kind, name, file, content in (
        ("report", "report", "report.html", b"<p>found</p>"),
        ("parameters", "best", "best.yaml", b"parameters: {}"),
        ("model", "checkpoint", "checkpoint.pt", b"weights"),
    ):
        artifact = artifacts[kind]
        assert (artifact["runName"], artifact["committed"]) == (upload.id, True)
        assert artifact["artifactCollectionName"] == f"it_s__1-{name}"
        assert artifact["files"][file] == content
        assert json.loads(artifact["metadata"]) == {"study": NAME, "trial": 0, "objective": 2.0}
    assert upload.run.history[-1]["report"]["_type"] == "html-file"
    assert upload.run.history[-1]["figure/convergence"]["_type"] == "image-file"


def test_the_metrics_of_the_search_are_minimized_over_evaluations(upload):
    assert upload.run.config["direction"] == "minimize"  # also after the results were added
    assert upload.run.config["searched"] == ["synapse.a.x", "synapse.b.y"]
    defined = {
        entry.get("1"): entry["7"] for entry in upload.run.config["_wandb"]["m"] if "7" in entry
    }
    assert defined["search/objective"] == defined["search/best"] == MINIMUM_AND_LAST


def test_the_runs_of_trials_have_name_phase_generation_and_searched_values(upload):
    trials = {name: run for name, run in upload.server.runs.items() if name != upload.id}
    assert sorted(run.about["displayName"] for run in trials.values()) == [
        f"{NAME}-{number}" for number in range(4)
    ]
    for run in trials.values():
        assert (run.about["groupName"], run.about["jobType"], run.about["tags"]) == (
            NAME,
            "search",
            [NAME, "search", "generation-0"],
        )
        assert run.config["generation"] == 0
        assert run.config["searched"] == ["synapse.a.x", "synapse.b.y"]
        assert run.config["searched.synapse.b.y"] == run.config["synapse.b.y"]
        assert run.history[-1]["val_loss"] >= 2.0


def test_only_the_best_run_is_marked_as_best(upload):
    marks = {
        run.about["displayName"]: run.summary.get("is_best")
        for name, run in upload.server.runs.items()
        if name != upload.id
    }
    assert marks == {f"{NAME}-0": True} | {f"{NAME}-{number}": None for number in (1, 2, 3)}


@pytest.mark.slow
def test_concurrent_searches_share_the_controllers_run(tmp_path):
    with run_server() as server:
        done = search(tmp_path / "study", 0, "together", server.environment)
        assert done.returncode == 0, done.stderr
        (run,) = server.runs.values()
        assert run.exit_code == 0
        for phase, searched in (("a", "synapse.a.x"), ("b", "synapse.b.y")):
            assert [
                row[f"{phase}/evaluation"] for row in run.history if f"{phase}/evaluation" in row
            ] == list(range(1, 13))
            assert [
                row[f"{phase}/generation/number"]
                for row in run.history
                if f"{phase}/generation/number" in row
            ] == [1, 2]
            (table,) = [row[f"{phase}/trials"] for row in run.history if f"{phase}/trials" in row]
            assert table["nrows"] == 12
            assert f"{phase}/best_{searched}" in run.summary


class DirectThread:
    """A WandbThread that makes each call at once, and its own history.

    Attributes:
        rows: logged rows; those of an earlier process come first.
    """

    def __init__(self, rows=()):
        self.rows, self.history, self.writer = (
            list(rows),
            self,
            SimpleNamespace(
                online=False,
                run=SimpleNamespace(
                    define_metric=lambda *_, **__: None,
                    config=SimpleNamespace(update=lambda *_, **__: None),
                ),
            ),
        )

    def submit(self, call):
        call()

    def end_phase(self, exit_code):
        assert exit_code == 0

    def log(self, writer, values, row):
        json.dumps(row)
        self.rows.append(row | {"logged": dict(values)})


def make_trial(number, state, objective=None, estimate=None):
    return Trial(number, number, (0.5,), {"x": 0.5}, state, objective, estimate=estimate)


def test_a_pruned_trial_is_never_the_best_and_never_complete(tmp_path):
    thread = DirectThread()
    callback = WandbCallback(
        thread, phase="search", names=["x"], trials_folder=tmp_path, maximize=False
    )
    for number, trial in enumerate(
        (
            make_trial(0, "complete", 2.0),
            make_trial(1, "pruned", estimate=1.0),
            make_trial(2, "failed"),
        ),
        1,
    ):
        callback.on_end(trial, number)
    assert [row["logged"]["search/best"] for row in thread.rows] == [2.0] * 3
    assert ["search/objective" in row["logged"] for row in thread.rows] == [True, False, False]
    second = DirectThread(thread.rows)
    resumed = WandbCallback(
        second, phase="search", names=["x"], trials_folder=tmp_path, maximize=False
    )
    resumed.close(0)
    logged = second.rows[-1]["logged"]
    assert logged["search/best_trial"] == 0
    assert logged["search/parallel"]._caption == "complete trials: 1"


def test_trials_that_were_not_logged_are_logged_when_the_search_continues(tmp_path):
    trials = [
        make_trial(0, "complete", 2.0),
        make_trial(1, "complete", 1.0),
        make_trial(2, "failed"),
        make_trial(3, "running"),
    ]
    first = DirectThread()
    WandbCallback(
        first, phase="search", names=["x"], trials_folder=tmp_path, maximize=False
    ).on_end(trials[0], 1)
    second = DirectThread(first.rows)
    WandbCallback(
        second, phase="search", names=["x"], trials_folder=tmp_path, maximize=False, earlier=trials
    )
    assert [(row["trial"], row["evaluation"]) for row in second.rows] == [(0, 1), (1, 2), (2, 3)]
    assert second.rows[-1]["logged"] == {
        "search/evaluation": 3,
        "search/failed": 1,
        "search/best": 1.0,
    }


DYING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import synaptune.study.callbacks.wandb_search as module_search
import synaptune.training.loggers.wandb_run as module_run
from helpers import wandb_search
for module in (module_search, module_run):
    module.UPLOAD_SECONDS = module.MARGIN_SECONDS = 1.0
wandb_search.log_run = lambda study, trial: None
search = wandb_search.continue_search
def wait_and_search(*arguments):
    print("open", flush=True)
    input()
    search(*arguments)
    print("searched", flush=True)
wandb_search.continue_search = wait_and_search
wandb_search.main(Path(sys.argv[2]), "dying", 1, "end")
print("ended", flush=True)
"""


@pytest.mark.slow
def test_a_lost_server_stops_no_search_and_delays_no_exit(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    with run_server() as server:
        process = subprocess.Popen(
            [sys.executable, "-c", DYING, str(TESTS), str(tmp_path)],
            env=clean | server.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
    out, errors = process.communicate("\n", timeout=300)
    assert (process.returncode, out) == (0, "searched\nended\n"), errors
    assert errors.count("wandb: offline (the upload did not end") == 1
    (folder,) = tmp_path.glob("controller/wandb/run-*-*")
    assert (folder / OPEN_MARKER).exists()  # marks the run for `wandb sync`


def test_a_new_study_with_an_old_name_has_other_run_ids(tmp_path):
    run_ids = []
    for folder in ("old", "new"):
        with Study(
            StudyLocation(
                "same", tmp_path / folder, f"sqlite:///{tmp_path / folder}/study.db", "auto"
            ),
            {},
        ) as study:
            run_ids.append(make_run_id("same", get_study_identity(study), "controller"))
            assert get_study_identity(study) == get_study_identity(study)
    assert run_ids[0] != run_ids[1]


def test_a_history_file_keeps_the_rows_of_its_run_and_drops_a_torn_line(tmp_path):
    path, writer = (
        tmp_path / "logged.jsonl",
        open_run(LoggerConfig(wandb="offline"), tmp_path, name="log", flat_config={}),
    )
    assert writer is not None
    history = HistoryFile(path, "first")
    for number in range(3):
        history.log(writer, {"best": number}, {"trial": number})
    path.write_text(path.read_text()[:-5])
    reopened = HistoryFile(path, "first")
    assert [row["trial"] for row in reopened.rows] == [0, 1]
    reopened.log(writer, {"best": 2}, {"trial": 2})
    writer.close(0)
    assert [(row["trial"], row["logged"]) for row in HistoryFile(path, "first").rows] == [
        (number, {"best": number}) for number in range(3)
    ]
    assert HistoryFile(path, "second").rows == []
    assert HistoryFile(path, "first").rows == []


def test_without_wandb_there_is_no_run_and_no_report_is_attached(tmp_path, monkeypatch):
    with Study(
        StudyLocation("off", tmp_path, f"sqlite:///{tmp_path}/study.db", "auto"), {}
    ) as study:
        assert (
            open_search_run(LoggerConfig(wandb="off"), study, names={"search": ()}, flat_config={})
            == []
        )
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert open_search_run(LoggerConfig(), study, names={"search": ()}, flat_config={}) == []
        with pytest.raises(UserError, match="without wandb"):
            open_search_run(
                LoggerConfig(wandb="online"), study, names={"search": ()}, flat_config={}
            )
    assert read_run_config(tmp_path) is None
