"""The benchmark at small budgets: its problems are what it says, and a run is judged truly."""

import importlib.util
import sys

import numpy as np
import pytest

from helpers.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))  # bench_search, which it imports
try:
    _spec = importlib.util.spec_from_file_location(
        "bench_budget", ROOT / "benchmarks" / "bench_budget.py"
    )
    bench = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(bench)
finally:
    sys.path.pop(0)


@pytest.mark.parametrize("name", [name for name in bench.PROBLEMS if name not in bench.REAL])
def test_no_point_is_below_the_minimum_and_only_so_many_coordinates_matter(name):
    problem = bench.make_problem(name, 3)
    points = np.random.default_rng(0).random((60, len(problem.start)))
    assert all(problem.true(point) >= 0.0 for point in points)
    matter = sum(
        problem.true(np.where(np.arange(len(points[0])) == axis, moved, points[0]))
        != problem.true(points[0])
        for axis, moved in enumerate(1.0 - points[0])
    )
    kind, size = name.split("-")
    most = {"one": 1, "all": int(size)}.get(kind, 3)
    assert most - (kind == "integers") <= matter <= most


def test_a_run_is_judged_at_each_budget_by_the_true_loss():
    rows = bench.Case("random", "three-10", 300, 0).run()
    regrets = rows["random"]
    assert list(regrets) == [20, 40, 80, 160, 300]
    assert all(0.0 <= regret < 0.21 for regret in regrets.values())
    assert bench.Case("random", "three-10", 300, 0).run() == rows


def test_auto_is_judged_by_each_rule_on_the_same_points():
    rows = bench.Case("auto", "noisy-10", 160, 0).run()
    assert list(rows) == ["auto", "auto, observed", "auto, mean"]
    assert all(list(regrets) == [20, 40, 80, 160] for regrets in rows.values())
    assert rows["auto, observed"] != rows["auto, mean"]


@pytest.mark.parametrize("text", ["stdlib", "tinyshakespeare"])
def test_the_trials_of_the_strategies_begin_with_the_defaults_and_hold_better_points(
    text, monkeypatch
):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    losses, units = bench.read_trials(f"strategies-{text}")
    assert units.shape == (len(losses), 10)
    assert len(losses) == 717
    assert ((units >= 0.0) & (units <= 1.0)).all()
    assert losses.min() < losses[0] - 0.05


def test_a_model_of_a_real_study_has_its_noise_and_its_start():
    problem = bench.make_problem("real-forest", 0)
    assert problem.true(np.array(problem.start)) - problem.minimum > 0.1
    assert len(problem.start) == 10
