"""The presynaptic terminal: known courses of efficacy, gradients, kernel."""

import random

import pytest
import torch

from synaptune.core.parameters import lookup
from synaptune.synapse import kernel
from synaptune.synapse.circuit import SPECS, SynapseParams
from synaptune.synapse.kernel import fast_scan, load_library
from synaptune.synapse.release import draw_noise
from synaptune.synapse.tensors import SynapseTensors
from synaptune.synapse.terminal import (
    efficacy,
    init_terminals,
    map_state,
    terminal_scan,
    terminal_step,
)

PRESYNAPTIC = [s for s in SPECS if s.subsystem in ("calcium", "vesicles", "energy")]


def make_params(values: dict[str, float] | None = None, dtype=torch.float64) -> SynapseTensors:
    return SynapseTensors(SynapseParams().with_values(values or {})).to(dtype)


def draw_corner(rng: random.Random) -> dict[str, float]:
    """Set every presynaptic parameter to its low or high bound at random."""
    return {s.name: rng.choice((s.low, s.high)) for s in PRESYNAPTIC}


def run_course(drives: list[float]) -> list[float]:
    """Return ln e after each token of a drive, with one token per tick."""
    params = make_params()
    state, out = init_terminals(torch.zeros(1, dtype=torch.float64), params), []
    for drive in drives:
        state, e = terminal_step(state, torch.tensor([drive], dtype=torch.float64), params, 1)
        out.append(float(e.log()))
    return out


@pytest.mark.parametrize(
    ("drive", "expected"),
    [(-4.0, (-0.75, -0.74, -0.99)), (0.0, (-0.47, -0.70, -1.45)), (3.0, (-0.22, -1.85, -1.99))],
)
def test_efficacy_takes_the_specified_course_at_the_defaults(drive, expected):
    out = run_course([drive] * 64)
    assert [out[i - 1] for i in (4, 16, 64)] == pytest.approx(expected, abs=0.04)


def test_a_tired_terminal_recovers_over_fifty_silent_tokens():
    out = run_course([3.0] * 10 + [-2.0] * 50)
    assert out[9] < -1.5
    assert out[-1] == pytest.approx(-1.2, abs=0.05)


def test_a_driven_terminal_first_facilitates_then_tires():
    params = make_params()
    rest = float(
        efficacy(init_terminals(torch.zeros(1, dtype=torch.float64), params), params).log()
    )
    out = run_course([3.0] * 32)
    assert max(out[:6]) > rest > out[-1]


def test_longer_ticks_converge_to_the_per_token_dynamics():
    """With a constant drive the efficacy after 32 tokens depends little on the length of a tick."""
    drive = torch.linspace(-4, 4, 9, dtype=torch.float64)
    params = make_params()
    ends = {}
    for tokens in (1, 2, 4, 8, 16):
        state = init_terminals(drive, params)
        for _ in range(32 // tokens):
            state, ends[tokens] = terminal_step(state, drive, params, tokens)
    gap = {
        tokens: (ends[tokens].log() - ends[1].log()).abs().max().item() for tokens in (2, 4, 8, 16)
    }
    assert gap[2] < gap[4] < gap[8] < gap[16]
    assert gap[2] < 0.05
    assert gap[16] < 0.5


@pytest.mark.parametrize("tokens", [1, 16])
def test_gradcheck_on_one_tick(tokens):
    params = make_params()
    state = init_terminals(torch.zeros(1, 1, 3, dtype=torch.float64), params)
    state, _ = terminal_step(
        state, torch.tensor([[[-1.0, 0.5, 2.0]]], dtype=torch.float64), params, tokens
    )
    leaves = [x.clone().requires_grad_() for group in state for x in group]
    drive = torch.tensor([[[-0.5, 1.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    values = [
        torch.tensor(
            lookup(params, s.name.removeprefix("synapse.")).item(),
            dtype=torch.float64,
            requires_grad=True,
        )
        for s in PRESYNAPTIC
    ]

    def tick(drive, *inputs):
        params = SynapseTensors(SynapseParams()).double()
        for spec, value in zip(PRESYNAPTIC, inputs[: len(values)], strict=True):
            group = getattr(params, spec.subsystem)
            del group._buffers[spec.label]
            setattr(group, spec.label, value)
        states = iter(inputs[len(values) :])
        return terminal_step(map_state(state, lambda _: next(states)), drive, params, tokens)[1]

    assert torch.autograd.gradcheck(tick, (drive, *values, *leaves))


def test_gradients_are_finite_at_random_corners_of_the_space():
    rng, generator = random.Random(1), torch.Generator().manual_seed(1)
    for _ in range(300):
        params = make_params(draw_corner(rng), torch.float32)
        drive = (8 * torch.randn(1, 2, 3, 64, generator=generator)).requires_grad_()
        noise = torch.randn(1, 2, 3, 64, generator=generator)
        torch.log(fast_scan(drive, params, 16, noise) + 1e-8).sum().backward()
        assert torch.isfinite(drive.grad).all()


def test_parameter_gradients_are_finite_at_random_corners():
    rng, generator = random.Random(2), torch.Generator().manual_seed(2)
    for _ in range(30):
        params = make_params(draw_corner(rng), torch.float32)
        for spec in PRESYNAPTIC:
            lookup(params, spec.name.removeprefix("synapse.")).requires_grad_()
        drive = 8 * torch.randn(1, 2, 3, 64, generator=generator)
        torch.log(fast_scan(drive, params, 16) + 1e-8).sum().backward()
        for spec in PRESYNAPTIC:
            assert torch.isfinite(lookup(params, spec.name.removeprefix("synapse.")).grad), (
                spec.name
            )


@pytest.mark.skipif(
    load_library("scan", torch.float64) is None, reason="no C compiler on this machine"
)
@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("tokens", [1, 3, 8, 16])
def test_the_compiled_scan_and_its_adjoint_equal_the_reference(tokens, stochastic):
    rng, generator = random.Random(tokens), torch.Generator().manual_seed(tokens)
    for values in ({}, draw_corner(rng), draw_corner(rng)):
        params, updates = make_params(values), 6
        keys = (updates + 1) * tokens - (tokens > 2)
        drive = (
            4 * torch.randn(2, 2, updates, keys, generator=generator, dtype=torch.float64)
        ).requires_grad_()
        noise = (
            draw_noise(tuple(drive.shape), torch.tensor(0.5), generator, drive)
            if stochastic
            else None
        )
        weight = torch.randn(2, 2, updates + 1, keys, generator=generator, dtype=torch.float64)
        results = {}
        for scan in (terminal_scan, fast_scan):
            out = scan(drive, params, tokens, noise)
            (grad,) = torch.autograd.grad((out * weight).sum(), drive)
            results[scan] = out.detach(), grad
        for slow, fast in zip(results[terminal_scan], results[fast_scan], strict=True):
            assert torch.allclose(slow, fast, rtol=1e-6, atol=1e-7)


@pytest.mark.skipif(
    load_library("scan", torch.float64) is None, reason="no C compiler on this machine"
)
@pytest.mark.parametrize("stochastic", [False, True])
def test_each_candidate_of_vmap_is_scanned_with_its_own_parameters(stochastic, monkeypatch):
    monkeypatch.setattr(kernel, "terminal_scan", None)  # only the compiled scan may run
    rng, generator = random.Random(5), torch.Generator().manual_seed(5)
    candidates = [make_params(values) for values in ({}, draw_corner(rng), draw_corner(rng))]
    _, buffers = torch.func.stack_module_state(candidates)
    drive = 4 * torch.randn(3, 2, 2, 3, 30, generator=generator, dtype=torch.float64)
    noise = torch.randn_like(drive[0]) if stochastic else None

    class Scan(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.params = candidates[0]

        def forward(self, drive):
            return fast_scan(drive, self.params, 8, noise)

    def compute_loss(buffers, drive):
        values = torch.func.functional_call(scan, buffers, (drive,))
        return values.square().sum(), values

    scan = Scan()
    named = {f"params.{name}": value for name, value in buffers.items()}
    gradient = torch.func.grad(compute_loss, argnums=1, has_aux=True)
    grads, values = torch.func.vmap(gradient)(named, drive)
    for index, params in enumerate(candidates):
        alone = drive[index].clone().requires_grad_()
        out = terminal_scan(alone, params, 8, noise)
        out.square().sum().backward()
        assert torch.allclose(values[index], out, rtol=1e-6, atol=1e-7)
        assert torch.allclose(grads[index], alone.grad, rtol=1e-6, atol=1e-7)


def test_stochastic_release_is_unbiased_where_it_is_not_clamped():
    params = make_params()
    state = init_terminals(torch.zeros(1, 1, 200_000, dtype=torch.float64), params)
    drive = torch.full((1, 1, 200_000), -0.5, dtype=torch.float64)
    noise = torch.randn(
        drive.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    expected, _ = terminal_step(state, drive, params, 8)
    sample, _ = terminal_step(state, drive, params, 8, noise)
    assert sample.vesicles.ready.mean() == pytest.approx(
        float(expected.vesicles.ready.mean()), rel=0.02
    )
    assert sample.vesicles.ready.std() > 0.5
