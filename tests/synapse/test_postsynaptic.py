"""The postsynaptic memory: the scan equals its steps, and the kinase controls the gate."""

import dataclasses
import functools

import pytest
import torch
from torch.nn.functional import normalize

from synaptune.model.config import ModelConfig
from synaptune.model.memory import Memory
from synaptune.synapse import fast_weights
from synaptune.synapse.circuit import SynapseParams
from synaptune.synapse.clock import geometric_sums, linear_scan
from synaptune.synapse.eligibility import compute_response, trace_step
from synaptune.synapse.fast_weights import CHUNK, Activity, init_memory, memory_scan, memory_step
from synaptune.synapse.kernel import load_library
from synaptune.synapse.kinase import KinaseState, gate, kinase_step
from synaptune.synapse.memory_kernel import fast_memory_scan
from synaptune.synapse.tensors import SynapseTensors

RANK, TICK = 6, 4
# Strong writes that last, of which a trace delays a part.
ACTIVE = dict(
    post_fast_lr=0.01,
    post_fast_decay=0.99,
    post_trace_decay=0.3,
    camkii_thr=0.3,
    rank_eligibility=4,
)


def make_params(**values: float) -> SynapseTensors:
    named = {f"synapse.postsynaptic.{name}": value for name, value in values.items()}
    return SynapseTensors(SynapseParams().with_values(named)).double()


def draw_activity(length: int = 2 * CHUNK + 7, rows: int = 3, seed: int = 0) -> Activity:
    generator = torch.Generator().manual_seed(seed)
    pre, post = (
        torch.randn(rows, length, RANK, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    write = 2.0 * torch.rand(rows, length, generator=generator, dtype=torch.float64)
    return Activity(normalize(pre, dim=-1), 1.5 * post, write)


def run_steps(activity: Activity, synapse: SynapseTensors, *, delta: bool):
    """The reference: the tokens one after another."""
    state, recalled = init_memory(len(activity.pre), RANK, activity.pre), []
    for t in range(activity.pre.shape[1]):
        state = memory_step(
            state,
            Activity(*(value[:, t : t + 1] for value in activity)),
            synapse.postsynaptic,
            synapse.bdnf,
            delta=delta,
            tick=TICK,
            ends_tick=t % TICK == TICK - 1,
        )
        recalled.append((state.weights @ activity.pre[:, t, :, None])[..., 0])
    return torch.stack(recalled, 1), state


def run_in(scan, activity: Activity, synapse: SynapseTensors, *, delta: bool):
    return scan(activity, synapse.postsynaptic, synapse.bdnf, delta=delta, tick=TICK)


@pytest.fixture(params=["compiled", "chunks", "chunks of a GPU"])
def run_scan(request, monkeypatch):
    """The memory of a sequence: as compiled code, and in chunks as without it and as on a GPU."""
    if request.param == "chunks of a GPU":
        monkeypatch.setattr(fast_weights, "_pass_in_turn", fast_weights._pass_by_doubling)
    scan = memory_scan
    if request.param == "compiled":
        if load_library("memory", torch.float64) is None:
            pytest.skip("no C compiler on this machine")
        scan = fast_memory_scan
    return functools.partial(run_in, scan)


@pytest.mark.parametrize("length", [1, 3, CHUNK, 2 * CHUNK + 7, 7 * CHUNK])
@pytest.mark.parametrize("delta", [False, True])
def test_the_scan_of_a_sequence_equals_the_loop_over_tokens(run_scan, delta, length):
    synapse, activity = make_params(**ACTIVE), draw_activity(length)
    recalled, consolidation = run_scan(activity, synapse, delta=delta)
    expected, state = run_steps(activity, synapse, delta=delta)
    assert torch.allclose(recalled, expected, atol=1e-12)
    assert torch.allclose(consolidation.bdnf, state.bdnf)
    gated = gate(state.kinase)[..., None] * state.weights
    assert torch.allclose(consolidation.gated, gated)
    assert length == 1 or recalled.abs().max() > 0.1


@pytest.mark.parametrize("trace", [0.0, 0.3])
@pytest.mark.parametrize("delta", [False, True])
def test_the_scan_of_a_sequence_has_the_gradients_of_the_loop(run_scan, delta, trace):
    """Of the activity, and in chunks of every parameter that both read."""
    gradients, is_compiled = [], run_scan.args[0] is not memory_scan
    for run in (run_scan, run_steps):
        synapse = make_params(**ACTIVE | {"post_trace_decay": trace})
        activity = Activity(*(value.requires_grad_() for value in draw_activity(3 * CHUNK + 5)))
        learned = {} if is_compiled else dict(synapse.postsynaptic.named_buffers())
        for value in learned.values():
            value.requires_grad_()
        recalled, _ = run(activity, synapse, delta=delta)
        weights = torch.linspace(-1.0, 1.0, recalled.numel(), dtype=torch.float64)
        total = (recalled.flatten() * weights).sum()
        leaves = [*activity, *learned.values()]
        gradients.append(torch.autograd.grad(total, leaves, allow_unused=True))
    names = [*Activity._fields, *learned]
    for name, ours, reference in zip(names, *gradients, strict=True):
        assert (
            (ours is None) == (reference is None) == (name in {"rank_eligibility", "post_slow_lr"})
        )
        assert ours is None or torch.allclose(ours, reference, rtol=1e-7, atol=1e-10), name


def test_the_cost_of_the_scan_grows_with_the_length_and_not_with_its_square():
    """Counted as the elements of the tensors that the backward pass keeps."""
    kept = []
    for length in (8 * CHUNK, 16 * CHUNK):
        sizes: list[int] = []
        activity = Activity(*(value.requires_grad_() for value in draw_activity(length)))
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            run_in(memory_scan, activity, make_params(**ACTIVE), delta=True)
        kept.append(sum(sizes))
    assert kept[1] < 2.3 * kept[0]


def test_a_token_recalls_what_followed_its_like():
    """After A B ... A the memory holds B, and nothing that came before."""
    synapse = make_params(post_fast_lr=0.01, post_fast_decay=0.9999)
    pre = torch.eye(RANK, dtype=torch.float64)[[0, 1, 2, 3, 0]][None]
    post = torch.arange(1.0, 6.0, dtype=torch.float64)[None, :, None].expand(1, 5, RANK)
    activity = Activity(pre, post, torch.full((1, 5), 2.0, dtype=torch.float64))
    for delta in (False, True):
        recalled, _ = run_in(memory_scan, activity, synapse, delta=delta)
        assert recalled[0, :4].abs().max() == 0.0
        assert torch.allclose(recalled[0, 4], post[0, 1], rtol=0.05)  # a gate of 1/2, twice


@pytest.mark.parametrize("trace", [0.0, 0.5, 0.96])
def test_a_trace_delays_a_write_and_loses_none_of_it(trace):
    synapse = make_params(post_trace_decay=trace, post_fast_decay=0.9999)
    outer = torch.ones(1, 1, dtype=torch.float64)
    total, z = torch.zeros_like(outer), torch.zeros_like(outer)
    held = []
    for t in range(400):
        z = trace_step(z, outer * (t == 0), synapse.postsynaptic)
        total = synapse.postsynaptic.post_fast_decay * total + z
        held.append(float(total))
    response = compute_response(synapse.postsynaptic, 399, outer)
    assert torch.allclose(torch.tensor(held, dtype=torch.float64), response.write)
    assert held[0] == pytest.approx(1.0 - trace)
    assert held[-1] == pytest.approx(1.0, abs=0.05)


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
    synapse = make_params(post_fast_lr=0.005, camkii_thr=0.3, post_fast_decay=0.9999)
    ones = torch.ones(1, 160, RANK, dtype=torch.float64)
    activity = Activity(normalize(ones, dim=-1), ones, ones[..., 0])
    recalled = {
        delta: run_in(memory_scan, activity, synapse, delta=delta)[0][0, -1].mean()
        for delta in (False, True)
    }
    assert recalled[True] == pytest.approx(1.0, abs=0.02)
    assert recalled[False] > 10.0


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


@pytest.mark.parametrize("count", [0, 1, 5, 8])
def test_a_linear_scan_equals_its_recurrence(count):
    generator = torch.Generator().manual_seed(0)
    retention, drive = (
        torch.rand(2, count, 3, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    x, expected = torch.zeros(2, 3, dtype=torch.float64), []
    for n in range(count):
        x = retention[:, n] * x + drive[:, n]
        expected.append(x)
    result = linear_scan(retention, drive)
    assert result.shape == drive.shape
    assert count == 0 or torch.allclose(result, torch.stack(expected, 1))


def test_the_heads_of_a_memory_are_memories_side_by_side():
    synapse, config = make_params(**ACTIVE), ModelConfig(width=16, heads=2)
    both = Memory(dataclasses.replace(config, memory_heads=2), RANK).double()
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in (*both.parameters(), both.slow):
            value.normal_(generator=stream)
    x = torch.randn(3, 2 * CHUNK + 7, 16, dtype=torch.float64, generator=stream)
    out, means = both(x, synapse)
    after, total = both.consolidate_slow(means, synapse), torch.zeros_like(out)
    for head in range(2):
        alone = Memory(config, RANK).double()
        alone.load_state_dict(
            {name: value.chunk(2)[head] for name, value in both.state_dict().items()}
        )
        part, own = alone(x, synapse)
        total = total + part
        assert torch.allclose(alone.consolidate_slow(own, synapse), after.chunk(2)[head])
    assert torch.allclose(out, total)
