"""The postsynaptic memory in Triton for CUDA, forward and backward.

Four kernels compute a sequence, and four its gradient: the gates; what every chunk does to the
state; the states, from chunk to chunk; what every chunk recalls. The kernels of the chunks run all
chunks at once. The kernel that passes the state has one program per row and coordinate, because the
coordinates of the post-activity do not mix.

The file is imported only for tensors on a GPU. Its tests compare it with fast_weights.py, in
Triton's interpreter on a CPU and, where there is one, on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from synaptune.synapse.triton_fast_weights import (
    gradient_kernel,
    map_kernel,
    pass_kernel,
    recall_kernel,
    reverse_map_kernel,
)
from synaptune.synapse.triton_kinase import (
    LEVELS,
    TABLES,
    open_gates_kernel,
    reverse_gates_kernel,
)

CHUNK = 16  # tokens solved at once
STAGES = 4  # maps that the pass over the chunks loads ahead
TICKS = 512  # ticks of a block of the gates
LEAST = 16  # smallest dimension of a product of matrices in Triton


class Kept(NamedTuple):
    """What the backward pass reads of the forward pass; the first dimension is the row.

    Attributes:
        levels: CaMKII, gate and calcium, (row, 3, tick + 1, rank).
        table: responses of eligibility.py by lag, (row, 3, 2 chunk).
        opening: mean gate, (row, token).
        inverse: M of a chunk, (row, chunk, token, token); one number with the Hebbian rule.
        maps: W of a chunk, (row, chunk, 2 half, 2 half).
        starts: [F, Z] at the start of a chunk, (row, chunk, rank, 2 half).
    """

    levels: Tensor
    table: Tensor
    opening: Tensor
    inverse: Tensor
    maps: Tensor
    starts: Tensor


def run_forward(
    pre: Tensor, post: Tensor, write: Tensor, packed: Tensor, *, tick: int, delta: bool
) -> tuple[Tensor, Tensor, Tensor, Kept]:
    """Return what the tokens recall, gate F and BDNF at the end, and what the gradient needs.

    Args:
        pre: pre-activity, (row, token, rank), contiguous, fp32.
        post: post-activity, as `pre`.
        write: learned factor of the write, (row, token), contiguous, fp32.
        packed: (set, parameter), parameters and constants of memory_kernel.py; each set belongs to
            an equal share of the rows, in order.
        tick: tokens of a tick of the gate.
        delta: use the delta rule.
    """
    rows, tokens, rank = pre.shape
    per_set, chunks = rows // len(packed), triton.cdiv(tokens, CHUNK)
    half = triton.next_power_of_2(rank)  # numbers of a row of F, and of Z, in [F, Z]
    square = CHUNK if delta else 1
    kept = Kept(
        pre.new_empty(rows, LEVELS.value, tokens // tick + 1, rank),
        pre.new_empty(rows, TABLES.value, 2 * CHUNK),
        torch.empty_like(write),
        pre.new_empty(rows, chunks if delta else 1, square, square),
        pre.new_empty(rows, chunks, 2 * half, 2 * half),
        pre.new_empty(rows, chunks, rank, 2 * half),
    )
    recalled, adds = torch.empty_like(pre), torch.empty_like(kept.starts)
    gated, sizes = pre.new_empty(rows, rank, rank), pre.new_empty(rows, chunks, rank)
    shape = {"rank": rank, "half": half, "chunk": CHUNK}
    solving = {"delta": delta, **_describe_products(half)}
    open_gates_kernel[(rows * rank,)](
        post, packed, per_set, kept.levels, kept.table, tokens,
        rank=rank, chunk=CHUNK, **_describe_ticks(tick),
    )  # fmt: skip
    map_kernel[(rows * chunks,)](
        pre, post, write, packed, per_set, kept.levels, kept.table, kept.opening, kept.inverse,
        kept.maps, adds, tokens,
        tick=tick, digits=CHUNK.bit_length() - 1, **shape, **solving,
    )  # fmt: skip
    pass_kernel[(rows * rank,)](
        kept.maps, adds, kept.starts, kept.levels, gated, tokens,
        tick=tick, reverse=False, stages=STAGES, num_warps=_count_pass_warps(half), **shape,
    )  # fmt: skip
    recall_kernel[(rows * chunks,)](
        pre, post, write, packed, per_set, kept.table, kept.opening, kept.inverse, kept.starts,
        recalled, sizes, tokens,
        **shape, **solving,
    )  # fmt: skip
    return recalled, gated, sizes.sum(1), kept


def run_backward(
    pre: Tensor,
    post: Tensor,
    write: Tensor,
    packed: Tensor,
    kept: Kept,
    grad: Tensor,
    *,
    tick: int,
    delta: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of pre, post and write from that of the recalled.

    Args:
        pre: as for `run_forward`, like the following three and `tick` and `delta`.
        post: post-activity.
        write: learned factor of the write.
        packed: parameters.
        kept: what `run_forward` returned.
        grad: gradient of the recalled, (row, token, rank), contiguous.
    """
    rows, tokens, rank = pre.shape
    per_set, chunks = rows // len(packed), kept.maps.shape[1]
    half = kept.maps.shape[-1] // 2
    chunk = kept.table.shape[-1] // 2
    dadds, dends = torch.empty_like(kept.starts), torch.empty_like(kept.starts)
    dpre, dpast, dpost, dwrite, dbeta = (
        torch.empty_like(x) for x in (pre, pre, post, write, write)
    )
    shape = {"rank": rank, "half": half, "chunk": chunk}
    solving = {"delta": delta, **_describe_products(half)}
    reverse_map_kernel[(rows * chunks,)](
        pre, write, packed, per_set, kept.table, kept.opening, kept.inverse, grad, dadds, tokens,
        **shape, **solving,
    )  # fmt: skip
    pass_kernel[(rows * rank,)](
        kept.maps, dadds, dends, kept.levels, dends, tokens,
        tick=tick, reverse=True, stages=STAGES, num_warps=_count_pass_warps(half), **shape,
    )  # fmt: skip
    gradient_kernel[(rows * chunks,)](
        pre, post, write, packed, per_set, kept.table, kept.opening, kept.inverse, kept.starts,
        dends, grad, dpre, dpast, dpost, dwrite, dbeta, tokens,
        **shape, **solving,
    )  # fmt: skip
    reverse_gates_kernel[(rows * rank,)](
        post, write, packed, per_set, kept.levels, dbeta, dpast, dpre, dpost, tokens,
        rank=rank, **_describe_ticks(tick),
    )  # fmt: skip
    return dpre, dpost, dwrite


def _describe_ticks(tick: int) -> dict[str, int]:
    return {"tick": tick, "bits": tick.bit_length() - 1, "block": TICKS}


def _describe_products(half: int) -> dict[str, int]:
    """Return the padded rank of the products, and the warps that keep them in registers."""
    wide = max(half, LEAST)
    return {"wide": wide, "num_warps": wide // 4}


def _count_pass_warps(half: int) -> int:
    """Return the warps of a program that passes the state: eight numbers of W in a thread."""
    return max(1, min(8, half * half // 64))
