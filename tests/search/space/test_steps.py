"""Integers with a step: bins of equal width, whole multiples, and the same space after storage."""

import pytest

from synaptune.core.errors import UserError
from synaptune.search.optimizers.base import Engine
from synaptune.search.optimizers.registry import make_optimizer
from synaptune.search.space.space import Dimension, Space
from synaptune.study.location import StudyLocation
from synaptune.study.reader import read_study
from synaptune.study.study import PhaseLedger, Study

STEPPED = Dimension("n", "lin", -4, 11, integer=True, step=5)
VALUES = [-4, 1, 6, 11]


def test_a_coordinate_belongs_to_the_bin_of_its_value():
    assert STEPPED.bins == 4
    for index, value in enumerate(VALUES):
        low, high = STEPPED.get_bin(STEPPED.to_unit(value))
        assert (low, high) == pytest.approx((index / 4, (index + 1) / 4))
        for unit in (low + 1e-9, STEPPED.to_unit(value), high - 1e-9):
            assert STEPPED.to_value(unit) == value
    assert [STEPPED.to_value(unit) for unit in STEPPED.make_grid(4)] == VALUES
    assert STEPPED.describe() == "lin int [-4, 11] step 5"
    assert Dimension("n", "lin", 0, 8, integer=True).describe() == "lin int [0, 8]"


@pytest.mark.parametrize(
    "options",
    [
        {"step": 0, "integer": True},
        {"step": 3, "integer": True},
        {"step": 2},
        {"step": 2, "integer": True, "scale": "log"},
    ],
)
def test_a_step_that_does_not_fit_is_refused(options):
    with pytest.raises(UserError, match="step"):
        Dimension(**{"name": "n", "scale": "lin", "low": 1, "high": 9} | options)


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "qmc", "cma", "OnePlusOne"])
def test_an_optimizer_returns_the_point_of_a_value(name):
    space = Space((STEPPED, Dimension("x", "lin")))
    optimizer = make_optimizer(Engine(name, 1, budget=10), space)
    for _ in range(6):
        unit = optimizer.ask()
        assert unit is not None
        assert space.to_values(unit)["n"] in VALUES


def test_a_study_gives_the_step_back(tmp_path):
    space = Space((STEPPED,))
    url = f"sqlite:///{tmp_path}/study.db"
    with Study(StudyLocation("s", tmp_path, url, "auto"), {}) as study:
        ledger = PhaseLedger(study, space, "search", {})
        ledger.start(0, (0.5,), space.to_values((0.5,)))
    assert read_study(url).spaces["search"] == space
