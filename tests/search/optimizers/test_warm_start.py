"""A search that begins where another study ended."""

import pytest

from synaptune.core.errors import UserError
from synaptune.search.optimizers.base import Observation
from synaptune.search.optimizers.warm_start import EarlierTrial, warm_start
from synaptune.search.space.space import Dimension, Space

SPACE = Space(
    (
        Dimension("a", "lin", 0.0, 1.0, start=0.3),
        Dimension("b", "log", 1.0, 100.0, start=20.0),
        Dimension("c", "lin", 1, 9, integer=True, start=4),
        Dimension("d", "categorical", choices=("u", "v"), start="u"),
    )
)


def start_after(**values):
    space = warm_start(SPACE, [EarlierTrial(values, 1.0)], "old").space
    return space.to_values(space.get_start())


def test_the_start_is_the_best_of_the_other_study():
    trials = [
        EarlierTrial({"a": 0.1, "b": 10.0, "c": 2, "d": "u"}, 3.0),
        EarlierTrial({"a": 0.9, "b": 50.0, "c": 8, "d": "v"}, 1.0),
        EarlierTrial({"a": 0.5, "b": 50.0, "c": 8, "d": "v"}, 1.0),
        EarlierTrial({"a": 0.2, "b": 10.0, "c": 2, "d": "u"}, None),
    ]
    space = warm_start(SPACE, trials, "old").space
    assert space.to_values(space.get_start()) == trials[1].values
    assert [replaced.describe() for replaced in space.dimensions] == [
        dimension.describe() for dimension in SPACE.dimensions
    ]


def test_values_outside_are_clipped_and_missing_ones_keep_their_start():
    assert start_after(a=7.0) == {"a": 1.0, "b": 20.0, "c": 4, "d": "u"}
    assert start_after(b=0.001, c=40, other=3.0) == {"a": 0.3, "b": 1.0, "c": 9, "d": "u"}
    assert start_after(a=0.5, d="gone") == {"a": 0.5, "b": 20.0, "c": 4, "d": "u"}
    assert start_after(a="text", b=3.0) == {"a": 0.3, "b": 3.0, "c": 4, "d": "u"}


def test_prior_points_are_the_trials_inside_the_space():
    trials = [
        EarlierTrial({"a": 0.1, "b": 10.0}, 3.0),
        EarlierTrial({"a": 2.0, "b": 10.0}, 1.0),
        EarlierTrial({"a": 0.2, "b": 10.0, "d": "gone"}, 2.0),
    ]
    started, prior = warm_start(SPACE, [*trials, EarlierTrial({"a": 0.4}, None)], "old")
    begin = started.to_values(started.get_start())
    assert prior == (
        Observation(started.to_unit({**begin, "a": 0.1}), 3.0),
        Observation(started.to_unit({**begin, "a": 0.4}), None),
    )


@pytest.mark.parametrize(
    "trials", [[], [EarlierTrial({"a": 0.1}, None)], [EarlierTrial({"z": 0.1}, 1.0)]]
)
def test_a_study_that_says_nothing_about_the_space_is_refused(trials):
    with pytest.raises(UserError, match=r"search\.start=old[\s\S]*to do"):
        warm_start(SPACE, trials, "old")
