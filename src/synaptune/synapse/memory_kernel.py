"""The postsynaptic memory as compiled code: the equations of fast_weights.py and their adjoint.

On a CPU the C source memory.c runs the tokens one after another; on a GPU the Triton kernels of
triton_memory.py run. Under vmap, the candidates of a population are rows with their own parameters.
The chunks of fast_weights.py run instead without a C compiler or Triton, and when a parameter is
learned. They give the same numbers in about 700 small operations a layer, forward and backward.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from synaptune.synapse.fast_weights import WRITE_SCALE, Activity, Consolidation, memory_scan
from synaptune.synapse.kernel import (
    C_TYPES,
    fold_candidates,
    has_triton,
    load_library,
    pack_parameters,
    unfold_candidates,
)
from synaptune.synapse.kinase import GATE_SLOPE, SWITCH_SLOPE

if TYPE_CHECKING:
    from synaptune.synapse.kinase import PostsynapticParams
    from synaptune.synapse.metaplasticity import BdnfParams

# The order of the fields of Params in memory.c, which end with bdnf_tau and the constants.
_PACKED = (
    "rank_eligibility",
    "post_fast_decay",
    "post_fast_lr",
    "post_trace_decay",
    "camkii_up",
    "camkii_down",
    "pp1_tau",
    "camkii_thr",
    "pp1_thr",
)
_CONSTANTS = (WRITE_SCALE, SWITCH_SLOPE, GATE_SLOPE)


def fast_memory_scan(
    activity: Activity,
    post_params: PostsynapticParams,
    bdnf_params: BdnfParams,
    *,
    delta: bool,
    tick: int,
) -> tuple[Tensor, Consolidation]:
    """Run `memory_scan`, compiled where possible; arguments and results are the same."""
    values: list[Any] = [getattr(post_params, name) for name in _PACKED]
    pre = activity.pre
    if any(value.requires_grad for value in values) or not _has_kernel(pre):
        return memory_scan(activity, post_params, bdnf_params, delta=delta, tick=tick)
    bdnf_tau: Any = bdnf_params.bdnf_tau
    packed = pack_parameters([*values, bdnf_tau], _CONSTANTS, pre)
    recalled, gated, bdnf, *_ = _MemoryScan.apply(*activity, packed, tick, delta)  # type: ignore[misc]
    return recalled, Consolidation(gated, bdnf)


def _runs_in_triton(x: Tensor) -> bool:
    return x.device.type == "cuda"


def _has_kernel(pre: Tensor) -> bool:
    if _runs_in_triton(pre):
        return pre.dtype == torch.float32 and has_triton()
    return (
        pre.device.type == "cpu"
        and pre.dtype in C_TYPES
        and load_library("memory", pre.dtype) is not None
    )


class _MemoryScan(torch.autograd.Function):
    """Autograd function of the compiled memory; the activity has a gradient.

    It returns what the tokens recall, and gate F and w after the last token of each row, which
    have no gradient. The parameters are (set, parameter); each set belongs to an equal share of the
    batch, in order. On a GPU it also returns what the backward pass reads again (`Kept` of
    triton_memory.py); on a CPU the backward pass computes the weights again.
    """

    @staticmethod
    def forward(
        pre: Tensor, post: Tensor, write: Tensor, packed: Tensor, tick: int, delta: bool
    ) -> tuple[Tensor, ...]:
        if _runs_in_triton(pre):
            from synaptune.synapse.triton_memory import run_forward

            inputs = (x.contiguous() for x in (pre, post, write, packed))
            *out, kept = run_forward(*inputs, tick=tick, delta=delta)
            return *out, *kept
        batch, _, rank = pre.shape
        recalled = torch.empty_like(pre, memory_format=torch.contiguous_format)
        gated, bdnf = pre.new_empty(batch, rank, rank), pre.new_empty(batch, rank)
        outputs = (recalled, gated, bdnf, *[None] * 4)
        _call((pre, post, write), outputs, packed, tick, delta)
        return recalled, gated, bdnf

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:4], *output[3:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.tick, ctx.delta = inputs[4:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        pre, post, write, packed, *kept = ctx.saved_tensors
        gradients = _MemoryGradient.apply(
            pre, post, write, packed, ctx.tick, ctx.delta, grad, *kept
        )
        return (*gradients, None, None, None)  # type: ignore[misc]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        folded = fold_candidates(info.batch_size, in_dims, *inputs[:4])
        return unfold_candidates(info.batch_size, _MemoryScan.apply(*folded, *inputs[4:]))


class _MemoryGradient(torch.autograd.Function):
    """Gradient of the activity from that of the recalled; a function, so that vmap can batch it."""

    @staticmethod
    def forward(
        pre: Tensor,
        post: Tensor,
        write: Tensor,
        packed: Tensor,
        tick: int,
        delta: bool,
        grad: Tensor,
        *kept: Tensor,
    ) -> tuple[Tensor, ...]:
        if _runs_in_triton(pre):
            from synaptune.synapse.triton_memory import Kept, run_backward

            pre, post, write, packed, grad = (
                x.contiguous() for x in (pre, post, write, packed, grad)
            )
            saved = Kept(*(x.contiguous() for x in kept))
            return run_backward(pre, post, write, packed, saved, grad, tick=tick, delta=delta)
        into = tuple(
            torch.empty_like(x, memory_format=torch.contiguous_format) for x in (pre, post, write)
        )
        outputs = (None, None, None, grad.contiguous(), *into)
        _call((pre, post, write), outputs, packed, tick, delta)
        return into

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        """Store nothing: there is no second derivative."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Any, Any]:
        dims = (*in_dims[:4], *in_dims[6:])
        folded = fold_candidates(info.batch_size, dims, *inputs[:4], *inputs[6:])
        out = _MemoryGradient.apply(*folded[:4], *inputs[4:6], *folded[4:])
        return unfold_candidates(info.batch_size, out)


def _call(
    activity: tuple[Tensor, Tensor, Tensor],
    outputs: tuple[Tensor | None, ...],
    packed: Tensor,
    tick: int,
    delta: bool,
) -> None:
    tensors = [*(x.contiguous() for x in activity), *outputs, packed.contiguous()]
    rows, tokens, rank = tensors[0].shape
    function = load_library("memory", tensors[0].dtype)
    assert function is not None
    pointers = [None if x is None else x.data_ptr() for x in tensors]
    if function(*pointers, len(packed), rows, tokens, rank, tick, int(delta)):
        raise MemoryError(
            f"not enough memory for the fast weights of {tokens} tokens: lower model.context"
        )
