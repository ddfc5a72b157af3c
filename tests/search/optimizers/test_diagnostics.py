"""What the search distribution looks like, and when it is called ill."""

from dataclasses import replace

import numpy as np
import pytest

from synaptune.search.optimizers.diagnostics import (
    CONDITION_LIMIT,
    RATIO_LIMIT,
    STAGNATION_LIMIT,
    diagnose,
    find_health_warnings,
)
from synaptune.search.optimizers.registry import Engine, Observation, make_optimizer
from synaptune.search.space.space import Dimension, Space

SPACE = Space(tuple(Dimension(name, "lin", 0.0, 1.0, start=0.4) for name in "abc"))


def told(optimizer, loss, generations):
    for _ in range(generations):
        units = [optimizer.ask() for _ in range(optimizer.generation_size)]
        optimizer.tell([Observation(unit, loss(unit)) for unit in units])
    return optimizer


def test_diagnostics_describe_the_points_that_follow():
    optimizer = told(
        make_optimizer(Engine("cma", 3, workers=4000), SPACE),
        lambda unit: (unit[0] - 0.5) ** 2 + unit[1],
        1,
    )
    found = optimizer.get_diagnostics()
    points = np.array([optimizer.ask() for _ in range(optimizer.generation_size)])
    inner = np.abs(points - 0.5).max(axis=1) < 0.5
    assert found.generation == 1
    assert inner.mean() > 0.5
    wide = told(
        make_optimizer(Engine("cma", 3, workers=4000), SPACE),
        lambda unit: sum((u - 0.5) ** 2 for u in unit),
        6,
    )
    found, points = (
        wide.get_diagnostics(),
        np.array([wide.ask() for _ in range(wide.generation_size)]),
    )
    assert points.mean(axis=0) == pytest.approx(
        list(found.mean.values()), abs=4 * max(found.sigma.values()) / 60
    )
    assert points.std(axis=0) == pytest.approx(list(found.sigma.values()), rel=0.05)
    assert np.cov(points.T) == pytest.approx(
        np.array(found.covariance), abs=0.05 * max(found.eigenvalues)
    )
    assert np.corrcoef(points.T) == pytest.approx(np.array(found.correlation), abs=0.1)


def test_generations_and_stagnation_are_counted():
    optimizer = make_optimizer(Engine("cma", 0), SPACE)
    assert optimizer.get_diagnostics() is None
    assert told(optimizer, lambda unit: 1.0, 3).get_diagnostics().stagnation == 2
    assert told(optimizer, lambda unit: None, 1).get_diagnostics().stagnation == 3
    assert told(optimizer, lambda unit: 0.5, 1).get_diagnostics().stagnation == 0
    assert optimizer.get_diagnostics().generation == 5


def test_condition_and_eigenvalue_ratio_tell_scale_from_entanglement():
    def of(covariance):
        return diagnose(
            generation=1,
            names=("a", "b"),
            mean=np.zeros(2),
            step=0.2,
            covariance=np.array(covariance),
            stagnation=0,
        )

    scaled, entangled = of([[1.0, 0.0], [0.0, 1e-8]]), of([[1.0, 0.9999], [0.9999, 1.0]])
    assert (scaled.condition, scaled.eigenvalue_ratio) == pytest.approx((1e8, 1.0))
    assert entangled.eigenvalue_ratio == pytest.approx(1.9999 / 1e-4)
    assert entangled.correlation[0][1] == pytest.approx(0.9999)
    assert [line.split()[0] for line in find_health_warnings(scaled)] == ["condition"]
    assert [line.split()[0] for line in find_health_warnings(entangled)] == ["eigenvalue"]
    assert scaled.to_scalars()["sigma/b"] == pytest.approx(1e-4)


def test_each_limit_has_its_warning_and_below_it_there_is_none():
    healthy = told(
        make_optimizer(Engine("cma", 0), SPACE), lambda unit: sum(unit), 3
    ).get_diagnostics()
    assert find_health_warnings(healthy) == []
    for name, limit in (
        ("condition", CONDITION_LIMIT),
        ("eigenvalue_ratio", RATIO_LIMIT),
        ("stagnation", STAGNATION_LIMIT),
    ):
        assert find_health_warnings(replace(healthy, **{name: limit - 1})) == []
        assert len(find_health_warnings(replace(healthy, **{name: limit}))) == 1


@pytest.mark.parametrize("name", ["random", "grid", "qmc", "tpe", "cmaes", "OnePlusOne"])
def test_only_cma_has_diagnostics(name):
    assert told(make_optimizer(Engine(name, 0), SPACE), sum, 1).get_diagnostics() is None
