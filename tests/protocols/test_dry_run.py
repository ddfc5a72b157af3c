"""A dry run says what a search takes, and starts nothing of it."""

import json

import pytest

from helpers import phase1_study, processes
from helpers.paths import ROOT
from synaptune.analysis.cost import PlannedRuns
from synaptune.cli.main import main
from synaptune.protocols.estimate import RunMeasure, SecondsRange, _estimate_bytes, add_search_runs
from synaptune.search.config import SearchConfig


@pytest.mark.parametrize(
    ("words", "runs"),
    [
        # 13 sanity, 8 screening, 19 search, 4 validation, 4 ablation, 2 inspections
        (["--dry-run", "protocol.budget=20"], 13 + 8 + 19 + 4 + 4 + 2),
        # 13 sanity, 19 search (its first point is a sanity run), 4 validation, 2 inspections; a
        # second search of 20 with its 4
        (
            [
                *("--dry-run", "protocol.budget=20", "protocol.screen=false"),
                *("protocol.ablation=false", "protocol.repeats=2"),
            ],
            13 + 19 + 4 + 2 + 20 + 4,
        ),
        # each evaluation on two seeds, two incumbents on three more seeds, no inspection
        (
            [
                *("search.dry_run=true", "protocol.budget=11", "protocol.report=false"),
                "search_space=phase1",
                *("search.seeds=2", "search.incumbents=2"),
            ],
            13 + 2 * 10 + 4 + 4 + 2 * 3,
        ),
    ],
)
def test_a_protocol_says_runs_minutes_and_disk(words, runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    quick = [*phase1_study.QUICK, "protocol.seeds=2"]
    assert main(["phase1", *quick, *words, "--json"]) == 0
    captured = capsys.readouterr()
    estimate = json.loads(captured.out)
    assert (estimate["dry_run"], estimate["runs"]) == (True, runs)
    assert estimate["minutes"] == pytest.approx(
        60 * sum(stage["wall_hours"] for stage in estimate["stages"])
    )
    assert estimate["disk_bytes"] > 10_000
    assert f"dry run: {runs} runs, " in captured.err
    assert "measured: step" in captured.err  # what the minutes stand on
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("protocol", ["dendritic", "focused"])
def test_the_dry_run_of_a_search_is_that_of_every_protocol(protocol, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([protocol, "search.dry_run=true"]) == 0
    captured = capsys.readouterr()
    assert "nothing was started" in captured.out + captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_sweep_says_it_and_then_takes_the_seconds_of_its_own_trials(tmp_path):
    words = ["-m", *phase1_study.QUICK, "hydra/sweeper=random", "hydra.sweeper.optim.budget=3"]
    dry = [str(ROOT / "train.py"), *words, "search.dry_run=true"]
    first = processes.run(dry, tmp_path)
    assert first.returncode == 0, first.stderr
    assert "dry run: 3 runs, " in first.stdout
    assert "measured: step" in first.stdout
    assert list(tmp_path.iterdir()) == []
    done = processes.run([str(ROOT / "train.py"), *words], tmp_path)
    assert done.returncode == 0, done.stderr
    again = processes.run(dry, tmp_path)
    assert "of the complete runs of study phase1-random" in again.stdout
    assert "the study has 3 ended trials" in again.stdout


def test_the_disk_counts_the_checkpoints_that_are_kept():
    plan = [PlannedRuns("search", 10), PlannedRuns("validation", 2)]
    measure = RunMeasure(lambda _: SecondsRange(1.0), None, [], 100.0, 1000.0)
    assert _estimate_bytes(plan, measure, None) == 12 * 100 + 12 * 1000
    assert _estimate_bytes(plan, measure, 3) == 12 * 100 + 5 * 1000
    assert add_search_runs(plan, SearchConfig(seeds=3, incumbents=2)) == [
        PlannedRuns("search", 30),
        PlannedRuns("validation", 2),
        PlannedRuns("incumbents", 6),
    ]
