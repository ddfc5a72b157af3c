"""The search benchmark: its problems are what it says, and it runs."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from helpers.paths import ROOT

FILE = ROOT / "benchmarks" / "bench_search.py"
_spec = importlib.util.spec_from_file_location("bench_search", FILE)
bench = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(bench)


@pytest.mark.parametrize("name", bench.PROBLEMS)
def test_a_problem_has_its_minimum_zero_off_the_centre(name):
    given = bench.make_problem(name, dimension=6, seed=3)
    stream = np.random.default_rng([3, 6])
    optimum = 0.5 + stream.choice([-1.0, 1.0], 6) * stream.uniform(0.15, 0.35, 6)
    assert given.true(optimum) == pytest.approx(0.0, abs=1e-9)
    assert all(given.true(point) > 1e-3 for point in np.random.default_rng(0).random((50, 6)))
    assert (given.noise > 0) == (name == "noisy")


def test_the_best_by_observation_is_reported_by_its_true_value(monkeypatch):
    class Two:
        def ask(self):
            return [np.full(6, 0.2), np.full(6, 0.8)]

        def tell(self, points, losses):
            assert losses != [given.true(point) for point in points]

    given = bench.make_problem("noisy", dimension=6, seed=0)
    monkeypatch.setattr(bench, "make_contestant", lambda name, **_: Two())
    assert bench.Case("cma", "noisy", 6, 2, 0).run() in {
        given.true(np.full(6, 0.2)),
        given.true(np.full(6, 0.8)),
    }


@pytest.mark.slow
def test_it_prints_its_tables_and_runs_nothing_twice(tmp_path):
    words = [
        "--dimensions",
        "4",
        "--evaluations",
        "30",
        "--seeds",
        "3",
        "--optimizers",
        "cma",
        "pycma",
        "random",
        "--keep",
    ]
    runs = [
        subprocess.run(
            [sys.executable, str(FILE), *words, str(tmp_path / "kept")],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1]
    assert "| `cma` (3 seeds) |" in runs[0]
    assert "| noisy, 4-D |" in runs[0]
    assert len((tmp_path / "kept").read_text().splitlines()) == 45
