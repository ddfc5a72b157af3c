"""Causal attention with rotary or ALiBi positions, a bias per (tick, key) and one per key.

    logit[t, j] = q[t] . k[j] / sqrt(d) + bias[n(t), j] + distance[j]         (1)

Queries and keys are extended to compute the biases: a query by the one-hot code of its tick and a
one, a key by its bias in every tick and its distance. The inner product of the extensions is the
bias. So (1) is plain causal attention on longer vectors, for which fused kernels with gradients
exist. On a GPU the kernels of triton_attention.py compute (1) directly. With a window, a query
attends to the last `window` keys only. Noise multiplies the attention weights after the softmax;
only then are they computed one by one.
Source: rotary embedding, Su et al., arXiv 2104.09864; ALiBi, Press et al., arXiv 2108.12409;
normalised queries and keys, Henry et al., arXiv 2010.04245; smeared keys, Olsson et al., arXiv
2209.11895 (in-context learning and induction heads); (1) by extension: derived.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptune.synapse.kernel import has_triton

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


class AttentionBias(NamedTuple):
    """Terms of (1) beside the inner product.

    Attributes:
        rows: bias of the ticks after the first, (batch or 1, head or 1, tick, token) [nat]; None
            for none.
        distance: bias of each key, (batch or 1, head or 1, token) [nat]; None for none.
        tick: length of a tick [token]; the queries of a tick share a row.
    """

    rows: Tensor | None = None
    distance: Tensor | None = None
    tick: int = 1


def biased_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: AttentionBias,
    *,
    window: int = 0,
    noise: Tensor | None = None,
    kernel: str = "auto",
) -> Tensor:
    """Compute causal attention (1), (batch, head, token, d).

    Args:
        q: queries, (batch, head, token, d).
        k: keys, (batch, head, token, d).
        v: values, (batch, head, token, d).
        bias: the biases.
        window: last keys that a query sees; 0 for all of them.
        noise: factors of the attention weights, (batch, head, token, token); None for none.
        kernel: `auto` uses the kernels of triton_attention.py where possible, `torch` never.
    """
    is_biased = bias.rows is not None or bias.distance is not None
    is_plain = not window and noise is None and not torch.compiler.is_compiling()
    if q.is_cuda and is_biased and is_plain and kernel == "auto" and has_triton():
        from synaptune.model import triton_attention

        if triton_attention.can_run(q, bias.tick):
            return triton_attention.attend(q, k, v, bias.rows, bias.distance, bias.tick)
    width, scale = q.shape[-1], q.shape[-1] ** -0.5
    codes, entries = _extend(q, bias)
    if codes:
        pad = -(width + sum(code.shape[-1] for code in codes)) % 8  # kernels are fast at these
        codes, entries = [q * scale, *codes], [k, *entries]
        if pad:
            zeros = q.new_zeros(*q.shape[:-1], pad)
            codes, entries = [*codes, zeros], [*entries, zeros]
        q, k, scale = torch.cat(codes, -1), torch.cat(entries, -1), 1.0
    if noise is None:
        extra = q.shape[-1] - width
        out = F.scaled_dot_product_attention(
            q,
            k,
            F.pad(v, (0, extra)) if extra else v,
            attn_mask=make_window_mask(q.shape[2], window, q.device) if window else None,
            is_causal=not window,
            scale=scale,
        )
        return out[..., :width]
    mask = make_window_mask(q.shape[2], window or q.shape[2], q.device)
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, -torch.inf)
    return (upcast(scores).softmax(-1) * noise).to(v.dtype) @ v


def _extend(q: Tensor, bias: AttentionBias) -> tuple[list[Tensor], list[Tensor]]:
    """Return the extensions of queries and keys, each (batch, head, token, columns)."""
    shape, codes, entries = q.shape[:-1], [], []
    if bias.rows is not None:
        rows = bias.rows.shape[-2]
        tick = torch.arange(q.shape[2], device=q.device) // bias.tick
        code = tick[:, None] == torch.arange(1, rows + 1, device=q.device)
        codes.append(code.to(q.dtype).expand(*shape, rows))
        entries.append(bias.rows.transpose(-1, -2).to(q.dtype).expand(*shape, rows))
    if bias.distance is not None:
        column, dtype = bias.distance[..., None], get_attention_dtype(q)
        parts = [column.to(dtype).to(q.dtype)]
        if dtype in (torch.bfloat16, torch.float16):
            # The time of a key grows with its position; a second column keeps the lost digits.
            parts.append((column - parts[0].to(column.dtype)).to(q.dtype))
        entries += [part.expand(*shape, 1) for part in parts]
        codes.append(q.new_ones(*shape, len(parts)))
    return codes, entries


def get_attention_dtype(q: Tensor) -> torch.dtype:
    """Return the dtype in which autocast runs torch's attention, that of q without autocast."""
    if torch.is_autocast_enabled(q.device.type):
        return torch.get_autocast_dtype(q.device.type)
    return q.dtype


def make_window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """Return a mask (token, token) that is True for the last `window` keys of each query."""
    index = torch.arange(length, device=device)
    lag = index[:, None] - index[None, :]
    return (lag >= 0) & (lag < window)


class Attention(nn.Module):
    """Projections of one layer's attention.

    With `smear`, a key is a mixture of its token's and of the token before, in a learned proportion
    per head: s k[t] + (1 - s) k[t-1], s = sigmoid(smear), 1/2 at the start.
    """

    def __init__(self, width: int, heads: int, *, smear: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.smear = nn.Parameter(torch.zeros(heads)) if smear else None
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def project(
        self, x: Tensor, rope: tuple[Tensor, Tensor] | None, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project x (batch, token, width) to q, k and v, each (batch, head, token, d).

        q and k are normalised and, with `rope`, rotated. `before` is the input of the token before
        the first one, (batch, 1, width), which smeared keys need; None at the start of a sequence.
        """
        batch, length, width = x.shape
        q, k, v = (
            self.qkv(x)
            .view(batch, length, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        if self.smear is not None:
            k = self._mix_keys(k, before)
        q, k = rms_norm(q), rms_norm(k)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return q, k, v

    def _mix_keys(self, k: Tensor, before: Tensor | None) -> Tensor:
        assert self.smear is not None
        if before is None:
            first = torch.zeros_like(k[:, :, :1])
        else:
            weight = self.qkv.weight.chunk(3)[1]
            first = F.linear(before, weight).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        earlier = torch.cat([first, k[:, :, :-1]], 2)
        return earlier.lerp(k, self.smear.sigmoid().to(k.dtype)[:, None, None])

    def merge(self, heads: Tensor) -> Tensor:
        """Project the heads (batch, head, token, d) to (batch, token, width)."""
        return self.out(heads.transpose(1, 2).flatten(2))
