"""Causal attention with rotary or ALiBi positions, and a bias per (tick, key).

    logit[t, j] = q[t] . k[j] / sqrt(d) + bias[n(t), j]         (1)

Queries and keys are extended to compute the bias: a query by the one-hot code of its tick, a key by
its bias in every tick. The inner product of the extensions is the bias. So (1) is plain causal
attention on longer vectors, for which fused kernels with gradients exist.
Source: rotary embedding, Su et al., arXiv 2104.09864; ALiBi, Press et al., arXiv 2108.12409;
normalised queries and keys, Henry et al., arXiv 2010.04245; (1) by extension: derived.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROPE_BASE = 10_000.0


def rms_norm(x: Tensor) -> Tensor:
    """Normalise the last axis by its root mean square, without a gain."""
    return F.rms_norm(x, (x.shape[-1],))


def upcast(x: Tensor) -> Tensor:
    """Convert to fp32 unless x is fp64; the equations do not run in bf16."""
    return x if x.dtype == torch.float64 else x.float()


def rope_table(length: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of the rotary angles, each (length, head_width / 2)."""
    frequency = ROPE_BASE ** -(torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary positions to x (batch, head, token, head_width).

    The tables `cos` and `sin` are (token, head_width / 2).
    """
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def alibi_slopes(heads: int) -> Tensor:
    """Return ALiBi's geometric slopes 2^(-8 h / H), h = 1 .. H."""
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)


def biased_attention(
    q: Tensor, k: Tensor, v: Tensor, code: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Compute causal attention (1), (batch, head, token, d).

    Args:
        q: queries, (batch, head, token, d).
        k: keys, (batch, head, token, d).
        v: values, (batch, head, token, d).
        code: (token, row); code[t] selects the bias row of query t, such as the one-hot code of
            its tick. None for no bias.
        bias: bias rows, (batch or 1, head or 1, row, token) [nat]; None for no bias.
    """
    if code is None or bias is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    batch, heads, length, width = q.shape
    rows = code.shape[-1]
    pad = -(width + rows) % 8  # fused kernels are fast at multiples of 8
    q = torch.cat([q * width**-0.5, code.to(q.dtype).expand(batch, heads, length, rows)], -1)
    k = torch.cat([k, bias.transpose(-1, -2).to(k.dtype).expand(batch, heads, length, rows)], -1)
    if pad:
        q, k = F.pad(q, (0, pad)), F.pad(k, (0, pad))
    out = F.scaled_dot_product_attention(q, k, F.pad(v, (0, rows + pad)), is_causal=True, scale=1.0)
    return out[..., :width]


class Attention(nn.Module):
    """Projections of one layer's attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def project(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project x (batch, token, width) to q, k and v, each (batch, head, token, d).

        q and k are normalised and, with `rope`, rotated.
        """
        batch, length, width = x.shape
        q, k, v = (
            self.qkv(x)
            .view(batch, length, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        q, k = rms_norm(q), rms_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return q, k, v

    def merge(self, heads: Tensor) -> Tensor:
        """Project the heads (batch, head, token, d) to (batch, token, width)."""
        return self.out(heads.transpose(1, 2).flatten(2))
