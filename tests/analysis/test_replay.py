"""The draws of a search are reproduced from its study alone."""

import json
from dataclasses import replace

import numpy as np
import pytest

from helpers.real_studies import make_study
from synaptune.analysis.replay import replay
from synaptune.search.optimizers.cma import fold


def bowl(p):
    return (p["a"] - 0.95) ** 2 + 2 * (p["b"] - 0.4) ** 2 + 0.1 * p["n"]


SPACE = {"a": ("uniform", 0.0, 1.0), "b": ("uniform", 0.0, 1.0), "n": ("int", 0, 4)}


def test_the_distribution_of_every_generation_is_the_one_the_search_had(tmp_path):
    snapshot = make_study(tmp_path / "bowl", bowl, SPACE, trials=60)
    replayed = replay(snapshot)
    stored_lines = [
        json.loads(line)
        for line in (tmp_path / "bowl" / "generations.jsonl").read_text().splitlines()
    ]
    assert replayed.note == ""
    assert len(replayed.diagnostics) == len(stored_lines) == 60 // len(replayed.batches[0].trials)
    for diagnostics, line in zip(replayed.diagnostics, stored_lines, strict=True):
        assert diagnostics.mean == line["mean"]
        assert [list(row) for row in diagnostics.covariance] == line["covariance"]


def test_each_point_is_its_sample_folded_into_the_box(tmp_path):
    replayed = replay(make_study(tmp_path / "bowl", bowl, SPACE, trials=60))
    beyond = 0
    for batch in replayed.batches:
        assert np.array_equal(fold(batch.samples), np.array([trial.unit for trial in batch.trials]))
        beyond += int(((batch.samples < 0) | (batch.samples > 1)).sum())
    assert beyond > 0, "no sample left the box, so the test would not detect a missing fold"


def test_failed_trials_are_replayed_as_failed(tmp_path):
    def sometimes(p):
        if p["a"] < 0.3:
            raise ValueError("no")
        return bowl(p)

    snapshot = make_study(tmp_path / "some", sometimes, SPACE, trials=40, max_failure_rate=1.0)
    assert any(trial.state == "failed" for trial in snapshot.trials)
    assert replay(snapshot).note == ""


def test_points_of_another_optimizer_are_detected(tmp_path):
    snapshot = make_study(tmp_path / "bowl", bowl, SPACE, trials=40)
    moved = [
        replace(trial, unit=(0.5, 0.5, 0.5)) if trial.index == 15 else trial
        for trial in snapshot.trials
    ]
    replayed = replay(replace(snapshot, trials=moved))
    assert "would draw" in replayed.note
    assert 0 < len(replayed.batches) < 40 / len(replayed.batches[0].trials)


@pytest.mark.parametrize(
    "space",
    [
        {
            "flag": ("categorical", [False, True]),
            "few": ("int", 1, 4),
            "rate": ("log_uniform", 1e-5, 0.3),
        },
        {
            "odd": ("uniform", 0.0, 1.0 / 3.0),
            "wide": ("log_uniform", 1e-7, 0.7),
            "three": ("categorical", ["a", "b", "c"]),
        },
    ],
)
def test_a_search_that_began_in_the_middle_is_replayed_from_there(tmp_path, space):
    """The coordinate of a choice or a rounded number is not restored from its value."""
    snapshot = make_study(
        tmp_path / "middle",
        lambda p: sum(float(len(str(value))) for value in p.values()),
        space,
        trials=30,
    )
    assert (
        snapshot.spaces["search"].get_start() == snapshot.search_trials[0].unit == (0.5, 0.5, 0.5)
    )
    replayed = replay(snapshot)
    assert replayed.note == ""
    assert sum(len(batch.trials) for batch in replayed.batches) == 30


def test_a_search_that_is_under_way_is_replayed_up_to_its_first_running_trial(tmp_path):
    """With several workers later trials of a generation end before earlier ones."""
    snapshot = make_study(tmp_path / "bowl", bowl, SPACE, trials=40)
    size = len(replay(snapshot).batches[0].trials)
    for offset in (0, 2):
        index = 3 * size + offset
        trials = [
            replace(trial, state="running", objective=None) if trial.index == index else trial
            for trial in snapshot.trials
        ]
        replayed = replay(
            replace(snapshot, trials=[trial for trial in trials if trial.index < 4 * size])
        )
        assert replayed.note == ""
        assert len(replayed.diagnostics) == 3
        assert sum(len(batch.trials) for batch in replayed.batches) == index


@pytest.mark.parametrize(("sampler", "known"), [("random", True), ("qmc", False)])
def test_only_known_distributions_are_replayed(tmp_path, sampler, known):
    replayed = replay(make_study(tmp_path / sampler, bowl, SPACE, trials=16, sampler=sampler))
    assert bool(replayed.batches) == known
    assert bool(replayed.note) != known
