"""Searches of the other systems killed with SIGKILL: the same command gives the same end."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from helpers import processes
from helpers.paths import ROOT

ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
SHORT = ["training.steps=6", "training.evaluations=1", "logger=csv", "workers=here"]
DENDRITIC = [
    *("-m", "synaptune.cli.main", "dendritic", "experiment=dendritic-quick"),
    *("protocol.architectures=[dendritic_simple,dense]", "protocol.budget=2", "protocol.seeds=2"),
    *SHORT,
]
SEARCHER = f"""
from synaptune import HyperparameterSearcher
searcher = HyperparameterSearcher(
    "digits", max_params=1500, lr=1e-2, verbose=False, overrides={SHORT!r}
)
searcher.random_search({{"n_neurons": (4, 40), "n_dendrites": [4, 6]}}, n_trials=4)
searcher.save_results("results.json")
"""


def run_undisturbed(command: list[str], folder: Path) -> str:
    folder.mkdir()
    done = processes.run(command, folder, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_with_kills(command: list[str], folder: Path, places: list[str]) -> str:
    """Kill the command when the folder of each trial exists, then run it to its end."""
    folder.mkdir()
    for place in places:
        path = folder / "outputs/studies" / place
        processes.kill_when(command, folder, path.exists, env=ENVIRONMENT)
    done = processes.run(command, folder, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return done.stdout


def read_trials(folder: Path, name: str) -> list[tuple]:
    url = f"sqlite:///{folder}/outputs/studies/{name}/study.db"
    trials = optuna.load_study(study_name=name, storage=url).trials
    return [(trial.number, trial.params, trial.value, trial.state.name) for trial in trials]


@pytest.mark.slow
def test_a_killed_dendritic_protocol_ends_with_the_same_table(tmp_path):
    run_undisturbed(DENDRITIC, tmp_path / "whole")
    # Within a search, and within the test runs of the next architecture.
    places = ["dendritic-simple/trials/1", "dense/trials/3"]
    places = [f"dendritic-quick-{place}" for place in places]
    run_with_kills(DENDRITIC, tmp_path / "killed", places)
    tables = [
        json.loads((tmp_path / side / "outputs/studies/dendritic-quick.json").read_text())
        for side in ("whole", "killed")
    ]
    assert tables[0] == tables[1]
    assert [entry["trained"] for entry in tables[0]["results"]] == [2, 2]
    for name in ("dendritic-quick-dendritic-simple", "dendritic-quick-dense"):
        rows = [read_trials(tmp_path / side, name) for side in ("whole", "killed")]
        assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_killed_searcher_ends_with_the_same_results(tmp_path):
    command = ["-c", SEARCHER]
    run_undisturbed(command, tmp_path / "whole")
    run_with_kills(command, tmp_path / "killed", ["dendritic-digits-random/trials/2"])
    results = []
    for side in ("whole", "killed"):
        content = json.loads((tmp_path / side / "results.json").read_text())
        for entry in (content["best"], *content["results"]):
            del entry["train_time"]
        results.append(content)
    assert results[0] == results[1]
    assert results[0]["skipped"] > 0


@pytest.fixture
def start(tmp_path) -> Path:
    """A checkpoint of recall."""
    folder = tmp_path / "start"
    words = [
        *("experiment=recall", "scale=smoke", "model=gpt", "training.steps=8", "logger=csv"),
        *("data.recall_keys=4", "data.recall_queries=8", f"hydra.run.dir={folder}"),
    ]
    done = processes.run([str(ROOT / "train.py"), *words], tmp_path, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_a_killed_focused_sweep_gives_the_same_answers(start, tmp_path):
    command = [
        *("-m", "synaptune.cli.main", "focused", f"policy.start={start}", "logger=csv"),
        *("protocol.budget=2", "protocol.focused_budget=2", "protocol.threshold=-1.0"),
        *("training.steps=4", "training.evaluations=2", "policy.evaluation_prompts=8"),
        "workers=here",
    ]
    places = ["policy-sweep/trials/1", "policy-focused/trials/1"]
    said = [
        run_undisturbed(command, tmp_path / "whole"),
        run_with_kills(command, tmp_path / "killed", places),
    ]
    ends = [text[text.index("policy training: both sweeps") :] for text in said]
    assert ends[0] == ends[1]
    assert "Batch 8 still best?" in ends[0]
    for name in ("policy-sweep", "policy-focused"):
        rows = [read_trials(tmp_path / side, name) for side in ("whole", "killed")]
        assert rows[0] == rows[1]
        assert [row[3] for row in rows[0]] == ["COMPLETE"] * 2
