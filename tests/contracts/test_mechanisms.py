"""One contract over every mechanism of the synapse; tests/synapse holds what is particular to one.

A mechanism is a pure function of parameters, state and inputs. It leaves its arguments alone,
repeats bit for bit, stays within its bounds and has finite gradients at the corners of its
parameters' ranges, and every parameter that it declares changes its result. The last test requires
that every parameter of the synapse belongs to a mechanism.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from synaptune.synapse.bias import distance_bias, efficacy_bias
from synaptune.synapse.calcium import CalciumState, calcium_step
from synaptune.synapse.circuit import SPECS
from synaptune.synapse.eligibility import trace_step
from synaptune.synapse.energy import AMPA_CEILING, EnergyState, energy_step, quantal_size
from synaptune.synapse.experts import Metabolism, Routing, metabolism_step, plan_remodel
from synaptune.synapse.fast_weights import MemoryState, memory_step
from synaptune.synapse.kinase import KinaseState, gate, kinase_step
from synaptune.synapse.metaplasticity import bdnf_step, consolidate
from synaptune.synapse.priming import PrimingState, priming_step
from synaptune.synapse.release import draw_noise, release_probability, sense
from synaptune.synapse.terminal import TerminalState, efficacy, init_terminals, terminal_step
from synaptune.synapse.vesicles import VesicleState, vesicle_flow, vesicle_step

BY_LABEL = {spec.label: spec for spec in SPECS}
# These choose a shape or a moment, not a result of a step: tests/model/test_gpt.py.
STRUCTURE = {"rank_eligibility", "router_embed_dim", "structural_interval"}
# The share of random releases is read where the noise is drawn, outside the steps.
DRAWN = {"stochastic_train_frac"}
KEYS, RANK, EXPERTS = 8, 6, 4
MAX_CORNERS = 64
TOLERANCE = 1e-9


class Draw:
    """Random tensors of one point of the contract."""

    def __init__(self, seed: int, dtype: torch.dtype) -> None:
        self._generator, self._dtype = torch.Generator().manual_seed(seed), dtype

    def uniform(self, *shape: int, high: float = 1.0) -> Tensor:
        return high * torch.rand(shape, generator=self._generator, dtype=self._dtype)

    def normal(self, *shape: int, scale: float = 1.0) -> Tensor:
        return scale * torch.randn(shape, generator=self._generator, dtype=self._dtype)

    def unit(self, *shape: int) -> Tensor:
        return torch.nn.functional.normalize(self.normal(*shape), dim=-1)


@dataclass(frozen=True)
class Mechanism:
    """A mechanism under the contract.

    Attributes:
        name: what the test report calls it.
        parameters: labels of the parameters it reads.
        make_state: its state, drawn within the state's bounds; for a function without a state, ().
        make_inputs: the inputs of one tick.
        step: (parameters by subsystem, state, inputs, tokens) -> (next state, further results).
        check: (parameters, state before, state after, further results, tokens): asserts the bounds.
    """

    name: str
    parameters: tuple[str, ...]
    make_state: Callable[[Draw], Any]
    make_inputs: Callable[[Draw], tuple[Tensor, ...]]
    step: Callable[..., tuple[Any, Any]]
    check: Callable[..., None]

    def __str__(self) -> str:
        return self.name


def within(tensor: Tensor, low: float, high: float = float("inf")) -> bool:
    return bool(((tensor >= low - TOLERANCE) & (tensor <= high + TOLERANCE)).all())


def make_calcium(draw: Draw) -> CalciumState:
    return CalciumState(draw.uniform(KEYS, high=2.0), draw.uniform(KEYS))


def check_calcium(params, before, after, seen, tokens):
    assert within(after.free, 0.0)
    assert within(after.bound, 0.0, 1.0)
    assert within(seen, 0.0)


def read_sensors(params, state, inputs, tokens):
    sensors = sense(inputs[0], params.calcium)
    return (), (sensors, release_probability(inputs[1], inputs[2], sensors))


def check_sensors(params, before, after, results, tokens):
    sensors, probability = results
    assert within(sensors.evoked, 0.0, 1.0)
    assert within(sensors.asynchronous, 0.0, BY_LABEL["doc2_gain"].high)
    assert within(probability, 0.0, 1.0)


def make_vesicles(draw: Draw) -> VesicleState:
    return VesicleState(*(draw.uniform(KEYS, high=high) for high in (20.0, 5.0, 5.0, 60.0)))


def step_vesicles(params, state, inputs, tokens):
    flow = vesicle_flow(state, inputs[0], params.vesicles, tokens)
    return vesicle_step(state, flow, params.vesicles, tokens), flow


def check_vesicles(params, before, after, flow, tokens):
    assert all(within(pool, 0.0) for pool in (*after, *flow))
    assert within(before.ready + flow.refilled - flow.released, 0.0)
    assert torch.allclose(sum(after), sum(before), rtol=1e-9)


def check_shares(params, before, after, results, tokens):
    assert all(within(share, 0.0, 1.0) for share in after)


def step_energy(params, state, inputs, tokens):
    after = energy_step(state, inputs[0], params.energy, tokens)
    return after, quantal_size(after)


def check_energy(params, before, after, size, tokens):
    assert within(after.energy, 0.0)
    assert within(after.ampa, 0.0, AMPA_CEILING)
    assert within(size, 0.0)


def make_terminals(draw: Draw) -> TerminalState:
    energy = EnergyState(draw.uniform(KEYS), draw.uniform(KEYS, high=AMPA_CEILING))
    priming = PrimingState(draw.uniform(KEYS), draw.uniform(KEYS))
    return TerminalState(make_calcium(draw), make_vesicles(draw), priming, energy)


def step_terminals(params, state, inputs, tokens):
    drive, noise = inputs
    return terminal_step(state, drive, params, tokens, noise)


def check_terminals(params, before, after, e, tokens):
    assert torch.allclose(sum(after.vesicles), sum(before.vesicles), rtol=1e-9)
    assert all(within(pool, 0.0) for pool in after.vesicles)
    assert all(within(share, 0.0, 1.0) for share in (after.calcium.bound, *after.priming))
    assert within(after.calcium.free, 0.0)
    check_energy(params, before.energy, after.energy, e, tokens)


def begin_terminals(params, state, inputs, tokens):
    new = init_terminals(inputs[0], params)
    return (), (new, efficacy(new, params))


def check_new_terminals(params, before, after, results, tokens):
    new, e = results
    check_terminals(params, new, new, e, tokens)


def check_kinase(params, before, after, opening, tokens):
    assert all(within(level, 0.0, 1.0) for level in (*after, opening))


def step_kinase(params, state, inputs, tokens):
    after = kinase_step(state, inputs[0], params.postsynaptic, tokens)
    return after, gate(after)


def check_trace(params, before, after, results, tokens):
    limit = torch.maximum(before.abs().max(), torch.tensor(1.0)) + tokens
    assert within(after.abs(), 0.0, float(limit))  # coincidences of at most 1 a token


def make_memory(draw: Draw) -> MemoryState:
    square, row = draw.normal(2, RANK, RANK, scale=0.1), draw.uniform(2, RANK)
    return MemoryState(square, 0.1 * square, KinaseState(row, row.flip(0)), row)


def make_activity(draw: Draw) -> tuple[Tensor, ...]:
    return draw.unit(2, 4, RANK), draw.normal(2, 4, RANK, scale=1.5)


def make_memory_step(delta: bool):
    def step(params, state, inputs, tokens):
        return memory_step(state, *inputs, params.postsynaptic, params.bdnf, delta=delta), ()

    return step


def check_memory(params, before, after, results, tokens):
    assert all(within(level, 0.0, 1.0) for level in after.kinase)
    assert within(after.bdnf, 0.0)


def check_growth_factor(params, before, after, results, tokens):
    assert within(after, 0.0)


def step_slow_weights(params, state, inputs, tokens):
    return consolidate(state, *inputs, params.postsynaptic, params.bdnf), ()


def check_finite_only(params, before, after, results, tokens):
    """Its results have no bounds of their own."""


def make_metabolism(draw: Draw) -> Metabolism:
    use = torch.softmax(draw.normal(EXPERTS), -1)
    return Metabolism(use, EXPERTS * use, draw.uniform(EXPERTS, high=0.5), draw.unit(EXPERTS, 16))


def make_routing(draw: Draw) -> tuple[Tensor, ...]:
    return torch.softmax(draw.normal(EXPERTS, scale=3.0), -1), draw.unit(EXPERTS, 16)


def step_metabolism(params, state, inputs, tokens):
    return metabolism_step(state, Routing(*inputs), params.structural, params.energy), ()


def check_metabolism(params, before, after, results, tokens):
    assert within(after.utilisation, 0.0, 1.0)
    assert within(after.fatigue, 0.0, EXPERTS)
    assert within(after.energy, 0.0, BY_LABEL["energy_max"].high)
    assert torch.allclose(after.embedding.norm(dim=-1), torch.ones(()).to(after.embedding))


def make_kin(draw: Draw) -> tuple[Tensor, ...]:
    """Experts of which the weakest may merge and the strongest split, near the thresholds."""
    wealth = (torch.tensor([0.15, 0.49, 0.5, 0.95]) / torch.tensor([0.85, 0.51, 0.5, 0.05])) ** 0.25
    embedding = torch.eye(EXPERTS, 16)
    embedding[1, :2] = torch.tensor([0.8, 0.6])
    fixed = (wealth / wealth.sum(), torch.ones(EXPERTS), torch.ones(EXPERTS), embedding)
    return tuple(tensor.to(draw.uniform(1)) for tensor in fixed)


def plan_event(params, state, inputs, tokens):
    return (), plan_remodel(Metabolism(*inputs), params.structural)


def check_plan(params, before, after, plan, tokens):
    for mixing in (plan.mix, plan.copy):
        assert within(mixing, 0.0, 1.0)
        assert torch.allclose(mixing.sum(-1), torch.ones(()).to(mixing))


def add_biases(params, state, inputs, tokens):
    e, newborn = inputs
    positions = torch.arange(KEYS).to(e)
    distance = distance_bias(
        positions[:3] + KEYS, positions, params.attention, context=64, tokens=tokens
    )
    return (), (
        efficacy_bias(e, newborn, params.attention),
        efficacy_bias(newborn, newborn, params.attention),
        distance,
    )


def check_biases(params, before, after, results, tokens):
    _, of_newborn, distance = results
    assert (of_newborn == 0.0).all()
    assert within(-distance, 0.0)  # every key is older than its query


def no_state(draw: Draw) -> tuple[()]:
    return ()


CALCIUM = ("tau_c", "alpha_ca", "tau_buf", "alpha_buf_on", "alpha_buf_off")
SENSORS = ("syt1_slope", "syt7_slope", "cpx_thresh", "doc2_gain")
VESICLES = ("tau_rrp", "rec_rate", "endo_delay", "init_rrp")
PRIMING = ("prime_rate", "unprime_per_release", "nsf_recover")
ENERGY = ("energy_fill", "energy_use", "energy_max", "amp_load", "amp_leak")
KINASE = ("camkii_up", "camkii_down", "pp1_tau", "camkii_thr", "pp1_thr")
MEMORY = (*KINASE, "post_trace_decay", "post_fast_decay", "post_fast_lr", "bdnf_tau")
STRUCTURAL = (
    "structural_tau_util",
    "router_contrastive_lr",
    "router_contrastive_push",
    "energy_cost_rel",
    "energy_fill",
    "energy_max",
)
MECHANISMS = [
    Mechanism(
        "calcium",
        CALCIUM,
        make_calcium,
        lambda draw: (draw.uniform(KEYS, high=4.0),),
        lambda params, state, inputs, tokens: calcium_step(state, *inputs, params.calcium, tokens),
        check_calcium,
    ),
    Mechanism(
        "release",
        SENSORS,
        no_state,
        lambda draw: (draw.uniform(KEYS, high=2.0), draw.uniform(KEYS), draw.uniform(KEYS)),
        read_sensors,
        check_sensors,
    ),
    Mechanism(
        "vesicles",
        VESICLES,
        make_vesicles,
        lambda draw: (draw.uniform(KEYS),),
        step_vesicles,
        check_vesicles,
    ),
    Mechanism(
        "priming",
        PRIMING,
        lambda draw: PrimingState(draw.uniform(KEYS), draw.uniform(KEYS)),
        lambda draw: (draw.uniform(KEYS, high=20.0),),
        lambda params, state, inputs, tokens: (
            priming_step(state, *inputs, params.vesicles, tokens),
            (),
        ),
        check_shares,
    ),
    Mechanism(
        "energy",
        ENERGY,
        lambda draw: EnergyState(draw.uniform(KEYS), draw.uniform(KEYS, high=AMPA_CEILING)),
        lambda draw: (draw.uniform(KEYS, high=20.0),),
        step_energy,
        check_energy,
    ),
    Mechanism(
        "new terminals",
        ("init_rrp", "init_reserve", "init_energy"),
        no_state,
        lambda draw: (draw.uniform(KEYS),),
        begin_terminals,
        check_new_terminals,
    ),
    Mechanism(
        "terminal",
        (*CALCIUM, *SENSORS, *VESICLES, *PRIMING, *ENERGY),
        make_terminals,
        lambda draw: (draw.normal(KEYS, scale=6.0), draw.normal(KEYS)),
        step_terminals,
        check_terminals,
    ),
    Mechanism(
        "kinase",
        KINASE,
        lambda draw: KinaseState(draw.uniform(RANK), draw.uniform(RANK)),
        lambda draw: (draw.uniform(RANK, high=2.5),),
        step_kinase,
        check_kinase,
    ),
    Mechanism(
        "eligibility",
        ("post_trace_decay",),
        lambda draw: draw.uniform(RANK, RANK),
        lambda draw: (draw.uniform(RANK, RANK),),
        lambda params, state, inputs, tokens: (
            trace_step(state, *inputs, params.postsynaptic, tokens),
            (),
        ),
        check_trace,
    ),
    *(
        Mechanism(
            name,
            MEMORY,
            make_memory,
            make_activity,
            make_memory_step(delta),
            check_memory,
        )
        for name, delta in (("fast weights", False), ("fast weights by the delta rule", True))
    ),
    Mechanism(
        "growth factor",
        ("bdnf_tau",),
        lambda draw: draw.uniform(RANK),
        lambda draw: (draw.normal(RANK, RANK),),
        lambda params, state, inputs, tokens: (
            bdnf_step(state, *inputs, params.bdnf, tokens),
            (),
        ),
        check_growth_factor,
    ),
    Mechanism(
        "slow weights",
        ("post_slow_lr", "bdnf_scale"),
        lambda draw: draw.normal(RANK, RANK),
        lambda draw: (draw.normal(RANK, RANK), draw.uniform(RANK)),
        step_slow_weights,
        check_finite_only,
    ),
    Mechanism(
        "metabolism of the experts",
        STRUCTURAL,
        make_metabolism,
        make_routing,
        step_metabolism,
        check_metabolism,
    ),
    Mechanism(
        "structural event",
        ("router_sim_threshold", "split_health_min", "merge_health_max"),
        no_state,
        make_kin,
        plan_event,
        check_plan,
    ),
    Mechanism(
        "attention bias",
        ("lambda_loge", "epsilon", "barrier_strength"),
        no_state,
        lambda draw: (draw.uniform(KEYS, high=5.0), draw.uniform(KEYS, high=5.0) + 0.1),
        add_biases,
        check_biases,
    ),
]
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
