"""Gated DeltaNet in place of attention: the control of the memory, with a state per head.

    q, k, v = silu(conv(x Wqkv)), q and k of unit length                                        (1)
    S[t] = alpha[t] S[t-1] + beta[t] (v[t] - alpha[t] S[t-1] k[t]) k[t]^T                       (2)
    alpha[t] = exp(-softplus(w . x[t] + b)),  beta[t] = sigmoid(w' . x[t])        per head      (3)
    out[t] = (rms_norm(S[t] q[t]) * silu(x[t] Wg)) Wo                                           (4)

conv causal convolution over CONV_TAPS tokens per channel, S state (d x d) of a head. In a chunk
that starts with S[0], with g[t] the sum of the log of alpha, the writes u = beta (v - ...) satisfy

    (I + diag(beta) tril(K K^T * D, -1)) U = diag(beta) (V - exp(g) K S[0]^T)                   (5)
    S[t] q[t] = exp(g[t]) S[0] q[t] + sum_{s <= t} D[t, s] (k[s] . q[t]) u[s]                   (6)

with D[t, s] = exp(g[t] - g[s]). The state passes from chunk to chunk, so the cost is linear.
Source: Yang et al., arXiv 2412.06464; the first values of b are chosen: memories of 10 to 1,000
tokens over the heads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptune.model.attention import Attention, rms_norm, upcast

CONV_TAPS = 4
CHUNK = 32  # tokens that (5) solves at once; it has no effect on the result
FASTEST, SLOWEST = 0.1, 0.001  # first -log(alpha) of the heads [1/token]


class DeltaState(NamedTuple):
    """State of one layer after a token.

    Attributes:
        inputs: last inputs of the convolution, (batch, CONV_TAPS - 1, 3 width).
        state: S, (batch, head, d, d).
    """

    inputs: Tensor
    state: Tensor


class DeltaNet(Attention):
    """Projections and gates of one layer.

    Args:
        width: width of the residual stream.
        heads: number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads)
        self.conv = nn.Parameter(torch.empty(3 * width, CONV_TAPS))
        self.gate = nn.Linear(width, width, bias=False)
        self.rates = nn.Linear(width, 2 * heads, bias=False)
        speeds = FASTEST * (SLOWEST / FASTEST) ** torch.linspace(0, 1, heads)
        self.decay = nn.Parameter(speeds.expm1().log())  # the inverse of softplus

    def init_state(self, batch: int) -> DeltaState:
        """Return the state of a new sequence."""
        like, width = self.out.weight, self.out.weight.shape[0]
        size = width // self.heads
        return DeltaState(
            like.new_zeros(batch, CONV_TAPS - 1, 3 * width),
            upcast(like.new_zeros(batch, self.heads, size, size)),
        )

    def forward(self, x: Tensor, before: DeltaState) -> tuple[Tensor, DeltaState]:
        """Run the layer on the normalised input x (batch, token, width) after a state."""
        batch, length, width = x.shape
        inputs = torch.cat([before.inputs.to(x.dtype), self.qkv(x)], 1)
        mixed = F.silu(F.conv1d(inputs.transpose(1, 2), self.conv[:, None], groups=3 * width))
        q, k, v = upcast(mixed).view(batch, 3, self.heads, -1, length).transpose(-1, -2).unbind(1)
        rates = upcast(self.rates(x)).transpose(1, 2)
        speed, write = rates.chunk(2, 1)
        log_alpha = -F.softplus(speed + upcast(self.decay)[:, None])
        with torch.autocast(x.device.type, enabled=False):
            read, state = delta_scan(
                (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v),
                log_alpha,
                write.sigmoid(),
                before.state,
            )
        heads = rms_norm(read).transpose(1, 2).flatten(2).to(x.dtype)
        return self.out(heads * F.silu(self.gate(x))), DeltaState(inputs[:, length:], state)


def delta_scan(
    qkv: tuple[Tensor, Tensor, Tensor], log_alpha: Tensor, beta: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute S[t] q[t] (6) of each token, and the last state.

    Args:
        qkv: q, k and v, each (batch, head, token, d).
        log_alpha: log of the retention, (batch, head, token).
        beta: size of the write, (batch, head, token).
        state: S before the first token, (batch, head, d, d).
    """
    reads = []
    for first in range(0, beta.shape[-1], CHUNK):
        part = slice(first, first + CHUNK)
        q, k, v = (value[:, :, part] for value in qkv)
        sums, write = log_alpha[:, :, part].cumsum(-1), beta[:, :, part, None]
        decay = (sums[..., :, None] - sums[..., None, :]).tril().exp().tril()
        left = sums.exp()[..., None]
        system = (write * (k @ k.transpose(-1, -2)) * decay).tril(-1)
        change = torch.linalg.solve_triangular(
            system,
            write * (v - left * (k @ state.transpose(-1, -2))),
            upper=False,
            unitriangular=True,
        )
        reads.append(
            left * (q @ state.transpose(-1, -2)) + ((q @ k.transpose(-1, -2)) * decay) @ change
        )
        late = (sums[..., -1:] - sums).exp()[..., None]
        state = left[:, :, -1:] * state + change.transpose(-1, -2) @ (late * k)
    return torch.cat(reads, 2), state
