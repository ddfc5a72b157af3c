"""One contract over every mechanism of the synapse; tests/synapse holds what is particular to one.

A mechanism is a pure function of parameters, state and inputs. It leaves its arguments alone,
repeats bit for bit, stays within its bounds and has finite gradients at the corners of its
parameters' ranges, and every parameter that it declares changes its result. The last test requires
that every parameter of the synapse belongs to a mechanism.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from helpers.mechanisms import BY_LABEL, DRAWN, MAX_CORNERS, MECHANISMS, STRUCTURE, Draw, Mechanism
from synaptune.synapse.circuit import SPECS
from synaptune.synapse.release import draw_noise

every_mechanism = pytest.mark.parametrize("mechanism", MECHANISMS, ids=str)
every_tick = pytest.mark.parametrize("tokens", [1, 2, 5, 16])


def make_values(points: Sequence[dict[str, float]], dtype=torch.float64) -> dict[str, Tensor]:
    """Every parameter by label, one value for each point: the defaults, and what a point sets."""
    return {
        label: torch.tensor([float(point.get(label, spec.default)) for point in points]).to(dtype)
        for label, spec in BY_LABEL.items()
    }


def list_corners(mechanism: Mechanism) -> list[dict[str, float]]:
    """Each parameter at its low or its high end: all combinations, or MAX_CORNERS random ones."""
    ends = [(BY_LABEL[label].low, BY_LABEL[label].high) for label in mechanism.parameters]
    if 2 ** len(ends) <= MAX_CORNERS:
        corners = list(itertools.product(*ends))
    else:
        stream = random.Random(0)
        corners = [tuple(map(stream.choice, ends)) for _ in range(MAX_CORNERS)]
    return [dict(zip(mechanism.parameters, corner, strict=True)) for corner in corners]


def apply(mechanism: Mechanism, values: dict[str, Tensor], state: Any, inputs: Any, tokens: int):
    """The step at every point at once; the first axis of every tensor counts the points."""

    def step(values, state, inputs):
        params = SimpleNamespace()
        for label, value in values.items():
            subsystem = BY_LABEL[label].subsystem
            if not hasattr(params, subsystem):
                setattr(params, subsystem, SimpleNamespace())
            setattr(getattr(params, subsystem), label, value)
        return mechanism.step(params, state, inputs, tokens)

    return torch.func.vmap(step)(values, state, inputs)


def repeat(tree: Any, count: int) -> Any:
    """The same tensors at every point."""
    return tree_map(lambda tensor: tensor.expand(count, *tensor.shape).clone(), tree)


def make_point(mechanism: Mechanism, count: int, dtype=torch.float64, seed: int = 0):
    draw = Draw(seed, dtype)
    state, inputs = mechanism.make_state(draw), mechanism.make_inputs(draw)
    return repeat(state, count), repeat(inputs, count)


@every_tick
@every_mechanism
def test_a_step_leaves_its_arguments_alone_and_repeats_bit_for_bit(mechanism, tokens):
    values = make_values([{}])
    arguments = (values, *make_point(mechanism, 1))
    before = tree_map(torch.clone, arguments)
    results = [apply(mechanism, *arguments, tokens) for _ in range(2)]
    for old, new in zip(tree_leaves(before), tree_leaves(arguments), strict=True):
        assert torch.equal(old, new)
    for first, second in zip(*map(tree_leaves, results), strict=True):
        assert torch.equal(first, second)


@every_tick
@every_mechanism
def test_states_stay_within_their_bounds_at_the_corners_of_the_ranges(mechanism, tokens):
    """Random inputs for 200 ticks at every corner."""
    corners = list_corners(mechanism)
    values, draw = make_values(corners), Draw(1, torch.float64)
    state = repeat(mechanism.make_state(draw), len(corners))
    for _ in range(200):
        inputs = repeat(mechanism.make_inputs(draw), len(corners))
        after, results = apply(mechanism, values, state, inputs, tokens)
        assert all(leaf.isfinite().all() for leaf in tree_leaves((after, results)))
        mechanism.check(values, state, after, results, tokens)
        if not isinstance(state, Tensor) and not state:
            return
        state = after


@every_tick
@every_mechanism
def test_every_parameter_of_a_mechanism_changes_its_result(mechanism, tokens):
    """From a random state with random inputs, its low end against its high end."""
    points = [
        {label: end}
        for label in mechanism.parameters
        for end in (BY_LABEL[label].low, BY_LABEL[label].high)
    ]
    after = apply(mechanism, make_values(points), *make_point(mechanism, len(points)), tokens)
    changed = {
        label
        for index, label in enumerate(mechanism.parameters)
        if any(not torch.equal(leaf[2 * index], leaf[2 * index + 1]) for leaf in tree_leaves(after))
    }
    assert changed == set(mechanism.parameters)


@pytest.mark.parametrize("tokens", [1, 16])
@every_mechanism
def test_gradients_are_finite_at_the_corners_of_the_ranges(mechanism, tokens):
    """Of the parameters, the state and the inputs, in the precision of a training."""
    corners = list_corners(mechanism)
    values = make_values(corners, torch.float32)
    state, inputs = make_point(mechanism, len(corners), torch.float32)
    leaves = tree_leaves((values, state, inputs))
    for leaf in leaves:
        leaf.requires_grad_()
    results = tree_leaves(apply(mechanism, values, state, inputs, tokens))
    total = sum(leaf.sum() for leaf in results if leaf.requires_grad)
    for gradient in torch.autograd.grad(total, leaves, allow_unused=True):
        assert gradient is None or gradient.isfinite().all()


def test_the_noise_of_release_has_the_share_of_its_parameter():
    spec = BY_LABEL["stochastic_train_frac"]
    for fraction in (spec.low, spec.default, spec.high):
        generator = torch.Generator().manual_seed(0)
        noise = draw_noise((1, 1, 100, 1000), fraction, generator, torch.zeros(()))
        assert float((noise != 0.0).float().mean()) == pytest.approx(fraction, abs=0.01)
        assert noise.isfinite().all()


def test_every_parameter_of_the_synapse_belongs_to_a_mechanism():
    covered = {label for mechanism in MECHANISMS for label in mechanism.parameters}
    assert covered | STRUCTURE | DRAWN == set(BY_LABEL)
    assert len(BY_LABEL) == len(SPECS)
