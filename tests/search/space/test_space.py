"""Values and unit coordinates."""

import json

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from optuna.distributions import distribution_to_json

from synaptune.config.search_space import refuse_unused
from synaptune.config.sweep_syntax import parse_parametrization, parse_sweep
from synaptune.core.errors import UserError
from synaptune.search.space.space import (
    Dimension,
    expand_patterns,
    make_dimension,
    make_space,
)
from synaptune.study.database.rows import make_distribution
from synaptune.study.reader import _build_dimension
from synaptune.synapse.circuit import SPECS

UNIT = st.floats(0.0, 1.0)


@st.composite
def dimensions(draw):
    kind = draw(st.sampled_from(["lin", "log", "decay", "int", "int log", "choice"]))
    if kind == "decay":
        low = draw(st.floats(-1.0, 0.9))
        rest = (1.0 - low) * draw(st.floats(1e-6, 0.5))
        return Dimension("x", "decay", low, 1.0 - rest)
    if kind == "choice":
        choices = tuple(draw(st.lists(st.integers(), min_size=1, max_size=9, unique=True)))
        size = len(choices)
        weights = draw(st.just([]) | st.lists(st.floats(0.1, 10.0), min_size=size, max_size=size))
        return Dimension("x", "categorical", choices=choices, weights=tuple(weights))
    if kind.startswith("int"):
        low = draw(st.integers(1, 100))
        return Dimension(
            "x",
            "log" if "log" in kind else "lin",
            low,
            low + draw(st.integers(1, 1000)),
            integer=True,
        )
    low = draw(st.floats(1e-6, 1e3))
    return Dimension("x", kind, low, low * draw(st.floats(1.5, 1e4)))


@settings(max_examples=200, deadline=None)
@given(dimensions(), UNIT)
def test_a_value_survives_the_way_to_the_unit_box_and_back(dimension, unit):
    value = dimension.to_value(unit)
    assert dimension.to_value(dimension.to_unit(value)) == value
    if dimension.scale == "categorical":
        assert value in dimension.choices
    else:
        assert dimension.low <= value <= dimension.high
        assert isinstance(value, int) == dimension.integer


@pytest.mark.parametrize(
    "dimension",
    [Dimension("x", "lin", 0.0, 1e308), Dimension("x", "log", 5e-324, 1.7e308)],
    ids=["lin", "log"],
)
def test_the_values_of_a_huge_range_are_finite(dimension):
    values = [dimension.to_value(unit) for unit in (0.0, 0.25, 0.75, 1.0)]
    assert values == sorted(set(values))
    assert all(dimension.low <= value <= dimension.high for value in values)


@settings(max_examples=100, deadline=None)
@given(dimensions(), UNIT, UNIT)
def test_numbers_rise_with_their_coordinate(dimension, one, other):
    if dimension.scale != "categorical":
        low, high = sorted((one, other))
        assert dimension.to_value(low) <= dimension.to_value(high)


@pytest.mark.parametrize("scale", ["lin", "log"])
@pytest.mark.parametrize("integer", [True, False])
def test_an_unrounded_number_undoes_the_coordinate_and_stays_in_the_range(scale, integer):
    dimension = Dimension("n", scale, 1.0, 8.0, integer=integer)
    for number in (1, 3, 8):
        assert dimension.to_number(dimension.to_unit(number)) == pytest.approx(number)
    assert (dimension.to_number(0.0), dimension.to_number(1.0)) == pytest.approx((1.0, 8.0))
    between = dimension.to_number((dimension.to_unit(3) + dimension.to_unit(4)) / 2.0)
    assert 3.0 < between < 4.0


def test_every_integer_and_every_choice_owns_an_equal_bin():
    steps = [(index + 0.5) / 60 for index in range(60)]
    assert [Dimension("x", "lin", 1, 6, integer=True).to_value(u) for u in steps] == [
        1 + index // 10 for index in range(60)
    ]
    assert [Dimension("x", "categorical", choices=("a", "b", "c")).to_value(u) for u in steps] == [
        "abc"[index // 20] for index in range(60)
    ]


def test_every_choice_owns_a_part_in_proportion_to_its_weight():
    weighted = Dimension("x", "categorical", choices=("a", "b", "c"), weights=(1, 2, 7))
    drawn = [weighted.to_value((index + 0.5) / 1000) for index in range(1000)]
    assert [drawn.count(choice) for choice in "abc"] == [100, 200, 700]
    assert [weighted.to_value(end) for end in (0.0, 1.0)] == ["a", "c"]
    assert weighted.to_unit("c") == pytest.approx(0.65)
    assert weighted.bins == 3
    assert weighted.describe() == "choice ['a', 'b', 'c'] weights [1, 2, 7]"
    assert weighted.make_grid(3) == [weighted.to_unit(choice) for choice in "abc"]


@pytest.mark.parametrize(
    "weights",
    [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan")), (1.0, float("inf")), (1.0, 1e-4)],
)
def test_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(UserError, match=r"x: [\s\S]*weight[\s\S]*to do"):
        Dimension("x", "categorical", choices=("a", "b"), weights=weights)
    with pytest.raises(UserError, match="range of numbers"):
        Dimension("x", "lin", 0.0, 1.0, weights=(1.0, 2.0))


@settings(max_examples=100, deadline=None)
@given(dimensions())
def test_a_bin_is_the_part_that_its_value_owns(dimension):
    if dimension.bins is None or dimension.bins > 60:
        return
    fine = [dimension.to_value((index + 0.5) / 4000) for index in range(4000)]
    for value in set(fine):
        low, high = dimension.get_bin(dimension.to_unit(value))
        assert (low, high) == pytest.approx(
            (fine.index(value) / 4000, (fine.index(value) + fine.count(value)) / 4000), abs=1 / 2000
        )


def test_every_declared_parameter_starts_at_its_default():
    for spec in SPECS:
        dimension = make_dimension(spec, steps=320)
        assert dimension.to_value(dimension.to_unit(dimension.start)) == spec.for_run(320).default


def test_a_parameter_of_the_run_needs_the_runs_steps():
    spec = next(spec for spec in SPECS if spec.of_run)
    assert make_dimension(spec, steps=1000).low == round(spec.low * 1000)
    with pytest.raises(ValueError, match="steps"):
        make_dimension(spec)


def parsed(text, declared=None, start=None):
    return parse_sweep(OverridesParser.create().parse_override(text), declared, start)


def test_hydra_sweep_syntax_makes_dimensions():
    log = Dimension("x", "log", 1.0, 10.0)
    assert parsed("x=interval(10,100)") == Dimension("x", "lin", 10.0, 100.0)
    assert parsed("x=tag(log, interval(10,100))") == Dimension("x", "log", 10.0, 100.0)
    assert parsed("x=interval(10,100)", log) == Dimension("x", "log", 10.0, 100.0)
    assert parsed("x=tag(lin, interval(10,100))", log) == Dimension("x", "lin", 10.0, 100.0)
    assert parsed("x=int(interval(4,16))") == Dimension("x", "lin", 4, 16, integer=True)
    assert parsed("x=interval(4,16)", start=8) == Dimension(
        "x", "lin", 4.0, 16.0, integer=True, start=8
    )
    assert parsed("x=range(1,5)") == Dimension("x", "lin", 1, 4, integer=True)
    assert parsed("x=range(0,1,0.25)").choices == (0.0, 0.25, 0.5, 0.75)
    assert parsed("x=choice(a,b)", start="b") == Dimension(
        "x", "categorical", choices=("a", "b"), start="b"
    )
    assert parsed("x=1,2,true").choices == (1, 2, True)


def test_the_old_plugins_parametrization_makes_dimensions():
    entry = {"lower": 1, "upper": 100, "log": True, "init": 10}
    assert parse_parametrization("x", entry, None) == Dimension("x", "log", 1, 100, start=10)
    with pytest.raises(UserError, match="parametrization x"):
        parse_parametrization("x", {"lower": 1}, None)


def test_the_parametrization_takes_weighted_choices():
    config = OmegaConf.create({"choices": ["a", 2, True], "weights": [1, 2, 0.5], "init": 2})
    expected = Dimension(
        "x", "categorical", choices=("a", 2, True), weights=(1.0, 2.0, 0.5), start=2
    )
    assert parse_parametrization("x", config, None) == expected
    assert parse_parametrization("x", {"choices": ["a", "b"]}, "b") == Dimension(
        "x", "categorical", choices=("a", "b"), start="b"
    )
    for wrong in (
        {"choices": "ab"},
        {"choices": ["a", "b"], "weights": ["1", "2"]},
        {"choices": ["a", "b"], "weights": 2},
        {"choices": ["a", "b"], "init": "c"},
        {"choices": ["a", "b"], "lower": 0},
        {"choices": ["a", "b"], "weights": [1, 2, 3]},
        {"choices": []},
    ):
        with pytest.raises(UserError, match=r"x[\s\S]*to do"):
            parse_parametrization("x", wrong, None)


@pytest.mark.parametrize(
    "text",
    [
        "x=interval(3,3)",
        "x=interval(5,1)",
        "x=interval(-1e308,1e308)",
        "x=tag(log, interval(0,1))",
        "x=tag(ordered, interval(0,1))",
    ],
)
def test_a_range_that_makes_no_sense_is_refused(text):
    with pytest.raises(UserError, match="to do"):
        parsed(text)


def test_unknown_names_are_refused_with_near_ones():
    known = [spec.name for spec in SPECS]
    assert expand_patterns(["synapse.*"], known) == known
    with pytest.raises(UserError, match=r"synapse\.vesicles\.tau_rrp"):
        expand_patterns(["synapse.vesicle.tau_rrp"], known)


def test_parameters_without_effect_are_refused_with_the_reason():
    with pytest.raises(UserError, match="experts is 1"):
        refuse_unused(["a", "b"], {"b": "model.experts is 1"})


def test_an_empty_space_is_refused():
    with pytest.raises(UserError, match="empty"):
        make_space([])


def test_a_decay_is_linear_in_minus_the_log_of_what_is_lost():
    dimension = make_dimension(
        next(spec for spec in SPECS if spec.name == "synapse.postsynaptic.post_fast_decay")
    )
    assert dimension.scale == "decay"
    assert [dimension.to_value(unit) for unit in (0.0, 1.0)] == [0.7, 0.9999]
    assert 1.0 - dimension.to_value(0.5) == pytest.approx((0.3 * 1e-4) ** 0.5, rel=1e-3)
    assert "decay [0.7, 0.9999]" in dimension.describe()


def test_a_decay_up_to_one_is_refused():
    with pytest.raises(UserError, match="below 1 on a decay scale"):
        Dimension("x", "decay", 0.5, 1.0)


def test_a_stored_decay_is_read_back_with_its_scale():
    dimension = Dimension("x", "decay", 0.7, 0.9999, start=0.95)
    stored = json.loads(distribution_to_json(make_distribution(dimension)))
    read = _build_dimension(
        "x", stored, value=0.95, is_middle=False, described=dimension.describe()
    )
    assert read == dimension
