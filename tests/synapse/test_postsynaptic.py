"""The postsynaptic memory: scans equal their steps, and the kinase controls the gate."""

import pytest
import torch

from synaptune.synapse.circuit import SynapseParams
from synaptune.synapse.clock import geometric_sums, powers
from synaptune.synapse.fast_weights import init_memory, memory_scan, memory_step
from synaptune.synapse.kinase import KinaseState, gate, kinase_step
from synaptune.synapse.tensors import SynapseTensors


def make_params(**values: float) -> SynapseTensors:
    named = {f"synapse.postsynaptic.{name}": value for name, value in values.items()}
    return SynapseTensors(SynapseParams().with_values(named)).double()


def draw_activities(
    ticks: int = 7, tokens: int = 4, rank: int = 6
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pre, post = (
        torch.randn(3, ticks, tokens, rank, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    return torch.nn.functional.normalize(pre, dim=-1), 1.5 * post


@pytest.mark.parametrize("delta", [False, True])
def test_the_scan_equals_the_steps_in_turn(delta):
    synapse, (pre, post) = make_params(post_fast_lr=0.01), draw_activities()
    weights, consolidation = memory_scan(pre, post, synapse.postsynaptic, synapse.bdnf, delta=delta)
    state, rows = init_memory(3, 6, pre), []
    for n in range(pre.shape[1]):
        rows.append(state.weights)
        state = memory_step(
            state, pre[:, n], post[:, n], synapse.postsynaptic, synapse.bdnf, delta=delta
        )
    rows.append(state.weights)
    assert torch.allclose(weights, torch.stack(rows, 1))
    assert torch.allclose(consolidation.bdnf, state.bdnf.mean(0))
    assert torch.allclose(
        consolidation.gated, (gate(state.kinase)[..., None] * state.weights).mean(0)
    )
    assert weights[:, -1].abs().max() > 0


def test_sustained_calcium_opens_the_gate_and_silence_closes_it():
    synapse = make_params()
    rest = KinaseState(
        torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    )
    high, low = rest, rest
    for _ in range(20):
        high = kinase_step(
            high, torch.full((1, 1), 1.6, dtype=torch.float64), synapse.postsynaptic, 16
        )
        low = kinase_step(low, torch.zeros(1, 1, dtype=torch.float64), synapse.postsynaptic, 16)
    assert gate(high) > 0.95
    assert gate(low) < 0.05


def test_the_delta_rule_writes_less_of_what_the_key_already_recalls():
    """For a repeated pair Hebbian writes keep growing; delta writes stop at the value."""
    synapse = make_params(post_fast_lr=0.05, camkii_thr=0.3, post_fast_decay=0.995)
    pre = torch.nn.functional.normalize(torch.ones(1, 40, 4, 6, dtype=torch.float64), dim=-1)
    post = torch.ones(1, 40, 4, 6, dtype=torch.float64)
    recalled = {}
    for delta in (False, True):
        weights, _ = memory_scan(pre, post, synapse.postsynaptic, synapse.bdnf, delta=delta)
        recalled[delta] = (weights[0, -1] @ pre[0, 0, 0]).mean().item()
    assert abs(recalled[True] - 1.0) < abs(recalled[False] - 1.0)


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 16])
def test_a_tick_is_exactly_its_tokens_for_a_linear_recurrence(tokens):
    for a in (0.0, 0.3, 0.95, 1.0):
        x, inputs, values = 0.7, 0.2, []
        for _ in range(tokens):
            values.append(x)
            x = a * x + inputs
        power, gain, total = geometric_sums(torch.tensor(a, dtype=torch.float64), tokens)
        assert float(power * 0.7 + gain * inputs) == pytest.approx(x)
        assert float(gain * 0.7 + total * inputs) == pytest.approx(sum(values))


def test_powers_solve_a_recurrence_at_once():
    inputs = torch.arange(5, dtype=torch.float64)
    x, expected = 0.0, []
    for value in inputs.tolist():
        x = 0.5 * x + value
        expected.append(x)
    assert torch.allclose(
        powers(torch.tensor(0.5, dtype=torch.float64), 5) @ inputs,
        torch.tensor(expected, dtype=torch.float64),
    )
