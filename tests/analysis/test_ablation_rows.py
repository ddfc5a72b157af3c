"""Ablation of hand-made studies with a known answer."""

import math

import pytest
from scipy.stats import t

from synaptune.analysis.ablation import (
    Endpoints,
    choose_reverted,
    compute_ablation,
    find_endpoints,
    plan_points,
)
from synaptune.analysis.compare import holm, pool_spread
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Trial
from synaptune.study.reader import StudySnapshot

SPACE = Space(
    (
        Dimension("rate", "log", 0.01, 1.0, start=0.1),
        Dimension("count", "lin", 1, 9, integer=True, start=3),
        Dimension("kind", "categorical", choices=("a", "b"), start="a"),
        Dimension("still", "lin", 0.0, 1.0, start=0.5),
    )
)
DEFAULTS = SPACE.get_start()
TUNED = SPACE.to_unit({"rate": 0.4, "count": 7, "kind": "b", "still": 0.5})
# log perplexity of each parameter at its tuned value, relative to its default
WORTH = {"rate": -0.10, "count": -0.30, "kind": 0.05}
SEEDS = (1001, 1002, 1003)


def perplexity(values, seed):
    """Effects add in the logarithm; a seed has a common effect and a small one of its own."""
    tuned = SPACE.to_values(TUNED)
    effect = sum(worth for name, worth in WORTH.items() if values[name] == tuned[name])
    return (
        8.0
        * math.exp(effect + 0.1 * (seed - 1002))
        * (1.0 + 1e-4 * ((seed * len(str(values)) * 7919) % 11))
    )


def run(number, phase, unit, seed, state="complete", **facts):
    values = SPACE.to_values(unit)
    defaults = {"phase": phase, "seed": seed, "test": phase != "search"}
    defaults |= {"test_perplexity": perplexity(values, seed)} if state == "complete" else {}
    return Trial(
        number,
        number,
        unit,
        values,
        state=state,
        objective=1.0 if state == "complete" else None,
        facts=defaults | facts,
    )


def study(trials):
    start = {f"search.start.{name}": value for name, value in SPACE.to_values(DEFAULTS).items()}
    spaces = {trial.facts["phase"]: SPACE for trial in trials}
    return StudySnapshot(
        "made",
        "sqlite://",
        False,
        {"search.protocol": "phase1", **start},
        {},
        trials,
        {},
        {},
        {},
        spaces,
    )


def validation():
    return [
        run(index, "validation", unit, seed)
        for index, (seed, unit) in enumerate((s, u) for s in SEEDS for u in (DEFAULTS, TUNED))
    ]


def ablation(first=100, skip=lambda unit, seed: False):
    points = plan_points(Endpoints(SPACE, DEFAULTS, TUNED)).as_list()
    pairs = [(unit, seed) for seed in SEEDS for unit in points if not skip(unit, seed)]
    return [run(first + index, "ablation", unit, seed) for index, (unit, seed) in enumerate(pairs)]


def test_each_moved_parameter_has_a_point_each_way_and_an_unmoved_one_none():
    points = plan_points(Endpoints(SPACE, DEFAULTS, TUNED))
    assert set(points.reverted) == set(points.alone) == set(WORTH)
    assert SPACE.to_values(points.reverted["count"]) == SPACE.to_values(TUNED) | {"count": 3}
    assert SPACE.to_values(points.alone["kind"]) == SPACE.to_values(DEFAULTS) | {"kind": "b"}
    assert points.as_list()[:2] == [DEFAULTS, TUNED]
    assert len(set(points.as_list())) == 2 + 2 * len(WORTH)


def test_an_ablation_finds_what_each_parameter_is_worth_and_ranks_by_it():
    rows = compute_ablation(study([*validation(), *ablation()]))
    assert [row.name for row in rows] == ["count", "rate", "kind"]
    for row in rows:
        expected = 100.0 * (1.0 - math.exp(WORTH[row.name]))
        assert row.reverted is not None
        assert row.alone is not None
        assert row.reverted.mean == pytest.approx(expected, abs=0.2)
        assert row.alone.mean == pytest.approx(expected, abs=0.2)
        assert row.reverted.count == row.alone.count == 3
    assert (rows[0].default, rows[0].tuned) == (3, 7)


def test_a_small_ablation_takes_the_largest_effects_of_the_screening_then_the_longest_moves():
    endpoints = Endpoints(SPACE, DEFAULTS, TUNED)
    assert list(choose_reverted(endpoints, 2, {})) == ["kind", "count"]
    assert list(choose_reverted(endpoints, 2, {"rate": -0.3, "still": 9.0})) == ["rate", "kind"]


def test_comparisons_of_few_pairs_share_one_spread():
    """Of two pairs alone, an interval is 12.7 standard errors wide."""
    few = [trial for trial in (*validation(), *ablation()) if trial.facts["seed"] != 1003]
    rows = compute_ablation(study(few))
    assert [row.reverted.count for row in rows] == [2, 2, 2]
    widths = [row.reverted.high - row.reverted.low for row in rows]
    assert widths == pytest.approx([widths[0]] * 3)
    reverted = plan_points(Endpoints(SPACE, DEFAULTS, TUNED)).reverted
    pairs = [
        [
            [perplexity(SPACE.to_values(unit), seed) for seed in SEEDS[:2]]
            for unit in (reverted[name], TUNED)
        ]
        for name in reverted
    ]
    spread = pool_spread(pairs)
    assert spread.degrees == pytest.approx(3 / 1.5)
    half = t.ppf(0.975, spread.degrees) * spread.deviation / math.sqrt(2)
    assert widths[0] == pytest.approx(2 * half)


def test_all_comparisons_of_both_ways_are_corrected_together():
    rows = compute_ablation(study([*validation(), *ablation()]))
    raw = [
        comparison.p
        for row in rows
        for comparison in (row.reverted, row.alone)
        if comparison is not None
    ]
    adjusted = [value for row in rows for value in (row.adjusted_reverted, row.adjusted_alone)]
    assert len(raw) == 6
    assert adjusted == pytest.approx(holm(raw))


def test_runs_of_the_validation_serve_where_the_ablation_has_none():
    ends_only = {DEFAULTS, TUNED}
    rows = compute_ablation(
        study([*validation(), *ablation(skip=lambda unit, seed: unit in ends_only)])
    )
    assert [row.reverted is not None and row.reverted.count for row in rows] == [3, 3, 3]


def test_only_runs_on_the_same_seed_are_paired_and_too_few_pairs_are_no_comparison():
    reverted = plan_points(Endpoints(SPACE, DEFAULTS, TUNED)).reverted
    trials = [
        *validation(),
        *ablation(
            skip=lambda unit, seed: (
                (unit == reverted["count"] and seed != 1002) or unit == reverted["kind"]
            )
        ),
    ]
    trials = [
        trial
        for trial in trials
        if not (trial.unit == reverted["rate"] and trial.facts["seed"] == 1003)
    ]
    rows = {row.name: row for row in compute_ablation(study(trials))}
    assert (
        rows["count"].reverted is rows["kind"].reverted is rows["count"].adjusted_reverted is None
    )
    assert rows["rate"].reverted is not None
    assert rows["rate"].reverted.count == 2
    assert rows["count"].alone is not None
    assert next(iter(rows)) == "rate"


def test_failed_and_infinite_runs_are_left_out():
    reverted = plan_points(Endpoints(SPACE, DEFAULTS, TUNED)).reverted["rate"]
    trials = [*validation(), *ablation(skip=lambda unit, seed: unit == reverted and seed != 1001)]
    trials += [
        run(900, "ablation", reverted, 1002, state="failed"),
        run(901, "ablation", reverted, 1003, test_perplexity="inf"),
    ]
    assert (
        next(row for row in compute_ablation(study(trials)) if row.name == "rate").reverted is None
    )


def test_a_study_without_an_ablation_or_without_an_optimum_has_no_rows():
    assert compute_ablation(study(validation())) == []
    assert compute_ablation(study([])) == []
    assert find_endpoints(study([])) is None


def test_an_optimum_that_was_not_validated_is_the_best_of_the_search():
    worse = Trial(
        5,
        5,
        DEFAULTS,
        SPACE.to_values(DEFAULTS),
        state="complete",
        objective=2.0,
        facts={"phase": "search", "seed": 0},
    )
    endpoints = find_endpoints(study([run(4, "search", TUNED, 0), worse]))
    assert endpoints is not None
    assert (endpoints.defaults, endpoints.tuned) == (DEFAULTS, TUNED)


def test_a_validation_made_again_for_a_better_point_counts_with_the_later_one():
    later = SPACE.to_unit({"rate": 0.9, "count": 7, "kind": "b", "still": 0.5})
    endpoints = find_endpoints(
        study(
            [
                *validation(),
                *[run(20 + n, "validation", later, seed) for n, seed in enumerate(SEEDS)],
            ]
        )
    )
    assert endpoints is not None
    assert (endpoints.defaults, endpoints.tuned) == (DEFAULTS, later)
