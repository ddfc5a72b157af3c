"""Strategies on the real objective: what a search recommends, and that the benchmark continues."""

from __future__ import annotations

import importlib
import json
import sys

import pytest

from helpers.paths import ROOT


@pytest.fixture
def strategies(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # for the processes that train, too
    return importlib.import_module("bench_strategies")


def test_a_search_recommends_from_its_first_trials_only(strategies):
    losses = [3.0, 1.0, None, 0.5]
    trials = [strategies.Observation((number / 10,), loss) for number, loss in enumerate(losses)]
    search = strategies.Search("random", 0, None, trials)
    assert search.rank(3, "observed") == [(0.1,), (0.0,)]
    assert search.rank(4, "observed")[0] == (0.3,)


@pytest.mark.slow
def test_the_benchmark_writes_a_table_for_each_budget_and_continues(
    strategies, tmp_path, monkeypatch, capsys
):
    words = ["bench_strategies", "--seeds", "1", "--budgets", "2,4", "--workers", "1"]
    words += ["--folder", str(tmp_path), "scale=smoke", "data.max_bytes=60_000", "training.steps=3"]
    monkeypatch.setattr(sys, "argv", words)
    assert strategies.main() == 0, capsys.readouterr().err
    tables = json.loads((tmp_path / "strategies.json").read_text())
    assert set(tables) == {"2", "4"}
    assert set(tables["4"]) == {"defaults", *strategies.ROWS}
    stored = json.loads((tmp_path / "runs.json").read_text()).values()
    incumbents = [run for run in stored if run["label"].endswith("incumbent")]
    assert {run["overrides"][-1] for run in incumbents} == {"seed=1", "seed=2", "seed=3"}
    assert (tmp_path / "strategies.md").read_text().count("| cma-start") == 2
    runs = (tmp_path / "runs.json").read_bytes()
    assert strategies.main() == 0
    assert (tmp_path / "runs.json").read_bytes() == runs
