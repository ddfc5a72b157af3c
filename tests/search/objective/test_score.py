"""Scores against values computed by hand, and missing metrics and baselines."""

from __future__ import annotations

from dataclasses import replace

import pytest

from synaptune.core.errors import UserError
from synaptune.search.objective.measures import MEASURES
from synaptune.search.objective.score import (
    TERMS,
    Baseline,
    CompositeWeights,
    ObjectiveConfig,
    ParetoAxes,
    check_ready,
    compute_costs,
    find_objective_faults,
    get_score_kind,
    needs_baseline,
    rescore,
    score,
    with_baseline,
)

DEFAULTS = {
    "val_loss": 2.3,
    "val_perplexity": 10.0,
    "val_recall_accuracy": 0.5,
    "expert_gini": 0.25,
    "expert_dead_fraction": 0.5,
    "val_calibration_error": 0.1,
    "tokens_per_second": 2000.0,
}
COMPOSITE = with_baseline(ObjectiveConfig("composite"), DEFAULTS)
PARETO = replace(COMPOSITE, name="pareto")
HYBRID = replace(COMPOSITE, name="hybrid", switch=3)
BETTER = {
    "val_perplexity": 9.0,
    "val_recall_accuracy": 0.6,
    "expert_gini": 0.3,
    "expert_dead_fraction": 0.4,
    "val_calibration_error": 0.05,
    "tokens_per_second": 2500.0,
}


def test_the_composite_of_the_baseline_is_the_sum_of_the_weights_with_their_directions():
    assert score(COMPOSITE, DEFAULTS) == pytest.approx(1.0 - 0.3 - 0.2 + 0.5 + 0.2)


def test_the_composite_is_its_formula():
    metrics = DEFAULTS | BETTER
    by_hand = 1.0 * 0.9 - 0.3 * 1.2 - 0.2 * 1.2 + 0.5 * 0.8 + 0.2 * 0.5
    assert score(COMPOSITE, metrics) == pytest.approx(by_hand)


@pytest.mark.parametrize("metric", TERMS.values())
def test_every_term_of_the_composite_falls_when_its_metric_gets_better(metric):
    assert score(COMPOSITE, DEFAULTS | {metric: BETTER[metric]}) < score(COMPOSITE, DEFAULTS)


def test_weights_scale_a_relative_change():
    tenth = {
        metric: DEFAULTS[metric] * (1.0 - 0.1 * MEASURES[metric].direction)
        for metric in TERMS.values()
    }
    for term, metric in TERMS.items():
        gain = score(COMPOSITE, DEFAULTS) - score(COMPOSITE, DEFAULTS | {metric: tenth[metric]})
        assert gain == pytest.approx(0.1 * getattr(COMPOSITE.weights, term))


def test_a_baseline_of_zero_counts_in_units_of_the_floor():
    config = with_baseline(COMPOSITE, DEFAULTS | {"expert_dead_fraction": 0.0})
    floor = MEASURES["expert_dead_fraction"].floor
    none, dead = (
        score(config, DEFAULTS | {"expert_dead_fraction": value}) for value in (0.0, floor)
    )
    assert dead - none == pytest.approx(config.weights.dead_experts)


def test_no_term_outweighs_a_doubled_perplexity_when_all_baselines_are_zero():
    zero = dict.fromkeys(TERMS.values(), 0.0) | {"val_loss": 2.3, "val_perplexity": 10.0}
    config = with_baseline(ObjectiveConfig("composite"), zero)
    doubled = score(config, zero | {"val_perplexity": 20.0}) - score(config, zero)
    for metric in set(TERMS.values()) - {"val_perplexity"}:
        assert abs(score(config, zero | {metric: 0.9}) - score(config, zero)) < 2 * doubled
    one_of_eight = score(config, zero | {"expert_dead_fraction": 0.125}) - score(config, zero)
    assert one_of_eight < 0.2 * doubled


def test_a_metric_that_neither_the_run_nor_the_baseline_has_is_left_out():
    dense = {
        name: value
        for name, value in DEFAULTS.items()
        if name in ("val_loss", "val_perplexity", "val_calibration_error")
    }
    config = with_baseline(ObjectiveConfig("composite"), dense)
    assert score(config, dense) == pytest.approx(1.2)


@pytest.mark.parametrize(("with_it", "without"), [("run", "baseline"), ("baseline", "run")])
def test_a_metric_that_only_one_of_run_and_baseline_has_is_refused(with_it, without):
    fewer = {name: value for name, value in DEFAULTS.items() if name != "val_recall_accuracy"}
    baseline, metrics = (fewer, DEFAULTS) if with_it == "run" else (DEFAULTS, fewer)
    with pytest.raises(
        UserError, match=f"val_recall_accuracy in the {with_it} and not in the {without}"
    ):
        score(with_baseline(COMPOSITE, baseline), metrics)
    light = replace(with_baseline(COMPOSITE, baseline), weights=CompositeWeights(recall=0.0))
    score(light, metrics)


@pytest.mark.parametrize("name", ["composite", "pareto"])
def test_a_score_without_its_baseline_reports_what_to_do(name):
    with pytest.raises(UserError, match=r"objective\.baseline="):
        check_ready(ObjectiveConfig(name), DEFAULTS)
    with pytest.raises(UserError, match="sweep-phase1"):
        score(ObjectiveConfig(name), DEFAULTS)


def test_only_objectives_with_shares_need_a_baseline():
    assert [
        needs_baseline(ObjectiveConfig(name))
        for name in ("val_loss", "proxy", "composite", "hybrid", "pareto")
    ] == [
        *(False, False),
        *(True, True, True),
    ]
    assert not needs_baseline(COMPOSITE)


def test_hybrid_ranks_by_the_loss_first_and_by_the_composite_later():
    assert [get_score_kind(HYBRID, generation) for generation in range(5)] == ["val_loss"] * 3 + [
        "composite"
    ] * 2
    assert score(HYBRID, DEFAULTS, 2) == 2.3
    assert score(HYBRID, DEFAULTS, 3) == score(COMPOSITE, DEFAULTS)


def test_hybrid_needs_no_baseline_before_its_switch():
    config = ObjectiveConfig("hybrid", switch=3)
    check_ready(config, DEFAULTS, 2)
    with pytest.raises(UserError, match="without a baseline"):
        check_ready(config, DEFAULTS, 3)


def test_incumbents_are_scored_again_from_their_stored_metrics():
    stored = [DEFAULTS, None, DEFAULTS | BETTER]
    assert rescore(HYBRID, stored, 2) == [2.3, None, 2.3]
    assert rescore(HYBRID, stored, 3) == [
        score(COMPOSITE, DEFAULTS),
        None,
        score(COMPOSITE, DEFAULTS | BETTER),
    ]


def test_the_vector_of_pareto_is_zero_at_the_baseline_and_negative_where_better():
    assert compute_costs(PARETO, DEFAULTS) == (0.0, 0.0, 0.0)
    assert compute_costs(PARETO, DEFAULTS | BETTER) == pytest.approx((-0.1, -0.2, -0.25))


def test_the_score_of_pareto_orders_dominated_runs_and_follows_its_weights():
    assert score(PARETO, DEFAULTS) == 0.0
    assert score(PARETO, DEFAULTS | BETTER) < 0.0
    fast = DEFAULTS | {"tokens_per_second": 4000.0, "val_perplexity": 11.0}
    indifferent = replace(PARETO, axes=ParetoAxes(val_perplexity=0.0))
    assert score(PARETO, fast) > 0.0 > score(indifferent, fast)


def test_an_axis_of_weight_zero_is_left_out():
    """Otherwise the score could not fall below 0, and the metric would be required."""
    quality = replace(PARETO, axes=ParetoAxes(tokens_per_second=0.0))
    better = DEFAULTS | {"val_perplexity": 9.0, "val_recall_accuracy": 0.6}
    assert len(compute_costs(quality, better)) == 2
    assert score(quality, better) < 0.0
    unmeasured = {name: value for name, value in DEFAULTS.items() if name != "tokens_per_second"}
    assert score(quality, unmeasured) == 0.0
    with pytest.raises(UserError, match="set the weight of tokens_per_second to 0"):
        score(PARETO, unmeasured)


@pytest.mark.parametrize(
    "config",
    [
        replace(PARETO, axes=ParetoAxes(0.0, 1.0, 0.0)),
        replace(COMPOSITE, weights=CompositeWeights(0.0, 1.0, 0.0, 0.0, 0.0)),
    ],
)
def test_an_objective_without_measured_metrics_is_refused(config):
    text = {name: value for name, value in DEFAULTS.items() if name != "val_recall_accuracy"}
    with pytest.raises(UserError, match="val_recall_accuracy, which neither"):
        score(with_baseline(config, text), text)


def test_pareto_without_recall_rows_has_two_axes():
    text = {name: value for name, value in DEFAULTS.items() if name != "val_recall_accuracy"}
    config = with_baseline(PARETO, text)
    assert len(compute_costs(config, text)) == 2
    assert score(config, text) == 0.0


def test_every_fault_is_reported():
    config = ObjectiveConfig(
        "luck",
        weights=CompositeWeights(0.0, 0.0, 0.0, 0.0, 0.0),
        axes=ParetoAxes(-1.0, 0.0, 0.0),
        switch=-1,
        fraction=0.0,
        baseline=Baseline(val_perplexity=float("nan")),
    )
    faults = "\n".join(find_objective_faults(config))
    for text in (
        "name=luck",
        "weights: expected",
        "val_perplexity=-1",
        "switch=-1",
        "fraction=0",
        "baseline.val_perplexity=nan",
    ):
        assert f"objective.{text}" in faults or f"objective.axes.{text}" in faults
    assert find_objective_faults(ObjectiveConfig()) == find_objective_faults(COMPOSITE) == []
