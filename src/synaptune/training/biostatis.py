"""BiostatisV6, an AdamW with homeostatic gains, usable in any torch program.

    group     E = mean g^2, C = mean |tanh g| over all gradients of a group                   (1)
              h_g = 1 - rho / 2 tanh(C - c*)                                                  (2)
              e_g = clip(0.9 (1 + lam / 2 (E* - E)) + 0.1, 0.925, 1.075)                      (3)
    tensor    h_l = 1 - rho tanh(C_l - c*)                                                    (4)
              e_l = clip(0.8 (1 + lam (E* - E_l)) + 0.2, 0.85, 1.15)                          (5)
    gains     h = 0.3 h_g + 0.7 h_l,   e = 0.3 e_g + 0.7 e_l                                  (6)
    averages  a, b of g with rates 0.9 and 0.99,   F = 0.6 a + 0.4 b                          (7)
    polarity  g~ = g (1 + sign(g) tanh(cos(m, g)) / 2)                                        (8)
    balance   where mean |m| < 0.2 mean sqrt(v): g~ += 0.05 (1 - exp(-0.02 t)) g              (9)
    update    w <- w (1 - lr wd) - lr h e (m^ / (sqrt(v^) + eps) + 0.05 F + 0.01 g~)         (10)

m, v the moments of Adam, m^ and v^ bias-corrected, t the step of the tensor. (8) is added inside
the minus of (10): it strengthens the descent along positive gradients, it is no ascent.

`targets="auto"` is a variant: c* and E* are the means of C and E over the first `target_steps`
steps, for each group and tensor, and (2) to (5) take relative deviations, C / c* - 1 and
1 - E / E*. At the fixed targets both gains rest at a constant, since real gradients lie far below
0.8 and 1e-3.

On a CPU a step of float32 weights runs as compiled code (biostatis.c) where a compiler exists.
Everywhere else it is made of torch operations without a host synchronisation, so that a CUDA graph
can capture it.
Source: (1) to (10) the specification of BiostatisV6; m, v: Loshchilov and Hutter 2019, algorithm 2.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

import array
import ctypes
import functools
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synaptune.core.native import load_native

TARGETS = ("fixed", "auto")
_FAST, _SLOW = 0.9, 0.99  # rates of eq. (7)
_FILTER, _POLARITY = 0.05, 0.01  # weights of F and g~ in eq. (10)
_BALANCE_LIMIT, _BALANCE, _BALANCE_RATE = 0.2, 0.05, 0.02  # eq. (9)
_SUMS = 6  # values a tensor that biostatis.c adds up
_log = logging.getLogger(__name__)


class BiostatisV6(torch.optim.Optimizer):
    """AdamW whose step is scaled by homeostatic gains, eqs. (1) to (10)."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        weight_decay: float = 1e-2,
        coherence_target: float = 0.8,
        energy_target: float = 1e-3,
        *,
        coherence_gain: float = 0.03,
        energy_gain: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        targets: str = "fixed",
        target_steps: int = 100,
        compiled: bool = True,
    ) -> None:
        """Check the settings; each is a key of the parameter groups as well.

        Args:
            params: parameters, or groups of them.
            lr: learning rate.
            weight_decay: decoupled weight decay.
            coherence_target: c*.
            energy_target: E*.
            coherence_gain: rho; 0 switches eqs. (2) and (4) off.
            energy_gain: lam; 0 switches eqs. (3) and (5) off.
            betas: rates of the moments.
            eps: added to the root of the second moment.
            targets: `fixed`, or `auto` for targets that are measured in the first steps.
            target_steps: steps that `auto` measures; the gains are 1 meanwhile.
            compiled: whether a step on a CPU may run as compiled code.

        Raises:
            ValueError: a setting is invalid.
        """
        faults = {
            "lr": float(lr) >= 0.0,
            "weight_decay": weight_decay >= 0.0,
            "eps": eps >= 0.0,
            "betas": all(0.0 <= beta < 1.0 for beta in betas),
            "coherence_gain": coherence_gain >= 0.0,
            "energy_gain": energy_gain >= 0.0,
            "targets": targets in TARGETS,
            "target_steps": target_steps >= 1,
        }
        if invalid := [name for name, is_valid in faults.items() if not is_valid]:
            raise ValueError(f"got an invalid {', '.join(invalid)}: see BiostatisV6.__init__")
        defaults = dict(lr=lr, weight_decay=weight_decay, betas=betas, eps=eps)
        defaults |= dict(coherence_target=coherence_target, energy_target=energy_target)
        defaults |= dict(coherence_gain=coherence_gain, energy_gain=energy_gain)
        defaults |= dict(targets=targets, target_steps=target_steps, compiled=compiled)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Run one step; return what the closure returns.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if any(weight.grad.is_sparse for weight in weights):
                raise RuntimeError("BiostatisV6 does not support sparse gradients")
            for weight in weights:
                if not self.state[weight]:
                    self._make_state(weight, group)
            if weights:
                is_native = group["compiled"] and all(map(_is_plain, weights))
                native = _load() if is_native else None
                run = functools.partial(_step_native, native) if native else _step_tensors
                run(weights, [self.state[weight] for weight in weights], group)
        return loss

    def _make_state(self, weight: Tensor, group: dict[str, Any]) -> None:
        state: dict[str, Any] = self.state[weight]
        state["step"] = torch.zeros((), device=weight.device, dtype=torch.float32)
        names = ["exp_avg", "exp_avg_sq", "slow_avg"]
        if group["betas"][0] != _FAST:  # otherwise the fast average is the first moment
            names.append("fast_avg")
        for name in names:
            state[name] = torch.zeros_like(weight, memory_format=torch.preserve_format)
        if group["targets"] == "auto":
            # Sums over the first steps: C, then E, each of the tensor and of its group.
            state["targets"] = torch.zeros(2, 2, device=weight.device, dtype=torch.float32)


def _is_plain(weight: Tensor) -> bool:
    tensors = (weight, weight.grad)
    return all(
        tensor is not None
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.is_contiguous()
        for tensor in tensors
    )


def _compute_gains(
    coherence: Tensor, energy: Tensor, states: list[dict[str, Any]], group: dict[str, Any]
) -> Tensor:
    """Return h e of eq. (6) for each tensor.

    Args:
        coherence: C of each tensor, then of its group, (2, tensor).
        energy: E likewise.
        states: of the tensors; their steps are counted already.
        group: settings of the group.
    """
    rho, lam = group["coherence_gain"], group["energy_gain"]
    if group["targets"] == "auto":
        steps = torch.stack([state["step"] for state in states])
        is_measuring = steps <= group["target_steps"]
        measured = torch.stack([coherence, energy]).to(states[0]["targets"].dtype)
        sums = torch.stack([state["targets"] for state in states], -1)  # (2, 2, tensor)
        sums = sums + torch.where(is_measuring, measured, 0.0)
        for index, state in enumerate(states):
            state["targets"].copy_(sums[..., index])
        ratio = measured / (sums / group["target_steps"]).clamp_min(1e-30)
        coherence, energy = torch.where(is_measuring, 1.0, ratio)
        coherence, energy = coherence - 1.0, 1.0 - energy
    else:
        coherence = coherence - group["coherence_target"]
        energy = group["energy_target"] - energy
    coherence = torch.tanh(coherence)
    h_l, h_g = 1.0 - rho * coherence[0], 1.0 - 0.5 * rho * coherence[1]  # eqs. (2), (4)
    e_l = (0.8 * (1.0 + lam * energy[0]) + 0.2).clamp(0.85, 1.15)  # eq. (5)
    e_g = (0.9 * (1.0 + 0.5 * lam * energy[1]) + 0.1).clamp(0.925, 1.075)  # eq. (3)
    return (0.3 * h_g + 0.7 * h_l) * (0.3 * e_g + 0.7 * e_l)  # eq. (6)


def _average(sums: Tensor, counts: Tensor) -> Tensor:
    """Return the mean of each tensor and, in the second row, that of the group."""
    local = sums / counts
    return torch.stack([local, (sums.sum() / counts.sum()).expand_as(local)])


def _step_tensors(
    weights: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
) -> None:
    """Run a step as torch operations, without waiting for the device."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    grads: list[Any] = [weight.grad for weight in weights]
    first, second, slow = (
        [state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "slow_avg")
    )
    torch._foreach_add_([state["step"] for state in states], 1.0)
    torch._foreach_lerp_(first, grads, 1.0 - beta1)
    torch._foreach_mul_(second, beta2)
    torch._foreach_addcmul_(second, grads, grads, 1.0 - beta2)
    torch._foreach_lerp_(slow, grads, 1.0 - _SLOW)
    fast = first
    if beta1 != _FAST:
        fast = [state["fast_avg"] for state in states]
        torch._foreach_lerp_(fast, grads, 1.0 - _FAST)
    squares = [norm.square() for norm in torch._foreach_norm(grads)]
    activities = torch._foreach_norm(torch._foreach_tanh(grads), 1)
    device = states[0]["step"].device
    counts = torch.tensor([float(grad.numel()) for grad in grads], device=device)
    coherence, energy = (
        _average(torch.stack([part.to(device) for part in parts]), counts)
        for parts in (activities, squares)
    )
    gains = _compute_gains(coherence, energy, states, group)
    roots = torch._foreach_sqrt(second)
    sizes, scales = torch._foreach_norm(first, 1), torch._foreach_norm(roots, 1)
    for index, (weight, state) in enumerate(zip(weights, states, strict=True)):
        grad, step = grads[index], state["step"]
        polarity = 0.5 * torch.tanh(_compute_cosine(first[index], grad))  # eq. (8)
        is_low = sizes[index] < _BALANCE_LIMIT * scales[index]  # eq. (9)
        balance = torch.where(is_low, _BALANCE * (1.0 - torch.exp(-_BALANCE_RATE * step)), 0.0)
        update = first[index] / (1.0 - beta1**step)
        update /= roots[index] / (1.0 - beta2**step).sqrt() + group["eps"]
        update += _FILTER * (0.6 * fast[index] + 0.4 * slow[index])  # eq. (7)
        update += _POLARITY * ((1.0 + balance) * grad + polarity * grad.abs())
        weight.mul_(1.0 - lr * group["weight_decay"])
        weight.sub_(update * (lr * gains[index]).to(weight.dtype))  # eq. (10)


def _compute_cosine(first: Tensor, grad: Tensor) -> Tensor:
    """Return the cosine of two tensors; 0 where one of them is zero."""
    size = first.norm() * grad.norm()
    return (first * grad).sum() / size.clamp_min(1e-30)


def _step_native(
    native: Any, weights: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]
) -> None:
    """Run a step of contiguous float32 tensors on a CPU as compiled code, in one call."""
    (beta1, beta2), is_fixed = group["betas"], group["targets"] == "fixed"
    sums = array.array("d", bytes(8 * _SUMS * len(weights)))
    room = sums.buffer_info()[0]
    rows = array.array("q")
    for index, (weight, state) in enumerate(zip(weights, states, strict=True)):
        rows.extend(
            (
                weight.data_ptr(),
                weight.grad.data_ptr(),  # type: ignore[union-attr]
                state["exp_avg"].data_ptr(),
                state["exp_avg_sq"].data_ptr(),
                state["slow_avg"].data_ptr(),
                0 if beta1 == _FAST else state["fast_avg"].data_ptr(),
                state["step"].data_ptr(),
                0 if is_fixed else state["targets"].data_ptr(),
                weight.numel(),
                room + 8 * _SUMS * index,
            )
        )
    names = ("eps", "coherence_target", "energy_target", "coherence_gain", "energy_gain")
    settings = array.array("d", (float(group["lr"]), group["weight_decay"], beta1, beta2))
    settings.extend(group[name] for name in (*names, "target_steps"))
    native.step(rows.buffer_info()[0], len(weights), settings.buffer_info()[0])


@functools.cache
def _load() -> Any | None:
    """Return the compiled functions; None without a C compiler, after one warning."""
    try:
        native = load_native(Path(__file__).with_suffix(".c"))
    except OSError as error:
        _log.warning("BiostatisV6 runs uncompiled on this CPU, about ten times slower: %s", error)
        return None
    native.step.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
    native.step.restype = None
    return native
