"""Objectives, pruners, seeds and warm starts as a user chooses them on the command line, in real
runs at smoke scale.
"""

import json
import math
import time

import optuna
import pytest
import yaml

from helpers import processes
from helpers.paths import ROOT

QUICK = ["scale=smoke", "logger=csv", "logger.progress=off"]
HERE = "workers.count=1"  # no process of its own to start for runs of a second
FEW_SANITY_RUNS = [f"protocol.sanity.{key}" for key in ("seeds=2", "candidates=2", "repeats=1")]


def protocol(folder, *words, study="s", budget=12, steps=12):
    command = [
        "-m",
        "synaptune.cli.main",
        "phase1",
        f"study.name={study}",
        f"protocol.budget={budget}",
        "protocol.seeds=2",
        "protocol.report=false",
        "protocol.screen=false",
        *FEW_SANITY_RUNS,
        *QUICK,
        f"training.steps={steps}",
        "seed=1",
    ]
    place = [] if any(word.startswith("workers.") for word in words) else [HERE]
    done = processes.run([*command, *place, *words], folder)
    assert done.returncode == 0, done.stderr
    return load(folder, study), json.loads(
        (folder / f"outputs/studies/{study}/summary.json").read_text()
    )


def load(folder, study):
    return optuna.load_study(
        study_name=study, storage=f"sqlite:///{folder}/outputs/studies/{study}/study.db"
    ).trials


def of_phase(trials, phase):
    return [trial for trial in trials if trial.user_attrs["phase"] == phase]


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["composite", "pareto"])
def test_an_objective_of_shares_measures_its_baseline_first_and_the_claim_stays_perplexity(
    tmp_path, objective
):
    trials, summary = protocol(tmp_path, f"objective={objective}", budget=5)
    (reference,) = of_phase(trials, "reference")
    assert reference.number == 0
    assert reference.value == reference.user_attrs["val_loss"]
    defaults = of_phase(trials, "search")[0]
    assert defaults.value == pytest.approx(
        {"composite": sum([1.0, 0.2, 0.2]), "pareto": 0.0}[objective], abs=0.6
    )
    for trial in of_phase(trials, "validation"):
        assert trial.value == trial.user_attrs["val_loss"]
    if objective == "pareto":
        numbers = {point["trial"] for point in summary["pareto"]["front"]}
        search = {trial.number: trial.user_attrs for trial in of_phase(trials, "search")}
        fastest = max(search, key=lambda number: search[number]["tokens_per_second"])
        sharpest = min(search, key=lambda number: search[number]["val_perplexity"])
        assert {fastest, sharpest} <= numbers <= set(search)
        assert (
            summary["pareto"]["hypervolume"] >= 0.0
        )  # zero where other work slowed every run to half the baseline
    assert all(math.isfinite(value) for value in summary["best"]["test_perplexity"])


@pytest.mark.slow
def test_hybrid_ranks_by_loss_first_and_by_the_composite_at_the_end(tmp_path):
    trials, summary = protocol(
        tmp_path, "objective=hybrid", "objective.switch=1", "protocol.optimizer=cma"
    )
    search = of_phase(trials, "search")
    early = [trial for trial in search if trial.user_attrs["generation"] == 0]
    late = [trial for trial in search if trial.user_attrs["generation"] == 1]
    assert len(early) == 10
    assert len(late) == 2
    assert all(trial.value == trial.user_attrs["val_loss"] for trial in early)
    assert all(trial.value != trial.user_attrs["val_loss"] for trial in late)
    assert summary["best"]["trial"] in {trial.number for trial in search}


@pytest.mark.slow
def test_a_proxy_searches_on_a_part_of_the_steps_and_claims_on_all(tmp_path):
    trials, _ = protocol(tmp_path, "objective=proxy", "objective.fraction=0.5", budget=3, steps=24)
    assert {trial.user_attrs["steps"] for trial in of_phase(trials, "search")} == {12.0}
    assert {trial.user_attrs["steps"] for trial in of_phase(trials, "validation")} == {24.0}


@pytest.mark.slow
def test_a_protocol_on_two_worker_processes_finds_what_one_process_finds(tmp_path):
    def key(trial):
        return trial.user_attrs["phase"], trial.user_attrs["index"]

    one, _ = protocol(tmp_path, "workers.count=1", study="one", budget=4)
    two, _ = protocol(tmp_path, "workers.count=2", study="two", budget=4)
    assert {key(trial): trial.params for trial in one} == {
        key(trial): trial.params for trial in two
    }
    # One process has all threads and sums in another order.
    assert {key(trial): trial.value for trial in one} == pytest.approx(
        {key(trial): trial.value for trial in two}, abs=1e-6
    )


@pytest.mark.slow
def test_incumbents_are_run_again_and_the_best_mean_is_chosen(tmp_path):
    trials, summary = protocol(tmp_path, "search.incumbents=3", budget=5)
    again = of_phase(trials, "incumbents")
    assert {trial.user_attrs["seed"] for trial in again} == {2, 3, 4}
    means = {}
    for trial in again:
        means.setdefault(tuple(trial.params.items()), []).append(trial.value)
    assert len(means) == 3
    best = min(means, key=lambda point: sum(means[point]))
    assert {name: pair["best"] for name, pair in summary["parameters"].items()} == dict(best)


@pytest.mark.slow
def test_several_seeds_are_averaged_and_another_study_can_be_begun_at(tmp_path):
    trials, _ = protocol(tmp_path, "search.seeds=2", study="first", budget=3)
    for trial in of_phase(trials, "search"):
        by_seed = trial.user_attrs["objective_by_seed"]
        assert trial.value == pytest.approx(sum(by_seed) / 2)
        assert by_seed[0] != by_seed[1]
    best = yaml.safe_load((tmp_path / "outputs/studies/first/best.yaml").read_text())["parameters"]
    then, _ = protocol(tmp_path, "search.start=first", study="second", budget=2)
    begun = of_phase(then, "search")[0].params
    assert begun == pytest.approx(best, rel=1e-4)


@pytest.mark.slow
def test_a_sweep_prunes_by_what_its_runs_report(tmp_path):
    words = [
        "-m",
        *QUICK,
        "study.name=s",
        "hydra/sweeper=random",
        "hydra.sweeper.optim.budget=9",
        "pruner=percentile",
        "training.evaluations=8",
    ]
    command = [
        str(ROOT / "train.py"),
        *words,
        "pruner.percentile=10",
        "synapse.calcium.tau_c=interval(0.5,0.99)",
    ]
    done = processes.run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    trials = load(tmp_path, "s")
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert len(complete) + len(pruned) == 9
    assert len(complete) >= 5
    assert pruned
    assert all(len(trial.intermediate_values) == 8 for trial in complete)
    for trial in pruned:
        assert 2 <= len(trial.intermediate_values) < 8
        assert trial.user_attrs["pruned_at"] == max(trial.intermediate_values)
        assert (
            trial.user_attrs["estimate"]
            == trial.user_attrs["val_loss"]
            < trial.user_attrs["pruned_val_loss"] + 0.5
        )


@pytest.mark.slow
def test_phase_2_searches_groups_and_all_from_the_phase_1_optimum_through_a_kill(tmp_path):
    protocol(tmp_path, study="phase1", budget=3)
    words = [
        "protocol.group_budget=3",
        "protocol.gate_seeds=2",
        "protocol.budget=4",
        "protocol.seeds=2",
        "protocol.go_on=true",
        "protocol.report=false",
        *QUICK,
        HERE,
        "training.steps=12",
        "seed=1",
    ]
    command = ["-m", "synaptune.cli.main", "phase2", *words]
    process = processes.start(command, tmp_path)
    while not (tmp_path / "outputs/studies/phase2/trials/9").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = processes.run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    trials = load(tmp_path, "phase2")
    assert all(trial.state.name == "COMPLETE" for trial in trials)
    groups = ("calcium", "vesicles", "postsynaptic", "structural", "energy", "attention")
    assert [len(of_phase(trials, group)) for group in (*groups, "joint")] == [3] * 6 + [4]
    (baseline,) = of_phase(trials, "baseline")
    assert [of_phase(trials, group)[0].user_attrs["copied_from"] for group in groups] == [
        baseline.number
    ] * 6
    numbers = [[trial.number for trial in of_phase(trials, group)] for group in groups]
    assert max(first for first, *_ in numbers) < min(last for *_, last in numbers)  # side by side
    assert len(of_phase(trials, "joint")[0].params) == len(baseline.params) == 48
    best1 = yaml.safe_load((tmp_path / "outputs/studies/phase1/best.yaml").read_text())[
        "parameters"
    ]
    begun = baseline.params
    assert {
        name: value for group in groups for name, value in of_phase(trials, group)[0].params.items()
    } == begun
    assert {name: begun[name] for name in best1} == pytest.approx(best1, rel=1e-4)
    gates = json.loads((tmp_path / "outputs/studies/phase2/gates.json").read_text())["gates"]
    assert [gate["gate"] for gate in gates] == ["phase 1", *groups, "phase 2"]
    judged = [gate["gate"] for gate in gates[1:-1] if "trial" in gate]
    assert len(of_phase(trials, "gates")) == 2 * (1 + len(judged))
    assert judged
    kept = {
        name: value
        for gate in gates
        if gate["decision"] == "winner"
        for name, value in gate["values"].items()
    }
    assert of_phase(trials, "joint")[0].params == pytest.approx(begun | kept, rel=1e-4)


def test_phase_2_without_phase_1_is_refused(tmp_path):
    done = processes.run(["-m", "synaptune.cli.main", "phase2"], tmp_path)
    assert done.returncode == 2
    assert "run make sweep-phase1 first" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_best_points_of_a_study_are_run_on_another_scale(tmp_path):
    protocol(tmp_path, study="phase1", budget=4)
    words = [
        "protocol.top=3",
        "protocol.seeds=2",
        "study.name=longer",
        *QUICK,
        HERE,
        "seed=1",
        "training.steps=30",
    ]
    command = ["-m", "synaptune.cli.main", "transfer", *words]
    done = processes.run(command, tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "outputs/studies/longer/transfer.json").read_text())
    trials = load(tmp_path, "longer")
    search = of_phase(load(tmp_path, "phase1"), "search")
    there = sorted({trial.value for trial in search})[:3]
    assert len(trials) == 2 * (4 - (search[0].value in there))  # the defaults are run once
    assert {trial.user_attrs["steps"] for trial in trials} == {30.0}
    assert -1.0 <= report["rank_correlation"] <= 1.0
    ranked = [point["objective"] for point in report["points"]]
    assert ranked == pytest.approx(there)
