"""Studies of an earlier version are read, reported and refined; a manager continues its own."""

from __future__ import annotations

import json
import sqlite3
import tarfile
from pathlib import Path

import pytest

from helpers import processes
from helpers.paths import ROOT, TESTS
from synaptune import TrialManager
from synaptune.cli.main import main
from synaptune.core.errors import UserError
from synaptune.study.location import StudyLocation
from synaptune.study.reader import find_study
from synaptune.study.study import Study

FIXTURES = TESTS / "fixtures"
NEXT_POINTS = json.loads((FIXTURES / "continued-0.1.0.json").read_text())
TRIALS = {"sweep-cma": 10, "protocol-phase1": 26, "manager-tpe": 12}
WRITER = "0.1.0+ed858fd4cb72"
# What version 0.2.0 changed in the model of the two studies that train it.
CHANGED = {
    "model.distance": "clock",
    "model.fast_weights": "delta",
    "model.memory_tick": 4,
    "search.space.synapse.attention.barrier_strength": "log [0.01, 128]",
    "synapse.postsynaptic.post_trace_decay": 0.0,
    "synapse.structural.structural_interval": 60,
}
SWEEP = ["-m", "hydra/sweeper=cma", "study.name=sweep-cma", "scale=smoke", "logger=csv"]


@pytest.fixture
def studies(tmp_path, monkeypatch) -> Path:
    """The folder of the three studies, below the working directory of the test."""
    folder = tmp_path / "outputs" / "studies"
    folder.mkdir(parents=True)
    with tarfile.open(FIXTURES / "studies-0.1.0.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    monkeypatch.chdir(tmp_path)
    return folder


def read_stored(folder: Path) -> list[tuple]:
    """Every trial as it is stored: state, times, values and user attributes."""
    query = """SELECT number, state, datetime_start, datetime_complete, value,
        (SELECT group_concat(key || value_json, '') FROM trial_user_attributes AS a
         WHERE a.trial_id = trials.trial_id)
        FROM trials LEFT JOIN trial_values USING (trial_id) ORDER BY number"""
    with sqlite3.connect(folder / "study.db") as database:
        return database.execute(query).fetchall()


def read_units(folder: Path) -> list[list[float]]:
    """The points of all trials by number."""
    return [list(trial.unit) for trial in find_study(str(folder)).trials]


def find_rebuild_note(text: str) -> str:
    """Return the note that the search was rebuilt; skip if another library gives other points."""
    note = next(line for line in text.splitlines() if "optimizer.pkl" in line)
    if "its own points would differ" in note:
        pytest.skip(note)
    return note


def run(folder: Path, *words: str) -> str:
    """Run a program to its end in a folder; return what it printed."""
    done = processes.run(words, folder)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def change_configuration(folder: Path, added=None, left_out=()) -> None:
    """Store another configuration with a study."""
    with sqlite3.connect(folder / "study.db") as database:
        where = "WHERE key = 'configuration'"
        (text,) = database.execute(
            f"SELECT value_json FROM study_user_attributes {where}"
        ).fetchone()
        stored = {key: value for key, value in json.loads(text).items() if key not in left_out}
        database.execute(
            f"UPDATE study_user_attributes SET value_json = ? {where}",
            (json.dumps(stored | (added or {})),),
        )


def objective(parameters: dict) -> float:
    """The objective of the study `manager-tpe`."""
    return (parameters["x"] - 3) ** 2 + parameters["n"] + (parameters["kind"] != "a")


@pytest.mark.parametrize("name", TRIALS)
def test_an_earlier_study_is_read(studies, name):
    record = find_study(name)
    assert len(record.trials) == TRIALS[name]
    assert all(trial.state == "complete" for trial in record.trials)
    assert record.notes["synaptune_version"] == WRITER
    best = min(trial.objective for trial in record.search_trials)
    assert best == pytest.approx({"manager-tpe": 1.2948}.get(name, 3.2378), abs=1e-3)


@pytest.mark.parametrize("name", TRIALS)
def test_an_earlier_study_is_reported_and_refined(studies, name, capsys):
    before = read_stored(studies / name)
    assert main(["report", name]) == 0
    page = (studies / name / "report" / "report.html").read_text()
    assert name in page
    assert (studies / name / "report" / "report.md").exists()
    assert main(["refine", name]) == 0
    assert (studies / name / f"{name}-refined.yaml").exists(), capsys.readouterr().err
    assert read_stored(studies / name) == before


@pytest.mark.parametrize("name", ["sweep-cma", "protocol-phase1"])
def test_a_study_of_the_earlier_model_is_refused_with_its_version_and_left_alone(studies, name):
    command = {
        "sweep-cma": [str(ROOT / "train.py"), *SWEEP, "hydra.sweeper.optim.budget=14"],
        "protocol-phase1": [
            *("-m", "synaptune.cli.main", "phase1", "protocol.budget=8", "protocol.seeds=2"),
            *("protocol.go_on=true", "scale=smoke", "study.name=protocol-phase1", "logger=csv"),
            *("protocol.screen=false", "protocol.optimizer=cma"),  # as that version did
        ],
    }[name]
    before = read_stored(studies / name)
    done = processes.run(command, studies.parents[1])
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert f"created by synaptune {WRITER}; {len(CHANGED)} differ" in said
    assert "model.memory_tick: the study has (absent), this command 4" in said
    assert "Traceback" not in said
    assert read_stored(studies / name) == before


@pytest.mark.slow
def test_a_multirun_continues_with_the_points_of_its_version(studies):
    """As if its model were that of this version."""
    folder = studies / "sweep-cma"
    change_configuration(folder, CHANGED)
    before, points = read_stored(folder), read_units(folder)
    train = str(ROOT / "train.py")
    text = run(studies.parents[1], train, *SWEEP, "hydra.sweeper.optim.budget=14")
    assert "10 finished before" in text
    assert find_rebuild_note(text).endswith("exactly")
    stored = read_stored(folder)
    assert (len(stored), stored[:10]) == (14, before)
    assert read_units(folder) == [*points, *map(pytest.approx, NEXT_POINTS["sweep-cma"])]


def test_a_trial_manager_continues_with_the_points_of_its_version(studies, capsys):
    folder = studies / "manager-tpe"
    before, points = read_stored(folder), read_units(folder)
    manager = TrialManager("manager-tpe", n_trials=16, sampler="tpe")
    manager.optimize(
        objective,
        {"x": ("uniform", 0, 10), "n": ("int", 0, 8), "kind": ("categorical", ["a", "b"])},
    )
    assert find_rebuild_note("".join(capsys.readouterr())).endswith("exactly")
    stored = read_stored(folder)
    assert (len(stored), stored[:12]) == (16, before)
    assert read_units(folder) == [*points, *map(pytest.approx, NEXT_POINTS["manager-tpe"])]


def open_study(studies: Path, *, added=None, left_out=(), **options) -> Study:
    """Open `sweep-cma` with its own configuration, with keys added and left out."""
    folder = studies / "sweep-cma"
    record = find_study("sweep-cma")
    configuration = {
        key: record.configuration[key] for key in record.configuration if key not in left_out
    }
    location = StudyLocation("sweep-cma", folder, f"sqlite:///{folder}/study.db", "must")
    return Study(location, configuration | (added or {}), **options)


def test_a_study_without_a_new_key_is_continued(studies):
    """The study keeps its configuration, so its trials keep one fingerprint."""
    trials = find_study("sweep-cma").trials
    with open_study(studies, added={"model.new": "off"}, defaults={"model.new": "off"}) as study:
        assert study.fingerprint == trials[0].facts["config_fingerprint"]
        assert "model.new" not in study.configuration
    assert len(find_study("sweep-cma").trials) == len(trials)


def test_a_new_key_with_another_value_is_refused_with_the_version_of_the_study(studies):
    with pytest.raises(UserError) as refusal:
        open_study(studies, added={"model.new": "on"}, defaults={"model.new": "off"})
    assert f"created by synaptune {WRITER}; 1 differ" in str(refusal.value)
    assert "model.new: the study has off, this command on" in str(refusal.value)


def test_an_unknown_key_is_refused_with_the_version_of_the_study(studies):
    with pytest.raises(UserError) as refusal:
        open_study(studies, left_out=["model.tick"])
    assert f"created by synaptune {WRITER}; 1 differ" in str(refusal.value)
    assert "model.tick: the study has 16, this command (absent)" in str(refusal.value)


def test_the_command_line_continues_a_study_without_a_new_key(studies):
    """As in the fixture, `pruner.percentile` and `model.top_k` at their defaults taken away."""
    folder = studies / "sweep-cma"
    change_configuration(folder, CHANGED, ["pruner.percentile", "model.top_k"])
    text = run(studies.parents[1], str(ROOT / "train.py"), *SWEEP, "hydra.sweeper.optim.budget=10")
    assert "10 trials finished, 0 failed" in text
