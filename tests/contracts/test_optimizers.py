"""One contract over every optimizer, and what is particular to each."""

import itertools
import math
import pickle
import random

import numpy as np
import pytest
import torch

from synaptune.core.errors import UserError
from synaptune.search.optimizers.auto import resolve_engine
from synaptune.search.optimizers.cma import HALF_BIN, INITIAL_STEP, compute_min_steps
from synaptune.search.optimizers.registry import Engine, Observation, make_optimizer
from synaptune.search.space.space import Dimension, Space

NAMES = ["cma", "global cma", "random", "grid", "OnePlusOne", "PSO", "tpe", "gp", "cmaes", "qmc"]
NAMES += ["auto", "pbt"]
SPACE = Space(
    (
        Dimension("a", "lin", 0.0, 1.0, start=0.3),
        Dimension("b", "log", 1.0, 100.0, start=20.0),
        Dimension("c", "lin", 1, 9, integer=True, start=4),
        Dimension("d", "categorical", choices=("u", "v")),
    )
)
WARM_UP = {"tpe": 14, "gp": 12, "auto": 12, "PSO": 45}  # asks until losses count


def make(name, seed=1, space=SPACE, **settings):
    """Make an optimizer; the global cma begins with a design, as new searches do."""
    if name == "global cma":
        settings |= {"start_design": "sobol", "restarts": 2}
    if name == "auto":
        settings = {"start_design": "sobol", "budget": 60} | settings
    if name == "pbt":
        settings = settings | {"budget": 300, "slices": 60, "population": 5}
    return make_optimizer(Engine(name.removeprefix("global "), seed, **settings), space)


def worn_in(name, generations=3, space=SPACE, **settings):
    """An optimizer past its first points."""
    optimizer = make(name, space=space, **settings)
    run(optimizer, 1 if name == "grid" else WARM_UP.get(name, generations))
    return optimizer


def bowl(unit):
    return sum((u - 0.7) ** 2 for u in unit)


def run(optimizer, generations, loss=bowl):
    seen = []
    for _ in range(generations):
        units = [optimizer.ask() for _ in range(optimizer.generation_size)]
        optimizer.tell([Observation(unit, loss(unit)) for unit in units])
        seen += units
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_points_lie_in_the_unit_box_and_repeat_with_the_seed(name):
    count = WARM_UP.get(name, 3)
    points = run(make(name, 3, budget=50), count)
    assert all(len(unit) == 4 and all(0.0 <= u <= 1.0 for u in unit) for unit in points)
    assert run(make(name, 3, budget=50), count) == points


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"grid"}))
def test_another_seed_makes_other_points(name):
    assert run(make(name, 4), 3)[1:] != run(make(name, 5), 3)[1:]


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"grid", "random"}))
def test_the_first_point_is_the_start_and_comes_once(name):
    points = run(make(name), 4)
    assert SPACE.to_values(points[0]) == SPACE.to_values(SPACE.get_start())
    # A member of pbt keeps its point through all slices.
    assert name == "pbt" or points.count(points[0]) == 1


@pytest.mark.parametrize("name", NAMES)
def test_only_what_learns_asks_differently_after_other_losses(name):
    bottom, top = (make(name) for _ in range(2))
    count = WARM_UP.get(name, 1 if name == "grid" else 4)
    differs = run(bottom, count) != run(top, count, lambda unit: -bowl(unit))
    assert differs == bottom.learns
    assert bottom.learns == (name not in ("random", "grid", "qmc"))


@pytest.mark.parametrize("name", NAMES)
def test_reseeding_inside_the_objective_changes_nothing(name):
    def reseeding(unit):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        return bowl(unit)

    count = WARM_UP.get(name, 4)
    assert run(make(name), count, reseeding) == run(make(name), count)


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_leaves_the_global_random_state_alone(name):
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    worn_in(name, 2)
    assert (
        random.getstate(),
        np.random.get_state()[1].tolist(),
        torch.get_rng_state().tolist(),
    ) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_pickled_optimizer_goes_on_identically(name):
    optimizer = make(name)
    for _ in range(WARM_UP.get(name, 5)):
        copy = pickle.loads(pickle.dumps(optimizer))
        assert run(copy, 1) == (points := run(optimizer, 1))
    assert points


@pytest.mark.parametrize("name", NAMES)
def test_failures_and_foreign_points_are_taken_in(name):
    optimizer = make(name)
    size = optimizer.generation_size
    optimizer.tell([Observation((0.1, 0.2, 0.3, 0.4), None)] * size)
    for generation in range(12):
        optimizer.tell(
            [
                Observation((0.1 * index / size, 0.2 + generation / 40, 0.3, 0.4), float(index))
                for index in range(size)
            ]
        )
    assert optimizer.ask() is not None
    optimizer.tell([Observation((0.6, 0.2, 0.3, 0.4), 1.0)] * size)  # what was asked stays untold
    copy = pickle.loads(pickle.dumps(optimizer))
    assert copy.ask() == optimizer.ask()


@pytest.mark.parametrize("name", ["cma", "cmaes", "tpe", "gp", "OnePlusOne"])
def test_a_search_avoids_where_trials_fail(name):
    space = Space(tuple(Dimension(f"x{index}", "lin", 0.0, 1.0) for index in range(2)))
    points = run(
        make_optimizer(Engine(name, 0), space),
        {"cma": 15, "cmaes": 15, "gp": 25}.get(name, 60),
        failing_left,
    )
    assert np.mean([failing_left(unit) is None for unit in points[-10:]]) < 0.3
    assert min(bowl(unit) for unit in points[-10:]) < 0.05


def failing_left(unit):
    return None if unit[0] < 0.5 else bowl(unit)


def test_cma_begins_at_the_start_with_a_step_of_a_fifth():
    space = Space(tuple(Dimension(f"x{index}", "lin", 0.0, 1.0, start=0.45) for index in range(10)))
    units = [make_optimizer(Engine("cma", seed), space) for seed in range(20)]
    firsts = [[optimizer.ask() for _ in range(optimizer.generation_size)] for optimizer in units]
    assert all(generation[0] == pytest.approx((0.45,) * 10) for generation in firsts)
    assert len(firsts[0]) == 4 + int(3 * math.log(10))
    others = np.array([unit for generation in firsts for unit in generation[1:]])
    assert others.std() == pytest.approx(INITIAL_STEP, rel=0.1)


def test_a_global_cma_begins_in_the_whole_box_and_then_near_its_best_points():
    space = Space(tuple(Dimension(f"x{index}", "lin", 0.0, 1.0, start=0.9) for index in range(10)))
    optimizer = make("global cma", space=space, budget=60)
    design = run(optimizer, 2)
    assert design[0] == (0.9,) * 10
    assert len(set(design)) == 20
    assert all(np.array(design)[:, axis].std() > 0.22 for axis in range(10))
    mean, covariance = optimizer.get_distribution()
    best = sorted(design, key=bowl)[:5]
    assert np.abs(mean - np.mean(best, axis=0)).max() < 0.15
    deviations = np.sqrt(np.diag(covariance))
    assert np.all((deviations > 0.1) & (deviations < 0.33))
    assert np.mean(list(map(bowl, run(optimizer, 2)))) < 0.9 * np.mean(list(map(bowl, design)))


def test_a_converged_cma_restarts_with_twice_the_population_and_stops_when_none_is_left():
    space = Space(tuple(Dimension(f"x{index}", "lin", 0.0, 1.0) for index in range(2)))
    optimizer = make("global cma", space=space)  # two restarts
    steps = []
    for _ in range(600):
        run(optimizer, 1)
        steps.append(optimizer.get_diagnostics().step)
    rises = [later for earlier, later in itertools.pairwise(steps) if later > 30 * earlier]
    assert len(rises) == 2
    assert all(0.1 < step < 0.5 for step in rises)


def test_population_and_step_are_settable_and_checked():
    assert make("cma", population=16).generation_size == 16
    assert make("cma", population=16, workers=5).generation_size == 20
    narrow, wide = (
        np.std(run(make("cma", step=step, population=50), 1), axis=0)[0] for step in (0.02, 0.2)
    )
    assert wide > 5 * narrow
    with pytest.raises(UserError) as refused:
        make("cma", population=2, step=0.0, restarts=-1, start_design="sobel")
    assert all(
        word in str(refused.value) for word in ("population=2", "step=0", "restarts=-1", "sobel")
    )


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({"budget": 40}, "gp"),
        ({"budget": 200}, "gp"),
        ({"budget": 201}, "cma"),
        ({"budget": None}, "cma"),
        ({"budget": 40, "workers": 16}, "cma"),
    ],
)
def test_auto_chooses_by_budget_and_workers_and_says_why(settings, chosen):
    engine, reason = resolve_engine(Engine("auto", 3, **settings))
    assert (engine.name, engine.seed, engine.budget) == (chosen, 3, settings["budget"])
    assert reason.startswith(f"auto: {chosen} for ")
    assert resolve_engine(engine) == (engine, "")


@pytest.mark.parametrize("dimension", [1, 5])
def test_cma_finds_the_bottom_of_a_bowl(dimension):
    space = Space(tuple(Dimension(f"x{index}", "lin", 0.0, 1.0) for index in range(dimension)))
    points = run(make_optimizer(Engine("cma", 0), space), 60)
    assert min(map(bowl, points)) < 1e-6


@pytest.mark.parametrize("start", [4, 500])
@pytest.mark.parametrize("design", ["sobol", "defaults"])
def test_cma_starts_in_a_narrow_bin_at_the_end_of_a_range(start, design):
    narrow = Dimension("interval", "log", 4, 500, integer=True, start=start)
    space = Space((narrow, Dimension("x", "lin", 0.0, 1.0)))
    points = run(make_optimizer(Engine("cma", 0, start_design=design), space), 8)
    assert len({space.to_values(unit)["interval"] for unit in points}) > 3


def test_cma_keeps_reaching_the_neighbours_of_an_integer():
    space = Space((Dimension("n", "lin", 1, 8, integer=True), Dimension("x", "lin", 0.0, 1.0)))
    points = run(
        make_optimizer(Engine("cma", 0), space),
        60,
        lambda unit: (unit[0] - 0.5) ** 2 + (unit[1] - 0.5) ** 2,
    )
    late = [space.to_values(unit)["n"] for unit in points[-60:]]
    assert len(set(late)) > 1


@pytest.mark.parametrize("workers", [1, 4, 7, 30])
@pytest.mark.parametrize("name", ["cma", "cmaes"])
def test_a_population_leaves_no_worker_waiting(name, workers):
    size = make_optimizer(Engine(name, 0, workers=workers), SPACE).generation_size
    assert size % workers == 0
    assert 8 <= size < 8 + workers


@pytest.mark.parametrize("name", ["tpe", "gp", "OnePlusOne"])
def test_a_sequential_model_learns_after_every_worker(name):
    optimizer = make_optimizer(Engine(name, 0, workers=3), SPACE)
    assert optimizer.generation_size == 3
    assert len(set(run(optimizer, 6))) > 12


def test_cma_outlives_convergence():
    space = Space(tuple(Dimension(f"x{index}", "lin", 0.0, 1.0) for index in range(2)))
    points = run(make_optimizer(Engine("cma", 0), space), 400)
    assert bowl(points[-1]) < 1e-12


def test_a_long_search_does_not_swell_its_state():
    for name in ("cma", "cmaes"):
        optimizer = worn_in(name, 30)
        before = len(pickle.dumps(optimizer))
        run(optimizer, 60)
        assert len(pickle.dumps(optimizer)) < 1.5 * before


def test_the_state_of_a_model_grows_by_little_more_than_its_numbers():
    space = Space(tuple(Dimension(f"x{index}", "lin", 0.0, 1.0) for index in range(48)))
    stream = np.random.default_rng(0)
    prior = [Observation(tuple(stream.random(48).tolist()), 1.0) for _ in range(300)]
    sizes = [
        len(pickle.dumps(make_optimizer(Engine("tpe", 0), space, prior[:count])))
        for count in (100, 300)
    ]
    assert (sizes[1] - sizes[0]) / 200 < 2 * 48 * 8


@pytest.mark.parametrize("weights", [(), (1.0, 1.0, 8.0), (8.0, 1.0, 1.0)])
@pytest.mark.parametrize("wanted", ["u", "v", "w"])
def test_cma_keeps_trying_every_neighbour_of_a_choice(weights, wanted):
    choice = Dimension("d", "categorical", choices=("u", "v", "w"), weights=weights)
    space = Space((choice, Dimension("x", "lin", 0.0, 1.0)))
    points = run(
        make_optimizer(Engine("cma", 0), space),
        80,
        lambda unit: (choice.to_value(unit[0]) != wanted) + (unit[1] - 0.5) ** 2,
    )
    late = [choice.to_value(unit[0]) for unit in points[-120:]]
    assert late.count(wanted) > 30
    assert len(set(late)) > 1


@pytest.mark.parametrize(
    "dimension",
    [
        Dimension("d", "categorical", choices=("u", "v", "w"), weights=(1.0, 1.0, 8.0)),
        Dimension(
            "d", "categorical", choices=tuple("abcdef"), weights=(0.01, 1.0, 0.1, 5.0, 0.01, 1.0)
        ),
        Dimension("n", "lin", 1, 8, integer=True),
        Dimension("n", "log", 1, 64, integer=True),
    ],
)
def test_at_least_a_sixth_of_the_draws_leave_the_bin_of_the_mean(dimension):
    draws = np.random.default_rng(0).standard_normal(4000)
    for mean in np.linspace(0.001, 0.999, 41):
        low, high = dimension.get_bin(mean)
        (step, companion) = compute_min_steps(Space((dimension,)), [mean])
        points = mean + step * draws
        assert companion == 0.0
        assert step >= HALF_BIN * min(high - low, 0.01 / 7.12)
        assert np.mean((points < low) | (points > high)) > 0.14


def test_typed_samplers_see_the_types():
    for name in ("tpe", "gp"):
        points = run(make(name, 2), WARM_UP[name])
        assert all(
            unit == pytest.approx(SPACE.to_unit(SPACE.to_values(unit)), abs=1e-5) for unit in points
        )
        assert all(unit[2:] == SPACE.to_unit(SPACE.to_values(unit))[2:] for unit in points)


def test_prior_points_spare_a_model_its_random_ones():
    space = Space(tuple(Dimension(f"x{index}", "lin", 0.0, 1.0) for index in range(2)))
    stream = np.random.default_rng(0)
    prior = [Observation(unit, bowl(unit)) for unit in map(tuple, stream.random((40, 2)).tolist())]
    for name in ("tpe", "gp"):
        knowing = [
            run(make_optimizer(Engine(name, seed), space, prior), 6)[1:] for seed in range(4)
        ]
        blank = [run(make_optimizer(Engine(name, seed), space), 6)[1:] for seed in range(4)]
        assert np.mean([bowl(unit) for points in knowing for unit in points]) < 0.5 * np.mean(
            [bowl(unit) for points in blank for unit in points]
        )
    for name in ("cma", "random", "cmaes", "qmc"):
        assert run(make_optimizer(Engine(name, 0), space, prior), 2) == run(
            make_optimizer(Engine(name, 0), space), 2
        )


def test_grid_takes_every_combination_once():
    optimizer = make_optimizer(Engine("grid", 0, grid_points=3), SPACE)
    points = []
    while (unit := optimizer.ask()) is not None:
        points.append(tuple(SPACE.to_values(unit).values()))
    assert len(points) == len(set(points)) == 3 * 3 * 3 * 2
    assert {point[1] for point in points} == {1.0, 10.0, 100.0}


def test_an_unknown_algorithm_is_refused_with_near_names():
    with pytest.raises(UserError, match="OnePlusOne"):
        make_optimizer(Engine("OnePlusOn", 0), SPACE)
    with pytest.raises(UserError, match="tpe, gp, cmaes, qmc"):
        make_optimizer(Engine("tpee", 0), SPACE)
