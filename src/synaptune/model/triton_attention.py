"""The attention (1) of attention.py in Triton for CUDA, forward and backward.

The cost is that of plain attention and of reading the biases once; attention.py extends queries and
keys instead. Under vmap, the candidates of a population are part of the batch. The file is imported
only for tensors on a GPU. Its tests compare it with attention.py, in Triton's interpreter on a CPU
and, where there is one, on a GPU.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from synaptune.model.attention import get_attention_dtype
from synaptune.model.triton_kernels import (
    LOG2_E,
    forward_kernel,
    key_gradient_kernel,
    query_gradient_kernel,
)
from synaptune.synapse.kernel import fold_candidates, unfold_candidates

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
MAX_BYTES = 256  # of a vector of the widest head: the tiles of a wider one do not fit in registers
MAX_TICK = 64  # a tile of queries holds it whole; longer ticks have few rows, which cost little
MIN_CAPABILITY = (8, 0)  # first GPUs with bf16 and asynchronous copies


class Tiles(NamedTuple):
    """Sizes of a kernel: queries and keys of a tile, warps of a program, stages of its loop."""

    queries: int
    keys: int
    warps: int
    stages: int


class KernelTiles(NamedTuple):
    """Tiles of the three kernels."""

    forward: Tiles
    query_gradient: Tiles
    key_gradient: Tiles


# Chosen: registers of an H100 hold them, and two or three programs share a multiprocessor.
NARROW = KernelTiles(Tiles(128, 64, 4, 3), Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 3))
WIDE = KernelTiles(Tiles(64, 64, 4, 2), Tiles(64, 64, 4, 2), Tiles(32, 64, 8, 2))
SINGLE = KernelTiles(Tiles(32, 32, 8, 1), Tiles(32, 32, 8, 1), Tiles(32, 32, 8, 1))
NARROW_WIDTH = 64  # widest head of `NARROW`; `SINGLE` is for fp32, whatever the width
MAX_WARPS = 8
SHORT_TICK = 4  # a tile of shorter ticks has so many rows that the stages must be fewer
PRECISION = "ieee"  # of products in fp32


def can_run(q: Tensor, tick: int) -> bool:
    """Return whether the kernels accept queries (batch, head, token, d) in ticks of a length.

    They accept heads up to 128 wide in 16 bits and 64 wide in fp32, and ticks up to `MAX_TICK`.
    """
    dtype = get_attention_dtype(q)
    return (
        dtype in DTYPES
        and q.shape[-1] * dtype.itemsize <= MAX_BYTES
        and tick <= MAX_TICK
        and torch.cuda.get_device_capability(q.device) >= MIN_CAPABILITY
    )


def attend(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, distance: Tensor | None, tick: int
) -> Tensor:
    """Compute the attention (1) of attention.py, (batch, head, token, d).

    Args:
        q: queries, (batch, head, token, d).
        k: keys, as `q`.
        v: values, as `q`.
        rows: bias of the ticks after the first, (batch or 1, head or 1, tick, token) [nat]; None
            for none.
        distance: bias of each key, (batch or 1, head or 1, token) [nat]; None for none.
        tick: length of a tick [token].
    """
    q, k, v = (x.to(get_attention_dtype(x)) for x in (q, k, v))
    if rows is not None:
        rows = rows.expand(*q.shape[:2], *rows.shape[2:]) if rows.shape[2] else None
    if distance is not None:
        distance = distance.float().expand(q.shape[:3])
    return _Attention.apply(q, k, v, rows, distance, tick)[0]


class _Attention(torch.autograd.Function):
    """Autograd function of output and base-2 logarithm; only the output has a gradient."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, distance: Tensor | None, tick: int
    ) -> tuple[Tensor, Tensor]:
        return run_forward(q, k, v, rows, distance, tick)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.tick = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, *output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        learns = ctx.needs_input_grad[3:5]
        gradients = iter(_Gradient.apply(*ctx.saved_tensors, grad, ctx.tick, learns))
        inner = next(gradients), next(gradients), next(gradients)
        return *inner, *(next(gradients) if wanted else None for wanted in learns), None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        folded = fold_candidates(info.batch_size, in_dims, *inputs[:-1])
        outputs = _Attention.apply(*folded, inputs[-1])
        return unfold_candidates(info.batch_size, outputs)


class _Gradient(torch.autograd.Function):
    """Gradients of q, k, v and the learned biases; a function, so that vmap can batch it."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return run_backward(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Store nothing: there is no second derivative."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        folded = fold_candidates(info.batch_size, in_dims, *inputs[:-2])
        outputs = _Gradient.apply(*folded, *inputs[-2:])
        return unfold_candidates(info.batch_size, outputs)


def run_forward(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor | None, distance: Tensor | None, tick: int
) -> tuple[Tensor, Tensor]:
    """Return the output and the base-2 logarithm of the sum of the weights of each query.

    Args:
        q: queries, (batch, head, token, d).
        k: keys, as `q`.
        v: values, as `q`.
        rows: (batch, head, tick, token) [nat]; None for none.
        distance: (batch, head, token) in fp32 [nat]; None for none.
        tick: length of a tick [token].
    """
    batch, heads, tokens, width = q.shape
    # The order in memory in which the projection of the heads reads the output.
    out = v.new_empty(batch, tokens, heads, width).transpose(1, 2)
    norm = q.new_empty(batch, heads, tokens, dtype=torch.float32)
    tensors = [_align(x) for x in (q, k, v, rows, distance)]
    tiles = pick_tiles(q, tick).forward
    sizes = _measure(q, rows, distance, tick, tiles)
    forward_kernel[(_count_tiles(sizes) * batch * heads,)](
        *(q if x is None else x for x in tensors),
        out,
        norm,
        tuple(map(_get_strides, (*tensors, out))),
        **sizes,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return out, norm


def run_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rows: Tensor | None,
    distance: Tensor | None,
    out: Tensor,
    norm: Tensor,
    grad: Tensor,
    tick: int,
    learns: tuple[bool, bool],
) -> tuple[Tensor, ...]:
    """Return the gradients of q, k and v, then of `rows` and `distance` where they are learned.

    Args:
        q: as in `run_forward`; so are `k`, `v`, `rows`, `distance` and `tick`.
        out: first result of `run_forward`.
        norm: second result of `run_forward`.
        grad: gradient of `out`.
        learns: whether `rows` and `distance` need gradients.
    """
    batch, heads, tokens, _ = q.shape
    tensors = [_align(x) for x in (q, k, v, rows, distance)]
    biased = [q if x is None else x for x in tensors]
    grad, norm = _align(grad), norm.contiguous()
    delta = torch.empty_like(norm)
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    learned = [
        x.new_empty(x.shape) if x is not None and wanted else None
        for x, wanted in zip((rows, distance), learns, strict=True)
    ]
    tiles = pick_tiles(q, tick).query_gradient
    sizes = _measure(q, rows, distance, tick, tiles)
    query_gradient_kernel[(_count_tiles(sizes) * batch * heads,)](
        *biased,
        out,
        norm,
        grad,
        delta,
        dq,
        tuple(map(_get_strides, (*tensors, out, grad, dq))),
        **sizes,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    tiles = pick_tiles(q, tick).key_gradient
    sizes = _measure(q, rows, distance, tick, tiles)
    key_gradient_kernel[(triton.cdiv(tokens, tiles.keys) * batch * heads,)](
        *biased,
        norm,
        grad,
        delta,
        dk,
        dv,
        *(q if x is None else x for x in learned),
        tuple(map(_get_strides, (*tensors, grad, dk, dv))),
        **sizes,
        learns_rows=learned[0] is not None,
        learns_distance=learned[1] is not None,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return dq, dk, dv, *(x for x in learned if x is not None)


def pick_tiles(q: Tensor, tick: int) -> KernelTiles:
    """Return the tiles of the kernels for queries (batch, head, token, d) in ticks of a length."""
    kernels = SINGLE
    if q.element_size() == 2:
        kernels = NARROW if q.shape[-1] <= NARROW_WIDTH else WIDE
    places = triton.next_power_of_2(tick)
    picked = []
    for tiles in kernels:
        large = places > tiles.queries
        if large:
            tiles = tiles._replace(queries=places, warps=MAX_WARPS)
        if large or tick < SHORT_TICK:
            tiles = tiles._replace(stages=min(tiles.stages, 2))
        picked.append(tiles)
    return KernelTiles(*picked)


def _measure(
    q: Tensor, rows: Tensor | None, distance: Tensor | None, tick: int, tiles: Tiles
) -> dict[str, Any]:
    """Return the arguments that all kernels share, as triton_kernels.py describes them."""
    batch, heads, tokens, width = q.shape
    tick = 1 if rows is None else tick
    padded = triton.next_power_of_2(tick)
    return {
        "heads": heads,
        "pairs": batch * heads,
        "tokens": tokens,
        "updates": 0 if rows is None else rows.shape[2],
        "scale": width**-0.5 * LOG2_E.value,
        "width": width,
        "wide": max(triton.next_power_of_2(width), 16),
        "tick": tick,
        "padded": padded,
        "block": tiles.queries,
        "keys": tiles.keys,
        "has_rows": rows is not None,
        "has_distance": distance is not None,
        "even": padded == tick and tokens % tiles.queries == 0,
        "precision": PRECISION,
    }


def _count_tiles(sizes: dict[str, Any]) -> int:
    """Return the tiles of queries of a pair of batch and head."""
    return triton.cdiv(sizes["tokens"], sizes["block"] // sizes["padded"] * sizes["tick"])


def _align(x: Tensor | None) -> Tensor | None:
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _get_strides(x: Tensor | None) -> tuple[int, int, int]:
    """Return the strides of the axes before the last, filled with zeros."""
    return (0, 0, 0) if x is None else (*x.stride()[:-1], 0)[:3]
