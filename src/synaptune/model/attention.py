"""Causal attention with rotary or ALiBi positions, and a bias per (tick, key).

    logit[t, j] = q[t] . k[j] / sqrt(d) + bias[n(t), j]         (1)

The bias takes the road of the keys: a query carries the one-hot code of its tick, a key carries its bias for every tick, and their
inner product is the bias. So (1) is plain causal attention on longer vectors, which every fused attention computes, with gradients.
Source: rotary embedding, Su et al., arXiv 2104.09864; ALiBi, Press et al., arXiv 2108.12409; normalised queries and keys, Henry et al.,
arXiv 2010.04245; (1) by augmentation: derived.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROPE_BASE = 10_000.0


def rms_norm(x: Tensor) -> Tensor:
    """Root-mean-square normalisation of the last axis, without a gain."""
    return F.rms_norm(x, (x.shape[-1],))


def upcast(x: Tensor) -> Tensor:
    """At least single precision: what comes out of a bf16 product before it enters an equation."""
    return x if x.dtype == torch.float64 else x.float()


def rope_table(length: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, each (length, head_width / 2)."""
    frequency = ROPE_BASE ** -(torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position on (batch, head, token, head_width) with tables (token, head_width / 2)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def alibi_slopes(heads: int) -> Tensor:
    """ALiBi's geometric slopes 2^(-8 h / H), h = 1 .. H."""
    return 2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads)


def biased_attention(
    q: Tensor, k: Tensor, v: Tensor, code: Tensor | None, bias: Tensor | None
) -> Tensor:
    """Causal attention (1): q, k, v (batch, head, token, d); code (token, m), bias (batch or 1, head or 1, m, token) or both None.

    code[t] selects the bias row of query t (one-hot of its tick, or any linear code). Returns (batch, head, token, d).
    """
    if code is None or bias is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    batch, heads, length, width = q.shape
    rows = code.shape[-1]
    pad = -(width + rows) % 8  # fused kernels like widths in eights
    q = torch.cat([q * width**-0.5, code.to(q.dtype).expand(batch, heads, length, rows)], -1)
    k = torch.cat([k, bias.transpose(-1, -2).to(k.dtype).expand(batch, heads, length, rows)], -1)
    if pad:
        q, k = F.pad(q, (0, pad)), F.pad(k, (0, pad))
    out = F.scaled_dot_product_attention(q, k, F.pad(v, (0, rows + pad)), is_causal=True, scale=1.0)
    return out[..., :width]


class Attention(nn.Module):
    """Projections of one layer's attention; the bias comes from the caller."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def project(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, token, width) -> normalised, rotated q and k, and v, each (batch, head, token, d)."""
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
        """(batch, head, token, d) -> (batch, token, width)."""
        return self.out(heads.transpose(1, 2).flatten(2))
