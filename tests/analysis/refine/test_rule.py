"""Refinement of the plan's 48 runs, and the error rate of its tests without an effect."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom, binomtest, fisher_exact

from helpers.plan_runs import BINS, METRIC, THRESHOLD, make_plan_runs, write_runs
from synaptune import TrialManager
from synaptune.analysis.evidence import gather_evidence
from synaptune.analysis.refine.exact_tests import (
    exact_p,
    group_p,
    position_p,
    rate_interval,
    shuffle_labels,
)
from synaptune.analysis.refine.narrowing import make_entry
from synaptune.analysis.refine.rule import refine
from synaptune.analysis.refine.runs import (
    RunParameter,
    RunSelection,
    RunTable,
    read_study_runs,
    round_to_digits,
)
from synaptune.analysis.refine.table import read_csv_runs
from synaptune.core.errors import UserError
from synaptune.search.space.space import Dimension
from synaptune.study.reader import find_study
from synaptune.study.table import tabulate_trials, to_csv


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> RunTable:
    """The plan's runs in the format of a Weights & Biases export."""
    path = write_runs(tmp_path_factory.mktemp("plan") / "runs.csv", make_plan_runs(), exported=True)
    return read_csv_runs(path, RunSelection(METRIC, maximize=True))


def by_name(refinement):
    return {proposal.test.parameter.dimension.name: proposal for proposal in refinement.proposals}


def test_the_generated_table_has_the_facts_of_the_plan():
    rows = make_plan_runs()
    winners = [row for row in rows if row[METRIC] >= THRESHOLD]
    rates = [row["learning_rate"] for row in winners]
    assert (len(rows), len(winners), min(rates), max(rates)) == (48, 16, 1.02e-7, 1.37e-6)
    for (low, high), (count, won, mean) in BINS.items():
        inside = [row for row in rows if low <= row["learning_rate"] < high]
        assert (len(inside), sum(row in winners for row in inside)) == (count, won)
        assert sum(row[METRIC] for row in inside) / count == pytest.approx(mean, abs=1e-6)
    assert [round(100 * won / count, 1) for count, won, _ in BINS.values()] == [31.6, 26.3, 50.0]
    assert {row["batch_size"] for row in winners} == {8}
    assert {row["batch_size"] for row in rows} == {4, 8, 12}
    assert [sum(row["schedule"] == kind for row in winners) for kind in ("advanced", "cosine")] == [
        9,
        7,
    ]
    assert {row["entropy_coef"] for row in winners} == {row["entropy_coef"] for row in rows}
    assert {row["entropy_coef"] for row in rows} == {0.001, 0.002, 0.005}
    assert {row["generations"] for row in rows} == {16, 24, 32, 40}
    assert {row["generations"] for row in winners} == {16, 24, 32}


def test_the_plan_rule_makes_the_proposal_of_the_plan(plan):
    refinement = refine(plan, threshold=THRESHOLD, rule="plan")
    assert refinement.winners == 16
    space = refinement.make_space_file("focused")
    assert space.fixed == {"batch_size": 8}
    assert space.ranges == {
        "learning_rate": {"low": 8e-8, "high": 4e-7, "log": True},
        "generations": {"choices": [16, 24, 32]},
        "schedule": {"choices": ["advanced", "cosine"], "weights": [65, 35]},
        "entropy_coef": {"choices": [0.001, 0.002, 0.005]},
    }
    assert not by_name(refinement)["entropy_coef"].is_narrowed


def test_the_tested_rule_fixes_the_batch_size_of_the_plan_and_nothing_else(plan):
    refinement = refine(plan, threshold=THRESHOLD)
    proposals = by_name(refinement)
    assert [name for name, proposal in proposals.items() if proposal.is_narrowed] == ["batch_size"]
    assert proposals["batch_size"].adjusted_p < 0.01
    rate, schedule = proposals["learning_rate"], proposals["schedule"]
    assert rate.test.edges == (1e-7, 3e-7, 1e-6, 2e-6)
    assert rate.test.p_groups == pytest.approx(0.45, abs=0.01)
    assert schedule.test.p == pytest.approx(0.76, abs=0.01)
    assert "9 against 7 high performers (binomial p = 0.80" in schedule.narrowing.reason
    assert rate.narrowing.reason.startswith("kept wide: high performers from 1.02e-07 to 1.37e-06")
    low, high = rate.test.groups[2].low, rate.test.groups[2].high
    assert (low, high) == pytest.approx((0.187, 0.813), abs=0.001)
    file = refinement.make_space_file("wide")
    assert file.ranges["learning_rate"] == {"low": 1e-7, "high": 2e-6, "log": True}
    assert file.ranges["schedule"] == {"choices": ["advanced", "cosine"]}


def test_exact_p_and_intervals_agree_with_a_count_by_hand_and_with_scipy():
    assert exact_p([9, 7], [24, 24]) == pytest.approx(fisher_exact([[9, 15], [7, 17]])[1])
    assert exact_p([3, 0], [4, 9]) == pytest.approx(fisher_exact([[3, 1], [0, 9]])[1])
    runs, winners = (4, 3, 5), (3, 0, 1)
    chances = {
        table: math.prod(math.comb(n, k) for n, k in zip(runs, table, strict=True))
        / math.comb(12, 4)
        for table in itertools.product(*(range(n + 1) for n in runs))
        if sum(table) == 4
    }
    assert sum(chances.values()) == pytest.approx(1.0)
    assert exact_p(winners, runs) == pytest.approx(
        sum(chance for chance in chances.values() if chance <= chances[winners] + 1e-12)
    )
    for won, count in ((0, 10), (5, 10), (10, 10), (6, 19)):
        assert rate_interval(won, count) == pytest.approx(
            tuple(binomtest(won, count).proportion_ci(method="exact"))
        )
    assert exact_p([50] * 12, [100] * 12) is None  # too many tables, so shuffles are used


def test_shuffles_agree_with_the_exact_test():
    codes = [0] * 10 + [1] * 8 + [2] * 12
    wins = [run % 3 == 0 or run < 4 for run in range(30)]
    labels = shuffle_labels(wins, [0] * 30, seed=1)
    exact = exact_p(
        [sum(wins[i] for i in range(30) if codes[i] == group) for group in range(3)], [10, 8, 12]
    )
    # The statistics differ but agree approximately for such tables.
    assert group_p(codes, labels, [0] * 30) == pytest.approx(exact, abs=0.1)
    assert labels[:, :].sum(axis=1) == pytest.approx(sum(wins))


def test_position_sees_winners_at_one_side_and_in_the_middle_but_not_evenly_spread_ones():
    values = [float(run) for run in range(40)]
    for winning, detected in ((range(12), True), (range(14, 26), True), (range(1, 40, 3), False)):
        labels = shuffle_labels(
            [run in winning for run in range(40)], [0] * 40, seed=0, shuffles=999
        )
        assert (position_p(values, labels, [0] * 40) < 0.01) == detected


def test_labels_are_shuffled_within_their_strata_only():
    strata, wins = [0, 0, 0, 1, 1, 1], [True, False, False, True, True, False]
    labels = shuffle_labels(wins, strata, seed=0, shuffles=200)
    assert labels[0].tolist() == wins
    assert set(labels[:, :3].sum(axis=1)) == {1.0}
    assert {tuple(row) for row in labels[:, 3:].tolist()} == set(
        itertools.permutations((1.0, 1.0, 0.0))
    )


def idle_runs(rng: np.random.Generator, count: int, *, strata=None, drift: float = 0.0) -> RunTable:
    """Make runs whose metric depends on no parameter.

    `drift` is the change of parameters and metric from stratum to stratum.
    """
    strata = strata or (0,) * count
    offsets = drift * np.asarray(strata, dtype=float)
    numbers = [rng.random(count) + offsets for _ in range(2)]
    top = 1.0 + float(offsets.max())
    parameters = [
        RunParameter(Dimension(f"n{index}", "lin", 0.0, top), tuple(column.tolist()))
        for index, column in enumerate(numbers)
    ]
    for name, choices in (("three", (4, 8, 16)), ("two", ("a", "b")), ("five", (1, 2, 3, 4, 5))):
        values = tuple(choices[index] for index in rng.integers(len(choices), size=count))
        parameters.append(RunParameter(Dimension(name, "categorical", choices=choices), values))
    return RunTable(
        "idle",
        "val",
        False,
        tuple(parameters),
        tuple((rng.normal(size=count) - 4.0 * offsets).tolist()),
        tuple(strata),
    )


@pytest.mark.slow
def test_without_any_effect_some_parameter_is_supported_in_at_most_5_percent_of_designs():
    rng, designs = np.random.default_rng(5), 250
    wrong = single = 0
    for seed in range(designs):
        refinement = refine(idle_runs(rng, 48), shuffles=99, seed=seed)
        wrong += any(proposal.supported for proposal in refinement.proposals)
        single += sum(proposal.test.p < 0.05 for proposal in refinement.proposals)
    assert wrong <= binom.ppf(0.999, designs, 0.05)
    # The tests are not too conservative.
    assert single >= binom.ppf(0.001, 5 * designs, 0.02)


def test_what_drifts_along_with_an_adaptive_search_is_not_taken_for_an_effect():
    rng, designs = np.random.default_rng(6), 60
    strata = tuple(np.repeat(range(12), 10).tolist())
    drifted = [idle_runs(rng, 120, strata=strata, drift=0.3) for _ in range(designs)]
    wrong = sum(
        any(entry.supported for entry in refine(runs, shuffles=99).proposals) for runs in drifted
    )
    assert wrong <= binom.ppf(0.999, designs, 0.05)
    (runs, *_) = drifted
    # Without strata the drift is taken for an effect.
    unstratified = replace(runs, strata=(0,) * 120)
    assert any(proposal.supported for proposal in refine(unstratified, shuffles=999).proposals)


def test_runs_of_which_no_two_were_drawn_alike_are_said_to_be_untestable():
    runs = idle_runs(np.random.default_rng(7), 48, strata=tuple(range(48)))
    refinement = refine(runs, shuffles=99)
    assert {proposal.test.p for proposal in refinement.proposals} == {1.0}
    assert all(
        proposal.narrowing.reason.startswith("kept wide: not testable")
        for proposal in refinement.proposals
    )
    assert "not testable" in refinement.runs.notes[-1]
    testable = refine(
        idle_runs(np.random.default_rng(7), 48, strata=tuple(at // 2 for at in range(48))),
        shuffles=99,
    )
    assert not any(
        "not testable" in text
        for text in (
            *testable.runs.notes,
            *(entry.narrowing.reason for entry in testable.proposals),
        )
    )


def effective_runs(loss, count: int = 90) -> RunTable:
    rng = np.random.default_rng(2)
    x, kind, idle = rng.random(count) * 10.0, rng.integers(3, size=count), rng.random(count)
    parameters = (
        RunParameter(Dimension("x", "lin", 0.0, 10.0), tuple(x.tolist())),
        RunParameter(
            Dimension("kind", "categorical", choices=("a", "b", "c")),
            tuple("abc"[index] for index in kind),
        ),
        RunParameter(Dimension("idle", "lin", 0.0, 1.0), tuple(idle.tolist())),
    )
    return RunTable(
        "made",
        "val_loss",
        False,
        parameters,
        tuple((loss(x, kind) + 0.1 * rng.normal(size=count)).tolist()),
        (0,) * count,
    )


def test_a_range_whose_middle_is_best_is_tightened_around_it_and_an_idle_one_is_kept():
    proposals = by_name(refine(effective_runs(lambda x, kind: (x - 4.0) ** 2)))
    after = proposals["x"].narrowing.after
    assert 0.5 < after.low < 4.0 < after.high < 8.5
    assert proposals["x"].supported
    assert not proposals["idle"].is_narrowed
    assert not proposals["kind"].is_narrowed


def test_choices_are_weighted_by_success_and_hopeless_ones_are_dropped():
    runs = effective_runs(lambda x, kind: 0.2 * kind + 3.0 * (kind == 2))
    narrowing = by_name(refine(runs))["kind"].narrowing
    after = narrowing.after
    assert after.choices == ("a", "b")
    assert after.weights[0] > after.weights[1]
    assert sum(after.weights) == pytest.approx(100.0, abs=1.0)
    assert "without c" in narrowing.reason


@pytest.mark.parametrize("others", ["ab", "a"])
def test_a_choice_that_was_never_run_is_kept_and_shown_as_such(others):
    """There is no evidence against it, whether or not the winners agree on one of the others."""
    runs = effective_runs(
        lambda x, kind: 9.0 * (kind == 2) + (9.0 * (kind == 1) if others == "a" else 0.0)
    )
    dimension = Dimension("kind", "categorical", choices=("a", "b", "c", "new"))
    parameters = tuple(
        entry._replace(dimension=dimension) if entry.dimension.name == "kind" else entry
        for entry in runs.parameters
    )
    proposal = by_name(refine(replace(runs, parameters=parameters), quantile=0.25))["kind"]
    assert proposal.supported
    assert (
        proposal.test.groups[3].label,
        proposal.test.groups[3].runs,
        proposal.test.groups[3].mean,
    ) == ("new", 0, None)
    assert proposal.narrowing.after.choices == (*others, "new")


def test_whole_weights_are_written_whole_whatever_their_type():
    entry = make_entry(Dimension("kind", "categorical", choices=("a", "b"), weights=(65, 35.0)))
    assert repr(entry["weights"]) == "[65, 35]"
    assert make_entry(Dimension("kind", "categorical", choices=("a", "b"), weights=(2, 0.5)))[
        "weights"
    ] == [2, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 9.0}, "0 of 48 runs with eval_change at least 9"),
        ({"threshold": -9.0}, "48 of 48 runs"),
        ({"quantile": 1.5}, "--quantile 1.5"),
    ],
)
def test_high_performers_that_are_none_or_all_are_refused(plan, options, message):
    with pytest.raises(UserError, match=message):
        refine(plan, **options)


def test_a_third_of_the_runs_are_high_performers_by_default(plan):
    assert refine(plan).winners == 16
    assert refine(plan, quantile=0.25).winners == 12


@pytest.mark.parametrize(
    ("number", "digits", "up", "expected"),
    [
        (8.16e-8, 1, None, 8e-8),
        (3.75e-7, 1, None, 4e-7),
        (0.103, 2, False, 0.1),
        (0.1, 1, True, 0.1),
        (-3.21, 2, False, -3.3),
        (0.0, 1, True, 0.0),
        (1.37e-6, 1, True, 2e-6),
    ],
)
def test_numbers_are_rounded_to_significant_digits(number, digits, up, expected):
    assert round_to_digits(number, digits, up=up) == expected


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A maximised study searched by CMA: x has an effect, y has none."""
    folder = tmp_path_factory.mktemp("studies") / "hill"

    def hill(params):
        if params["x"] > 9.5:
            raise ArithmeticError("over the edge")
        return -((params["x"] - 3.0) ** 2)

    manager = TrialManager(
        "hill", n_trials=90, direction="maximize", sampler="cma", directory=folder, progress=False
    )
    manager.optimize(
        hill,
        {
            "x": ("uniform", 0.0, 10.0),
            "y": ("log_uniform", 0.01, 1.0),
            "mode": ("categorical", ["a", "b"]),
        },
    )
    return find_study(str(folder))


def test_the_runs_of_an_adaptive_study_are_compared_within_generations(searched):
    runs = read_study_runs(searched, RunSelection())
    assert (runs.metric, runs.maximize, runs.adaptive) == ("objective", True, "cma")
    assert len(set(runs.strata)) > 5
    assert max(runs.scores) <= 0.0
    best = runs.scores.index(max(runs.scores))
    assert runs.parameters[0].values[best] == pytest.approx(3.0, abs=0.5)
    proposals = by_name(refine(runs, shuffles=999))
    assert [name for name, proposal in proposals.items() if proposal.supported] == ["x"]
    after = proposals["x"].narrowing.after
    assert after is not None
    assert 0.0 <= after.low < 3.0 < after.high < 9.5


@pytest.mark.slow
def test_no_range_is_narrowed_of_which_the_report_finds_no_effect(searched):
    runs = read_study_runs(searched, RunSelection())
    effects = {effect.name: effect.adjusted_p for effect in gather_evidence(searched).effects}
    assert runs.effects == effects  # the p-values of the report
    idle = by_name(refine(replace(runs, effects={**effects, "x": 0.7}), shuffles=999))["x"]
    assert idle.adjusted_p < 0.05
    assert (idle.supported, idle.is_narrowed, idle.effect_p) == (False, False, 0.7)
    assert "the report finds no effect on the loss (adjusted p = 0.7)" in idle.narrowing.reason


def test_the_plan_rule_stays_within_the_ranges_of_a_study(searched):
    for proposal in refine(read_study_runs(searched, RunSelection()), rule="plan").proposals:
        before, after = proposal.test.parameter.dimension, proposal.narrowing.after
        assert after is None or (before.low <= after.low < after.high <= before.high)


def test_a_table_that_we_exported_gives_what_the_study_gives(searched, tmp_path):
    path = tmp_path / "hill.csv"
    path.write_text(to_csv(tabulate_trials(searched.trials)))
    study = read_study_runs(searched, RunSelection())
    runs = read_csv_runs(path, RunSelection(maximize=True, parameters=("x", "y", "mode")))
    assert runs.scores == study.scores
    assert runs.strata == study.strata
    assert [parameter.values for parameter in runs.parameters] == [
        parameter.values for parameter in study.parameters
    ]


def test_a_study_without_a_trial_to_rank_is_refused(searched):
    failed = [
        replace(trial, state="failed", objective=None, facts={"phase": "search"})
        for trial in searched.trials
    ]
    with pytest.raises(UserError, match="none of its 90 trials has objective"):
        read_study_runs(replace(searched, trials=failed), RunSelection())


def test_a_study_refuses_metrics_of_training_and_unknown_ones(searched):
    with pytest.raises(UserError, match=r"measured in training[\s\S]*\(objective\)"):
        read_study_runs(searched, RunSelection("train_loss"))
    with pytest.raises(UserError, match="--metric val_los"):
        read_study_runs(searched, RunSelection("val_los"))
