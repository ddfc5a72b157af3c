"""Searches of dendritic networks under a budget: from Python, as a sweep and as a protocol."""

from __future__ import annotations

import json

import pytest

from helpers import processes
from helpers.paths import ROOT
from synaptune import HyperparameterSearcher
from synaptune.analysis.compare import compute_interval
from synaptune.analysis.evidence import gather_evidence
from synaptune.config.compose import compose_config
from synaptune.core.errors import UserError
from synaptune.protocols.dendritic import run_architectures
from synaptune.report.findings import make_verdict
from synaptune.report.page import render_html
from synaptune.study.reader import find_study
from synaptune.training.population_fit import fit_population

SHORT = ["training.steps=6", "training.evaluations=1", "logger=csv", "workers=here"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_searcher(**settings) -> HyperparameterSearcher:
    settings = {"max_params": 1500, "lr": 1e-2, "verbose": False, "overrides": SHORT} | settings
    return HyperparameterSearcher("digits", **settings)


@pytest.mark.slow
def test_a_grid_trains_what_fits_counts_the_rest_and_continues(folder):
    searcher = make_searcher()
    grid = {"n_neurons": [4, 8, 200], "lr": [1e-2, 2e-2]}
    results = searcher.grid_search(grid)
    assert [tuple(result.params.values()) for result in results] == [
        (4, 0.01),
        (4, 0.02),
        (8, 0.01),
        (8, 0.02),
    ]
    assert searcher.skipped == 2
    assert all(result.total_params <= 1500 for result in results)
    assert all(result.test_accuracy is None for result in results)
    (best,) = searcher.get_best_results(1)
    assert best.test_accuracy is not None
    assert best.val_accuracy == max(result.val_accuracy for result in results)
    searcher.save_results("results.json")
    saved = json.loads((folder / "results.json").read_text())
    assert saved["best"]["params"] == best.params
    assert sum(entry["test_accuracy"] is not None for entry in saved["results"]) == 1
    study = find_study("dendritic-digits-grid")
    assert (study.maximize, len(study.search_trials)) == (True, 6)
    assert [trial.state for trial in study.search_trials].count("failed") == 2
    again = make_searcher().grid_search(grid)
    assert again == results  # the study is read, nothing is trained again


def test_a_sample_of_a_grid_is_seeded(folder):
    grid = {"n_neurons": list(range(2, 10)), "n_dendrites": [2, 3]}
    points = [
        [result.params for result in make_searcher(study_name=name, seed=seed).grid_search(grid, 2)]
        for name, seed in (("a", 0), ("b", 1))
    ]
    assert points[0] != points[1]
    assert [len(part) for part in points] == [2, 2]
    assert points[0] != [{"n_neurons": 2, "n_dendrites": value} for value in (2, 3)]


def test_a_random_search_goes_on_until_enough_candidates_fit(folder):
    searcher = make_searcher()
    results = searcher.random_search(
        {
            "n_neurons": (4, 40),
            "lr": {"type": "loguniform", "low": 1e-3, "high": 1e-1},
            "n_dendrites": {"type": "randint", "low": 5, "high": 7},
            "architecture": ["dendritic_simple"],
        },
        n_trials=2,
    )
    assert len(results) == 2
    assert searcher.skipped >= 1
    assert all(result.params["n_dendrites"] in (5, 6) for result in results)
    assert all(isinstance(result.params["n_neurons"], int) for result in results)


@pytest.mark.parametrize("kind", ["grid", "random"])
def test_a_budget_that_nothing_fits_names_the_smallest(folder, kind):
    searcher = make_searcher(max_params=100)
    searches = {
        "grid": lambda: searcher.grid_search({"n_neurons": [4, 2], "n_dendrites": [6, 7]}),
        "random": lambda: searcher.random_search({"n_neurons": [2]}, n_trials=1),
    }
    with pytest.raises(UserError, match="smallest has 248 trainable parameters"):
        searches[kind]()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_classes": 7}, "n_classes=7"),
        ({"batch_size": 0}, "training.batch=0"),
        ({"architecture": "ring"}, "network.architecture=ring"),
    ],
)
def test_a_searcher_that_cannot_run_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        make_searcher(**settings)


def test_a_name_that_is_no_setting_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="closest: n_neurons"):
        make_searcher().grid_search({"n_neuron": [1]})
    with pytest.raises(UserError, match="dataset='fashion'"):
        HyperparameterSearcher("fashion")


def test_the_protocol_pairs_architectures_by_seed_and_continues(folder, capsys):
    words = [
        *("experiment=dendritic-quick", "protocol.architectures=[dendritic_simple,dense]"),
        *("protocol.budget=2", "protocol.refine=1", "protocol.seeds=2", *SHORT),
        *("workers=population", "workers.count=4"),
    ]
    simple, dense = run_architectures(words)
    assert (simple.trained, simple.skipped) == (3, 0)
    assert max(simple.parameters, dense.parameters) <= 2000 < 1.1 * dense.parameters
    assert (len(simple.accuracies), len(simple.without), len(dense.without)) == (2, 2, 0)
    said = capsys.readouterr().out
    assert "against dense" in said
    assert "at most 2,000 parameters" in said
    assert run_architectures(words) == [simple, dense]
    evidence = gather_evidence(find_study("dendritic-quick-dendritic-simple"), deep=False)
    assert evidence.test_accuracies == simple.accuracies
    assert evidence.phase == "refine"
    assert "% test accuracy" in make_verdict(evidence).headline
    table = json.loads((folder / "outputs/studies/dendritic-quick.json").read_text())
    assert table["results"][1]["accuracies"] == list(dense.accuracies)


def test_a_search_of_populations_has_the_results_of_single_runs(folder, monkeypatch):
    sizes = []

    def train(jobs, starts):
        sizes.append(len(jobs))
        return fit_population(jobs, starts)

    monkeypatch.setattr("synaptune.training.population_fit.fit_population", train)
    grid = {"n_neurons": [4, 200, 8], "lr": [1e-2, 2e-2]}
    together = ("workers.kind=population", "workers.count=3")
    results = [
        make_searcher(study_name=name, overrides=[*SHORT, *words]).grid_search(grid)
        for name, words in (("single", ()), ("together", together))
    ]
    assert sizes == [2, 2]  # of three candidates started together, one is over the budget
    for one, other in zip(*results, strict=True):
        assert (one.params, one.total_params) == (other.params, other.total_params)
        assert other.val_accuracy == pytest.approx(one.val_accuracy, abs=0.006)
        assert other.train_accuracy == pytest.approx(one.train_accuracy, abs=0.003)
    again = make_searcher(study_name="together", overrides=[*SHORT, *together]).grid_search(grid)
    assert again == results[1]


@pytest.mark.slow
def test_a_sweep_maximizes_the_accuracy_and_its_report_says_so(folder):
    done = processes.run(
        [
            *(str(ROOT / "train.py"), "-m", "hydra/sweeper=random", "experiment=dendritic-budget"),
            *("hydra.sweeper.optim.budget=3", "study.name=sweep", *SHORT),
        ],
        folder,
    )
    assert done.returncode == 0, done.stderr
    study = find_study("sweep")
    best = max(trial.objective or 0.0 for trial in study.search_trials)
    assert f"best {best:.6g} in trial" in done.stdout
    assert "network.n_neurons" not in study.search_trials[0].values
    page = render_html(gather_evidence(study))
    assert "validation accuracy" in page
    assert "nats/token" not in page


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["experiment=dendritic-budget", "data=mnist", "data.path=nowhere"], "data.path"),
        (["experiment=policy-sweep", "policy.start=nowhere"], "policy.start"),
    ],
)
def test_a_search_without_its_files_runs_no_trial(folder, words, name):
    done = processes.run(
        [
            *(str(ROOT / "train.py"), "-m", "hydra/sweeper=random", "logger=csv"),
            *("hydra.sweeper.optim.budget=3", "study.name=sweep", *words),
        ],
        folder,
    )
    assert done.returncode == 2
    assert f"got {name}=nowhere, which does not exist" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "outputs/studies/sweep/study.db").exists()


def test_a_sweep_that_nothing_fits_ends_without_a_traceback(folder):
    done = processes.run(
        [
            *(str(ROOT / "train.py"), "-m", "hydra/sweeper=random", "experiment=dendritic-budget"),
            *("hydra.sweeper.optim.budget=2", "budget.max_params=50", *SHORT),
        ],
        folder,
    )
    assert done.returncode == 2
    assert "got 2 candidates, each over budget.max_params; the smallest has 126" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interval_is_that_of_student():
    mean, low, high = compute_interval([1.0, 2.0, 3.0])
    assert (mean, low) == (2.0, pytest.approx(-0.4841, abs=1e-4))
    assert high - mean == pytest.approx(mean - low)


@pytest.mark.parametrize("words", [["model=dendritic"], ["objective=policy", "policy.start=x.pt"]])
def test_a_protocol_about_perplexity_refuses_other_systems(words):
    with pytest.raises(UserError, match="whose test perplexity"):
        compose_config(words, protocol="phase1")
