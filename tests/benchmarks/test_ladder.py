"""The ladder: its rungs, its controls, its two comparisons, and that it continues."""

from __future__ import annotations

import importlib
import json
import math
import sys

import pytest

from helpers.paths import ROOT
from synaptune.synapse.circuit import SynapseParams

COMMON = ("logger=csv", "scale=smoke", "data.max_bytes=60_000")
VALUES = {"synapse.attention.barrier_strength": 30.0, "synapse.postsynaptic.post_fast_lr": 0.004}


@pytest.fixture(scope="module")
def ladder():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("ladder")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def rungs(ladder):
    found = [("barrier", 16.0, 2.5), ("learned", 32.0, 2.4), ("clock", 8.0, 2.3)]
    return ladder.make_rungs(COMMON, [ladder.Distance(*entry) for entry in found], VALUES)


def read_model(ladder, overrides):
    return ladder.read_settings(ladder.compose_config([*COMMON, *overrides])).model


def test_the_wide_plain_model_has_the_parameters_of_the_full_one_and_the_best_distance(
    ladder, rungs
):
    wide, full = (read_model(ladder, rungs[name]) for name in (ladder.WIDE, ladder.FULL))
    counts = [
        ladder.count_parameters(ladder.GPT(model, SynapseParams(), 256, seed=0))
        for model in (wide, full)
    ]
    assert counts[0] >= counts[1] > counts[0] - 40 * wide.width * 2 * wide.heads
    assert (wide.distance, wide.release, wide.fast_weights, wide.experts) == (
        "clock",
        "off",
        "off",
        1,
    )
    assert "synapse.attention.barrier_strength=8" in rungs[ladder.WIDE]


def test_each_rung_of_the_synapse_adds_one_mechanism(ladder, rungs):
    names = ["synaptic: distance alone", "+ memory", "+ dynamics", ladder.FULL]
    removed = ["no_release,no_memory,no_experts", "no_release,no_experts", "no_experts"]
    assert [rungs[name][-1] for name in names[:3]] == [f"ablation=[{words}]" for words in removed]
    assert not any(word.startswith("ablation") for word in rungs[ladder.FULL])
    assert all("synapse.postsynaptic.post_fast_lr=0.004" in rungs[name] for name in names)


def test_equal_time_gives_a_rung_of_half_the_cost_twice_the_steps(ladder):
    rungs = {"fast": ("a=1",), "slow": ("a=2",)}
    costs = {"fast": ladder.StepCost(1, 0.1, 1.0), "slow": ladder.StepCost(1, 0.2, 2.0)}
    assert ladder.give_equal_time(rungs, costs, 200) == {
        "fast": ("a=1", "training.steps=400"),
        "slow": ("a=2", "training.steps=200"),
    }


def test_the_best_plain_rung_is_the_reference_of_the_gains(ladder):
    def results(value):
        return [
            {"test_perplexity": value * scale, "test_loss": 1.0, "steps": 10.0}
            for scale in (1.0, 1.01, 0.99)
        ]

    values = dict.fromkeys(ladder.PLAIN_RUNGS, 10.0) | {ladder.WIDE: 8.0, ladder.FULL: 4.0}
    summary = ladder.summarise(
        {name: results(value) for name, value in values.items()},
        {name: ladder.StepCost(7, 0.1, 1.0) for name in values},
        dict.fromkeys(values, 8e-3),
    )
    assert summary["best_plain"] == ladder.WIDE
    full = summary["rungs"][ladder.FULL]
    assert full["gain_over_best_plain"] == pytest.approx([50.0] * 3)
    assert full["gain_over_first"] == pytest.approx([60.0] * 3)
    assert summary["rungs"][ladder.WIDE]["gain_over_best_plain"] is None


class StoredRuns:
    """Runs with a validation loss by learning rate, the lowest at 8e-3; `diverging` has none."""

    common = ()

    def __init__(self, diverging=""):
        self.diverging, self.jobs = diverging, []

    def load_or_train(self, jobs, title):
        self.jobs = jobs
        return [
            {"failed": "it diverged"}
            if job.label.startswith(f"{self.diverging},") or job.label.endswith("0.032")
            else {"val_loss": abs(math.log(float(job.label.split(", ")[-1]) / 8e-3))}
            for job in jobs
        ]


def test_each_rung_gets_its_best_learning_rate_by_validation_loss(ladder):
    tuning = sys.modules[ladder.tune_rates.__module__]
    runs, rungs = StoredRuns(), {"one": ("a=1",), "two": ("a=2",)}
    assert ladder.tune_rates(runs, rungs, 5) == {"one": 8e-3, "two": 8e-3}
    assert runs.jobs[0].overrides == ("a=1", "training.learning_rate=0.002", "seed=1")
    # A search knows only its own learning rate on its seed.
    assert tuning.SEARCH_SEED not in tuning.RATE_SEEDS
    assert len({job.overrides for job in runs.jobs}) == 10 * len(tuning.RATE_SEEDS)
    assert ladder.tune_rates(runs, rungs, 2) == {"one": 2e-3, "two": 2e-3}
    with pytest.raises(ladder.UserError, match=r"`two` diverges at all of 0\.002, 0\.032"):
        ladder.tune_rates(StoredRuns("two"), rungs, 2)


def test_without_a_grid_the_rungs_keep_the_configured_learning_rate(ladder):
    runs = StoredRuns()
    assert ladder.tune_rates(runs, {"one": ()}, 0) == {"one": 8e-3}
    assert not runs.jobs


def test_tuned_values_of_the_training_are_refused(ladder, tmp_path):
    path = tmp_path / "best.yaml"
    path.write_text("parameters: {training.learning_rate: 0.01}\n")
    with pytest.raises(ladder.UserError, match="all rungs share the training"):
        ladder.read_tuned(path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--seeds", "1"], "at least 2"),
        (["--highest-rate", "0.001"], "above 0.002"),
        (["--only", "plain"], "one of 'plain, RoPE'"),
        (["--only", "+ memory", "--only", "+ dynamics"], "at least two rungs, one of them of"),
    ],
)
def test_a_wrong_option_is_refused(ladder, monkeypatch, capsys, words, expected):
    monkeypatch.setattr(sys, "argv", ["ladder", *words])
    assert ladder.main() == 2
    assert f"expected: {expected}" in capsys.readouterr().err


@pytest.mark.slow
def test_the_ladder_writes_its_tables_and_continues(ladder, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))  # for the processes that train
    words = ["ladder", "--budget", "2", "--strengths", "2", "--seeds", "2", "--rounds", "1"]
    words += ["--rates", "2", "--folder", str(tmp_path), "--workers", "1", *COMMON]
    words += ["training.steps=4"]
    monkeypatch.setattr(sys, "argv", words)
    assert ladder.main() == 0, capsys.readouterr().err
    first = json.loads((tmp_path / "ladder.json").read_text())
    assert "## Equal training time" in (tmp_path / "ladder.md").read_text()
    wide = first["equal_steps"]["rungs"][ladder.WIDE]
    assert wide["steps"] == 4
    assert wide["learning_rate"] in (2e-3, 3.2e-2)
    runs = (tmp_path / "runs.json").read_bytes()
    capsys.readouterr()
    assert ladder.main() == 0
    assert (tmp_path / "runs.json").read_bytes() == runs
    assert json.loads((tmp_path / "ladder.json").read_text()) == first
    assert "seed 7000" not in capsys.readouterr().out

    longer = ["--compared", "training.steps=6", "--only", ladder.WIDE, "--only", ladder.FULL]
    monkeypatch.setattr(sys, "argv", [*words, *longer, "--comparison", "equal_time"])
    assert ladder.main() == 0
    record = json.loads((tmp_path / "ladder.json").read_text())
    steps = {name: rung["steps"] for name, rung in record["equal_time"]["rungs"].items()}
    assert list(steps) == [ladder.WIDE, ladder.FULL]
    assert min(steps.values()) == 6
    assert "equal_steps" not in record
    assert record["design"]["values"] == first["design"]["values"]
    assert "distance 1/" not in capsys.readouterr().out
