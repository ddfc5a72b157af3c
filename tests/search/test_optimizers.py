"""One contract over every optimizer, and what is particular to each."""

import math
import pickle
import random

import numpy as np
import pytest

from synaptune.errors import UserError
from synaptune.search.optimizers import STEP, Engine, Told, make_optimizer
from synaptune.search.space import Dimension, Space

NAMES = ["cma", "random", "grid", "OnePlusOne", "PSO"]
SPACE = Space(
    (
        Dimension("a", "lin", 0.0, 1.0, start=0.3),
        Dimension("b", "log", 1.0, 100.0, start=20.0),
        Dimension("c", "lin", 1, 9, integer=True, start=4),
        Dimension("d", "categorical", choices=("u", "v")),
    )
)


def bowl(unit):
    return sum((u - 0.7) ** 2 for u in unit)


def run(optimizer, generations, loss=bowl):
    seen = []
    for _ in range(generations):
        units = [optimizer.ask() for _ in range(optimizer.generation_size)]
        optimizer.tell([Told(unit, loss(unit)) for unit in units])
        seen += units
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_points_lie_in_the_unit_box_and_repeat_with_the_seed(name):
    points = run(make_optimizer(Engine(name, 3, budget=50), SPACE), 3)
    assert all(len(unit) == 4 and all(0.0 <= u <= 1.0 for u in unit) for unit in points)
    assert run(make_optimizer(Engine(name, 3, budget=50), SPACE), 3) == points


@pytest.mark.parametrize("name", NAMES)
def test_reseeding_inside_the_objective_changes_nothing(name):
    def reseeding(unit):
        random.seed(0)
        np.random.seed(0)
        return bowl(unit)

    assert run(make_optimizer(Engine(name, 1), SPACE), 4, reseeding) == run(make_optimizer(Engine(name, 1), SPACE), 4)


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_leaves_the_global_random_state_alone(name):
    random.seed(5)
    np.random.seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist()
    run(make_optimizer(Engine(name, 1), SPACE), 2)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_pickled_optimizer_goes_on_identically(name):
    optimizer = make_optimizer(Engine(name, 1), SPACE)
    run(optimizer, 3 if name != "grid" else 1)
    copy = pickle.loads(pickle.dumps(optimizer))
    assert run(copy, 2) == run(optimizer, 2)


@pytest.mark.parametrize("name", NAMES)
def test_failures_and_foreign_points_are_taken_in(name):
    optimizer = make_optimizer(Engine(name, 1), SPACE)
    size = optimizer.generation_size
    optimizer.tell([Told((0.1, 0.2, 0.3, 0.4), None)] * size)
    optimizer.tell([Told((0.1 * index / size, 0.2, 0.3, 0.4), float(index)) for index in range(size)])
    assert optimizer.ask() is not None


def test_cma_begins_at_the_start_with_a_step_of_a_fifth():
    space = Space(tuple(Dimension(f"x{index}", "lin", 0.0, 1.0, start=0.45) for index in range(10)))
    units = [make_optimizer(Engine("cma", seed), space) for seed in range(20)]
    firsts = [[optimizer.ask() for _ in range(optimizer.generation_size)] for optimizer in units]
    assert all(generation[0] == pytest.approx((0.45,) * 10) for generation in firsts)
    assert len(firsts[0]) == 4 + int(3 * math.log(10))
    others = np.array([unit for generation in firsts for unit in generation[1:]])
    assert others.std() == pytest.approx(STEP, rel=0.1)


@pytest.mark.parametrize("dimension", [1, 5])
def test_cma_finds_the_bottom_of_a_bowl(dimension):
    space = Space(tuple(Dimension(f"x{index}", "lin", 0.0, 1.0) for index in range(dimension)))
    points = run(make_optimizer(Engine("cma", 0), space), 60)
    assert min(map(bowl, points)) < 1e-6


def test_cma_keeps_reaching_the_neighbours_of_an_integer():
    space = Space((Dimension("n", "lin", 1, 8, integer=True), Dimension("x", "lin", 0.0, 1.0)))
    points = run(make_optimizer(Engine("cma", 0), space), 60, lambda unit: (unit[0] - 0.5) ** 2 + (unit[1] - 0.5) ** 2)
    late = [space.values(unit)["n"] for unit in points[-60:]]
    assert len(set(late)) > 1


def test_cma_ranks_failures_last():
    space = Space(tuple(Dimension(f"x{index}", "lin", 0.0, 1.0) for index in range(3)))
    failing = [Engine("cma", 0), lambda unit: None if unit[0] < 0.5 else bowl(unit)]
    points = run(make_optimizer(failing[0], space), 30, failing[1])
    assert np.mean([unit[0] < 0.5 for unit in points[-30:]]) < 0.1
    assert bowl(points[-1]) < 0.01


def test_grid_takes_every_combination_once():
    optimizer = make_optimizer(Engine("grid", 0, grid_points=3), SPACE)
    points = []
    while (unit := optimizer.ask()) is not None:
        points.append(tuple(SPACE.values(unit).values()))
    assert len(points) == len(set(points)) == 3 * 3 * 3 * 2
    assert {point[1] for point in points} == {1.0, 10.0, 100.0}


def test_an_unknown_algorithm_is_refused_with_near_names():
    with pytest.raises(UserError, match="OnePlusOne"):
        make_optimizer(Engine("OnePlusOn", 0), SPACE)
