"""The time step: constants are per token, and the state advances once per tick of c tokens.

For a linear recurrence x' = a x + d with a and d held over the tick:

    x after the tick          a^c x + gain(a, c) d          gain = 1 + a + ... + a^(c-1)        (1)
    sum of x_0 .. x_(c-1)     gain(a, c) x + total(a, c) d  total = gain_0 + ... + gain_(c-1)   (2)

With c = 1: a^c = a, gain = 1, total = 0, the per-token equation itself.
Source: derived: the exact solution of the recurrence. It is built by doubling, so it subtracts no
nearly equal numbers when a is close to 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class GeometricSums(NamedTuple):
    """Coefficients a^c, gain and total of (1) and (2)."""

    power: Tensor
    gain: Tensor
    total: Tensor


def geometric_sums(retention: Tensor | float, tokens: int) -> GeometricSums:
    """Return the coefficients that solve x' = a x + d over a tick of `tokens` tokens.

    A negative retention is an overshooting Euler step of the per-token equation and has a meaning
    for one token only. Over a longer tick it counts as 0: every token replaces the state.
    """
    import torch

    a = torch.as_tensor(retention)
    power, gain, total = a, torch.ones_like(a), torch.zeros_like(a)
    if tokens == 1:
        return GeometricSums(power, gain, total)
    power = a = a.clamp(min=0.0)
    for bit in bin(tokens)[3:]:
        power, gain, total = power * power, gain * (1.0 + power), 2.0 * total + gain * gain
        if bit == "1":
            power, gain, total = power * a, gain * a + 1.0, total + gain
    return GeometricSums(power, gain, total)


def linear_scan(retention: Tensor, drive: Tensor) -> Tensor:
    """Solve x_n = a_n x_(n-1) + d_n, x_(-1) = 0, for all n at once.

    Each round doubles the number of steps that a value spans (Hillis and Steele 1986).

    Args:
        retention: a, (batch, step, row).
        drive: d, (batch, step, row).

    Returns:
        x, (batch, step, row).
    """
    from torch.nn.functional import pad

    span = 1
    while span < drive.shape[1]:
        drive = drive + retention * pad(drive[:, :-span], (0, 0, span, 0))
        if 2 * span < drive.shape[1]:
            retention = retention * pad(retention[:, :-span], (0, 0, span, 0))
        span *= 2
    return drive
