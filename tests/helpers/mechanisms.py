"""The mechanisms of the synapse as data: parameters, a random state, a step and its checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from synaptune.synapse.bias import distance_bias, efficacy_bias
from synaptune.synapse.calcium import CalciumState, calcium_step
from synaptune.synapse.circuit import SPECS
from synaptune.synapse.eligibility import trace_step
from synaptune.synapse.energy import AMPA_CEILING, EnergyState, energy_step, quantal_size
from synaptune.synapse.experts import Metabolism, Routing, metabolism_step, plan_remodel
from synaptune.synapse.fast_weights import Activity, MemoryState, memory_step
from synaptune.synapse.kinase import KinaseState, gate, kinase_step
from synaptune.synapse.metaplasticity import bdnf_step, consolidate
from synaptune.synapse.priming import PrimingState, priming_step
from synaptune.synapse.release import release_probability, sense
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
    assert within(after.abs(), 0.0, max(1.0, float(before.abs().max())))  # writes of at most 1


def make_memory(draw: Draw) -> MemoryState:
    square, row = draw.normal(2, RANK, RANK, scale=0.1), draw.uniform(2, RANK)
    kinase = KinaseState(row, row.flip(0))
    return MemoryState(square, 0.1 * square, draw.unit(2, RANK), kinase, row, row)


def make_activity(draw: Draw) -> tuple[Tensor, ...]:
    return draw.unit(2, 1, RANK), draw.normal(2, 1, RANK, scale=1.5), draw.uniform(2, 1, high=2.0)


def make_memory_step(delta: bool):
    def step(params, state, inputs, tokens):
        after = memory_step(
            state,
            Activity(*inputs),
            params.postsynaptic,
            params.bdnf,
            delta=delta,
            tick=tokens,
            ends_tick=True,
        )
        return after, ()

    return step


def check_memory(params, before, after, results, tokens):
    assert all(within(level, 0.0, 1.0) for level in after.kinase)
    assert within(after.bdnf, 0.0)
    assert (after.calcium == 0.0).all()


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
    wealth = (
        torch.tensor([0.15, 0.49, 0.5, 0.95]) / torch.tensor([0.85, 0.51, 0.5, 0.05])
    ) ** 0.125
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
    distance = distance_bias(1.0 + torch.arange(KEYS).to(e), params.attention, context=64)
    return (), (
        efficacy_bias(e, newborn, params.attention),
        efficacy_bias(newborn, newborn, params.attention),
        distance,
    )


def check_biases(params, before, after, results, tokens):
    _, of_newborn, distance = results
    assert (of_newborn == 0.0).all()
    assert (distance.diff(dim=-1) > 0.0).all()  # a later key has the larger bias


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
            trace_step(state, *inputs, params.postsynaptic),
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
        lambda draw: (draw.uniform(RANK),),
        lambda params, state, inputs, tokens: (
            bdnf_step(state, *inputs, params.bdnf),
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
