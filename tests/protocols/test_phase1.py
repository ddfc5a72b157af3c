"""The whole protocol as a user runs it, at smoke scale: killed, continued, shown again, its result
used.
"""

import json
import signal
import time
from collections import Counter

import optuna
import pytest
import yaml

from helpers import processes
from helpers.paths import ROOT
from synaptune.protocols.phase1 import build_space, compose_phase1, plan_runs, read_config

# Seed 1 solves Rosenbrock's function at the first attempt.
WORDS = [
    "protocol.budget=4",
    "protocol.seeds=2",
    "scale=smoke",
    "training.steps=12",
    "seed=1",
    "logger.wandb=off",
]
WORDS += ["workers.count=1"]


def command(*words):
    return ["-m", "synaptune.cli.main", "phase1", *words]


def run(folder, *words):
    return processes.run(command(*words), folder)


def stored(folder):
    return optuna.load_study(
        study_name="phase1", storage=f"sqlite:///{folder}/outputs/studies/phase1/study.db"
    ).trials


def interrupt_at(folder, number, how, *, fresh=False):
    """Start the protocol and end it when the run of a trial begins."""
    process = processes.start(command(*WORDS), folder, fresh=fresh)
    begun = time.monotonic()
    while not (folder / f"outputs/studies/phase1/trials/{number}").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - begun < 900
        time.sleep(0.01)
    process.send_signal(how)
    return process.communicate(timeout=900)[1], process.returncode


def test_a_protocol_interrupted_twice_ends_with_one_verdict_and_redoes_nothing(tmp_path):
    """Killed in the screening, interrupted in the search, killed in the ablation."""
    interrupt_at(tmp_path, 15, signal.SIGKILL, fresh=True)
    early = [
        (trial.params, trial.value, trial.datetime_complete) for trial in stored(tmp_path)[:15]
    ]
    stderr, code = interrupt_at(tmp_path, 24, signal.SIGINT)
    assert (code, "Traceback" in stderr) == (130, False)
    interrupt_at(tmp_path, 31, signal.SIGKILL)
    validated = json.loads((tmp_path / "outputs/studies/phase1/summary.json").read_text())
    ended = run(tmp_path, *WORDS)
    assert ended.returncode == 0, ended.stderr
    trials = stored(tmp_path)
    assert [(trial.params, trial.value, trial.datetime_complete) for trial in trials[:15]] == early
    assert all(trial.state.name == "COMPLETE" for trial in trials)
    phases = [trial.user_attrs["phase"] for trial in trials]
    assert phases == (
        ["sanity"] * 13
        + ["screen"] * 8
        + ["baseline"]
        + ["search"] * 4
        + ["validation"] * 4
        + ["ablation"] * 4
    )
    composed = compose_phase1(
        ["scale=smoke", "protocol.budget=4", "protocol.seeds=2", "training.steps=12"]
    )
    planned = plan_runs(read_config(composed), composed.base, build_space(composed))
    made = Counter(
        trial.user_attrs["phase"] for trial in trials if "copied_from" not in trial.user_attrs
    )
    folder = tmp_path / "outputs/studies/phase1"
    portraits = list((folder / "portraits").iterdir())
    assert made | {"inspection": len(portraits)} == {stage.name: stage.runs for stage in planned}
    assert [trial.user_attrs["seed"] for trial in trials[26:]] == [1001, 1001, 1002, 1002] * 2
    assert all(trial.user_attrs["copied_from"] == 0 for trial in trials[21:23])
    summary = json.loads((folder / "summary.json").read_text())
    expected = {
        "study",
        "evaluations",
        "failed",
        "baseline",
        "best",
        "improvement",
        "decision",
        "parameters",
        "data_fingerprint",
        "seconds",
    }
    assert expected <= set(summary)
    assert (summary["evaluations"], summary["failed"]) == (4, 0)
    assert summary["improvement"] == validated["improvement"]
    assert (len(summary["ablation"]), validated["ablation"]) == (2, [])
    assert all(row["reverted"]["count"] == 2 for row in summary["ablation"])
    assert all(row["alone"] is None for row in summary["ablation"])
    assert "Ablation of the optimum" in ended.stdout
    screened = yaml.safe_load((folder / "screened.yaml").read_text())["parameters"]
    assert 3 <= len(screened) <= 10
    assert sorted(screened) == sorted(summary["parameters"])
    assert all(len(trial.params) == 48 for trial in trials[:21])
    assert all(sorted(trial.params) == sorted(screened) for trial in trials[21:])
    paired = [trial.user_attrs["seed"] for trial in trials[13:21]]
    assert paired == [seed for seed in range(6001, 6005) for _ in range(2)]
    best = yaml.safe_load((folder / "best.yaml").read_text())["parameters"]
    assert best == {name: pair["best"] for name, pair in summary["parameters"].items()}
    page = (folder / "report/report.html").read_text()
    assert "What matters" in page
    assert f"Decision: {summary['decision']}" in page
    again = run(tmp_path, *WORDS, "protocol.report=false")
    assert "Verdict of study phase1" in again.stdout
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert (
        "sanity: a check failed, continuing (steps:" in again.stdout
    )  # 12 steps only try the commands
    gated = run(tmp_path, *WORDS, "protocol.go_on=false")
    assert gated.returncode == 2
    assert "expected: sanity checks that pass" in gated.stderr
    other = run(tmp_path, *WORDS, "training.steps=30")
    assert other.returncode == 2
    assert "training.steps: the study has 12, this command 30" in other.stderr


@pytest.mark.slow
def test_a_search_that_stops_early_goes_on_to_the_verdict_and_stays_stopped(tmp_path):
    words = [
        *WORDS,
        "search_space.parameters=[synapse.calcium.tau_c]",
        "protocol.optimizer=cma",  # its first generation has other points than the start
        "stop.target=100",
        "protocol.budget=8",
        "protocol.report=false",
    ]
    for _ in range(2):
        ended = run(tmp_path, *words)
        assert ended.returncode == 0, ended.stderr
        assert "search: stopped at objective" in ended.stdout
        assert "Verdict of study phase1" in ended.stdout
        phases = [trial.user_attrs["phase"] for trial in stored(tmp_path)]
        assert 0 < phases.count("search") < 8
        assert phases.count("validation") == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["protocol.budget=0"], "budget=0"),
        (["protocol.seeds=1"], "protocol.seeds=1"),
        (["scale=smoke", "stop.money=5"], "stop.price"),
        (["search_space=screened", "protocol.screen=false"], "protocol.screen=false"),
        (["protocol.screen_runs=2", "protocol.screen_fraction=0"], "protocol.screen_runs=2"),
        (["scale=smoke", "training.stepz=3"], "training.steps"),
        (["scale=smoke", "model.experts=1", "search_space=phase1"], "model.experts is 1"),
        (["scale=smoke", "data=text", "data.path=nosuch.txt"], "nosuch.txt"),
    ],
)
def test_a_mistake_is_refused_without_a_traceback(tmp_path, words, said):
    ended = run(tmp_path, *words)
    assert ended.returncode == 2
    assert said in ended.stderr
    assert "to do" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_phase_1_space_lists_the_parameters_declared_for_it():

    from synaptune.synapse.circuit import SPECS

    listed = yaml.safe_load((ROOT / "conf/search_space/phase1.yaml").read_text())["parameters"]
    assert sorted(listed) == sorted(spec.name for spec in SPECS if spec.phase == 1)
