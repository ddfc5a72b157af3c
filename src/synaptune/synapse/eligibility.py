"""Eligibility: a write passes through a decaying trace before it is a fast weight.

    Z' = post_trace_decay Z + (1 - post_trace_decay) O        per token                         (1)
    F' = post_fast_decay F + Z'                                                                 (2)
    F[t] = alpha^t F[0] + rho h(t-1) Z[0] + sum_{s=1..t} (1 - rho) h(t-s) O[s]                  (3)
    h(k) = sum_{j=0..k} alpha^(k-j) rho^j,  alpha = post_fast_decay,  rho = post_trace_decay

O outer product that a token writes, Z trace, F fast weights, all (rank x rank). With rho = 0 a
write acts at once; otherwise it is spread over the next tokens and its sum stays the same.
Source: (1), (2) eligibility traces of Gerstner et al., Front Neural Circuits 12:53 (2018); (3)
derived: the solution of (1) and (2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from synaptune.synapse.kinase import PostsynapticParams


class Response(NamedTuple):
    """Coefficients of (3) for lags of 0 to `count` tokens, each (count + 1,).

    Attributes:
        weights: alpha^t, what is left of F[0] after t tokens.
        pending: rho h(t-1), what F has received from Z[0]; 0 at t = 0.
        trace: rho^t, what is left of Z[0].
        write: (1 - rho) h(k), what F holds of a write k tokens ago.
        fresh: (1 - rho) rho^k, what Z holds of it.
    """

    weights: Tensor
    pending: Tensor
    trace: Tensor
    write: Tensor
    fresh: Tensor


def trace_step(trace: Tensor, outer: Tensor, params: PostsynapticParams) -> Tensor:
    """Advance Z by one token (1)."""
    return params.post_trace_decay * trace + (1.0 - params.post_trace_decay) * outer


def compute_response(params: PostsynapticParams, count: int, like: Tensor) -> Response:
    """Return the coefficients of (3); `like` gives device and dtype."""
    import torch

    alpha, rho = (
        torch.as_tensor(value, device=like.device, dtype=like.dtype)
        for value in (params.post_fast_decay, params.post_trace_decay)
    )
    index = torch.arange(count + 1, device=like.device)
    lag = index[:, None] - index[None, :]
    powers, trace = alpha ** lag.clamp(min=0), rho**index
    h = (powers * trace).tril().sum(-1)
    pending = torch.cat([torch.zeros_like(h[:1]), rho * h[:-1]])
    return Response(alpha**index, pending, trace, (1.0 - rho) * h, (1.0 - rho) * trace)
