"""BiostatisV6 against a plain loop over its equations, and as an optimizer like any other."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import pytest
import torch

from synaptune import BiostatisV6

torch.set_num_threads(1)


SHAPES = [(40, 30), (30,), (3, 5, 7), (5000,)]


def make_weights(
    *, dtype: torch.dtype = torch.float32, shapes: Sequence[tuple[int, ...]] = SHAPES
) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(
            (0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        )
        for shape in shapes
    ]


def set_gradients(weights: list[torch.nn.Parameter], step: int) -> None:
    """Gradients of many sizes, the same for any type."""
    generator = torch.Generator().manual_seed(step)
    for index, weight in enumerate(weights):
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        scale = 10.0 ** (index - 2) * (1.0 + math.sin(step / 9.0))
        weight.grad = (scale * (0.5 * (noise.flatten()[0] > 0) + noise)).to(weight.dtype)


class Reference:
    """The equations of the specification, one tensor and one number at a time, in float64."""

    def __init__(self, weights, *, lr=1e-3, wd=1e-2, c=0.8, energy=1e-3, rho=0.03, lam=0.1):
        self.weights, self.lr, self.wd = weights, lr, wd
        self.c, self.energy, self.rho, self.lam, self.t = c, energy, rho, lam, 0
        self.state = [[torch.zeros_like(w) for _ in range(4)] for w in weights]

    def step(self) -> None:
        self.t += 1
        t, every = self.t, torch.cat([w.grad.flatten() for w in self.weights])
        e = float((every**2).mean())
        c = float(torch.tanh(every).abs().mean())
        h_g = 1 - 0.5 * self.rho * math.tanh(c - self.c)
        e_g = min(max(0.9 * (1 + 0.5 * self.lam * (self.energy - e)) + 0.1, 0.925), 1.075)
        for w, (m, v, a, b) in zip(self.weights, self.state, strict=True):
            g = w.grad
            m.copy_(0.9 * m + 0.1 * g)
            v.copy_(0.999 * v + 0.001 * g * g)
            a.copy_(0.9 * a + 0.1 * g)
            b.copy_(0.99 * b + 0.01 * g)
            cosine = float((m * g).sum() / (m.norm() * g.norm()))
            tilde = g * (1 + 0.5 * torch.sign(g) * math.tanh(cosine))
            if float(m.abs().mean()) / float(v.sqrt().mean()) < 0.2:
                tilde = tilde + 0.05 * (1 - math.exp(-0.02 * t)) * g
            e_l = float((g**2).mean())
            c_l = float(torch.tanh(g).abs().mean())
            h_l = 1 - self.rho * math.tanh(c_l - self.c)
            gain_l = min(max(0.8 * (1 + self.lam * (self.energy - e_l)) + 0.2, 0.85), 1.15)
            h, gain = 0.3 * h_g + 0.7 * h_l, 0.3 * e_g + 0.7 * gain_l
            direction = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
            direction = direction + 0.05 * (0.6 * a + 0.4 * b) + 0.01 * tilde
            w.data = w.data * (1 - self.lr * self.wd) - self.lr * h * gain * direction


@pytest.mark.parametrize("settings", [{}, {"c": 0.1, "energy": 0.5, "rho": 0.5, "lam": 0.6}])
def test_it_is_the_plain_loop_to_a_millionth_over_200_steps(settings):
    exact = make_weights(dtype=torch.float64)
    reference = Reference(exact, **settings)
    names = {"c": "coherence_target", "energy": "energy_target"}
    names |= {"rho": "coherence_gain", "lam": "energy_gain"}
    given = {names[key]: value for key, value in settings.items()}
    double, single = make_weights(dtype=torch.float64), make_weights()
    optimizers = [
        BiostatisV6(double, **given),
        BiostatisV6(single, compiled=True, **given),
    ]
    for step in range(200):
        set_gradients(exact, step)
        for other, *ours in zip(exact, double, single, strict=True):
            for mine in ours:
                mine.grad = other.grad.to(mine.dtype)  # type: ignore[union-attr]
        for optimizer in (*optimizers, reference):
            optimizer.step()
    for other, first, second in zip(exact, double, single, strict=True):
        assert float((first - other).abs().max()) < 1e-6
        assert float((second.double() - other).abs().max()) < 1e-6  # the rounding of float32


def run_steps(optimizer, weights, steps) -> None:
    for step in steps:
        set_gradients(weights, step)
        optimizer.step()


@pytest.mark.parametrize(
    "settings", [{}, {"targets": "auto", "target_steps": 6}, {"betas": (0.8, 0.99)}]
)
def test_the_compiled_and_the_plain_step_agree(settings):
    # The last tensor is larger than the cache for which the compiled code keeps tensors whole.
    weights = [make_weights(shapes=[*SHAPES, (400, 400)]) for _ in range(2)]
    for part, compiled in zip(weights, (True, False), strict=True):
        run_steps(BiostatisV6(part, compiled=compiled, **settings), part, range(12))
    for first, second in zip(*weights, strict=True):
        torch.testing.assert_close(first, second, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("targets", ["fixed", "auto"])
def test_a_stored_state_continues_exactly(targets):
    whole = make_weights()
    run_steps(BiostatisV6(whole, targets=targets, target_steps=5), whole, range(10))
    parts = make_weights()
    optimizer = BiostatisV6(parts, targets=targets, target_steps=5)
    run_steps(optimizer, parts, range(4))
    stored = copy.deepcopy(optimizer.state_dict())
    other = BiostatisV6(parts, targets=targets, target_steps=5)
    other.load_state_dict(stored)
    run_steps(other, parts, range(4, 10))
    assert all(torch.equal(first, second) for first, second in zip(whole, parts, strict=True))


def test_groups_have_their_own_settings_and_a_weight_without_gradient_stays():
    weights = make_weights()
    groups = [{"params": weights[:2], "lr": 0.0, "weight_decay": 0.0}, {"params": weights[2:]}]
    before = [weight.detach().clone() for weight in weights]
    optimizer = BiostatisV6(groups)
    set_gradients(weights, 0)
    weights[3].grad = None
    optimizer.step()
    changed = [not torch.equal(old, new) for old, new in zip(before, weights, strict=True)]
    assert changed == [False, False, True, False]
    assert weights[3] not in optimizer.state


def test_a_closure_is_called_and_its_loss_returned():
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    optimizer = BiostatisV6([weight], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    losses = [float(optimizer.step(closure)) for _ in range(40)]
    assert losses[0] == 9.0
    assert losses[-1] < 1.0


def test_sparse_gradients_and_invalid_settings_are_refused():
    table = torch.nn.Embedding(5, 3, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        BiostatisV6(table.parameters()).step()
    for name, value in (("lr", -1.0), ("betas", (1.0, 0.9)), ("targets", "maybe")):
        with pytest.raises(ValueError, match=name):
            BiostatisV6(make_weights(), **{name: value})


def test_at_the_fixed_targets_and_small_gradients_both_gains_are_constant():
    """So it is AdamW at 1.017 times the learning rate, but for the filters of 1 % and 5 %."""
    weights = make_weights()
    plain = [torch.nn.Parameter(weight.detach().clone()) for weight in weights]
    ours, adamw = BiostatisV6(weights), torch.optim.AdamW(plain, lr=1.0169e-3, weight_decay=1e-2)
    start = [weight.detach().clone() for weight in weights]
    for step in range(30):
        set_gradients(weights, step)
        for mine, other in zip(weights, plain, strict=True):
            assert mine.grad is not None
            mine.grad *= 1e-5
            other.grad = mine.grad.clone()
        ours.step()
        adamw.step()
    for first, mine, other in zip(start, weights, plain, strict=True):
        assert float((mine - other).norm() / (other - first).norm()) < 2e-3


def test_auto_targets_answer_a_gradient_that_grows():
    moves = []
    for factor in (1.0, 10.0):
        weights = [torch.nn.Parameter(torch.zeros(1000))]
        optimizer = BiostatisV6(
            weights, lr=1e-3, weight_decay=0.0, targets="auto", target_steps=5, coherence_gain=0.5
        )
        for step in range(7):
            weights[0].grad = torch.full((1000,), 1e-3 * (factor if step == 6 else 1.0))
            before = weights[0].detach().clone()
            optimizer.step()
        moves.append(float((weights[0] - before).abs().mean()))
    settled = 1e-3
    assert moves[0] == pytest.approx(settled, rel=0.01)
    assert moves[1] < 1.5 * settled
