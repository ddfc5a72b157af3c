"""The synaptic bias on a GPU as one function: from the inner products to the rows of the bias.

    drive = product - theta_h                                                                   (1)
    bias = efficacy_bias(terminal_scan(drive))       of the ticks after the first               (2)

The kernels of triton_scan.py compute (1) and (2), the stochastic release, and all gradients, and
keep nothing per tick but the products. Under vmap, the candidates of a population are rows with
their own parameters. The bias is in fp32: bf16 would round a bias of 2 to 4 nat by up to 0.008,
more than the rounding of q and k moves a logit, and the gradient of a bias, which has its dtype,
leaves the range of fp16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from synaptune.synapse.kernel import (
    MAX_TOKENS,
    PACKED,
    fold_candidates,
    has_triton,
    list_values,
    unfold_candidates,
)

if TYPE_CHECKING:
    from synaptune.synapse.tensors import SynapseTensors

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_SEED = 2**62
# The order of the fields of Params in triton_rates.py.
_PACKED = PACKED | {
    "stochastic": "stochastic_train_frac",
    "attention": "lambda_loge epsilon",
}


def can_fuse(q: Tensor, params: SynapseTensors, tokens: int) -> bool:
    """Return whether `fused_bias` accepts queries (batch, head, token, d).

    It accepts ticks up to `MAX_TOKENS`, at least two of them, and parameters that are not learned.
    """
    return (
        q.is_cuda
        and q.dtype in DTYPES
        and tokens < q.shape[2]
        and tokens <= MAX_TOKENS
        and has_triton()
        and not any(value.requires_grad for value in list_values(params, _PACKED))
    )


def fused_bias(
    product: Tensor,
    threshold: Tensor,
    params: SynapseTensors,
    tokens: int,
    noise: torch.Generator | None = None,
    *,
    needs_efficacy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return the bias (2) [nat] and the efficacy [vesicle], both in fp32.

    Args:
        product: inner products of mean queries and keys, (batch, head, ticks - 1, key).
        threshold: theta_h, (head,).
        params: parameters of the synapse.
        tokens: tokens of a tick.
        noise: generator of the stochastic release; None for the expected release.
        needs_efficacy: whether to return the efficacy, (batch, head, ticks, key), without a
            gradient; else None takes its place.
    """
    packed = _pack(params)
    seed = None if noise is None else _draw_seed(noise, product)
    stores = torch.is_grad_enabled()
    bias, _, efficacy = _Bias.apply(
        product, threshold[None], packed, seed, tokens, stores, needs_efficacy
    )
    return bias, efficacy if needs_efficacy else None


def draw_fused_noise(
    product: Tensor, params: SynapseTensors, tokens: int, noise: torch.Generator
) -> Tensor:
    """Return the noise with which `fused_bias` releases, shaped as `product`.

    It is 0 for keys that are not born. The arguments are those of `fused_bias`, with the generator
    in the same state.
    """
    from synaptune.synapse.triton_scan import write_noise

    return write_noise(product, _pack(params), _draw_seed(noise, product), tokens)


def _pack(params: SynapseTensors) -> Tensor:
    return torch.stack(list_values(params, _PACKED))[None]


def _draw_seed(noise: torch.Generator, product: Tensor) -> Tensor:
    return torch.randint(MAX_SEED, (1,), generator=noise, device=product.device)


class _Bias(torch.autograd.Function):
    """Autograd function of bias, stored states and efficacy; only the bias has a gradient.

    Threshold, parameters and seed have a leading axis of sets; each set belongs to an equal share
    of the batch, in order.
    """

    @staticmethod
    def forward(
        product: Tensor,
        threshold: Tensor,
        packed: Tensor,
        seed: Tensor | None,
        tokens: int,
        stores: bool,
        needs_efficacy: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        from synaptune.synapse.triton_scan import run_forward

        return run_forward(
            product.contiguous(),
            threshold.contiguous(),
            packed.contiguous(),
            None if seed is None else seed.contiguous(),
            tokens,
            stores=stores,
            needs_efficacy=needs_efficacy,
        )

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*inputs[:4], output[1])
        ctx.tokens = inputs[4]

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        by_product, by_threshold = _Gradient.apply(*ctx.saved_tensors, grad, ctx.tokens)
        return by_product, by_threshold, *[None] * 5

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        folded = fold_candidates(info.batch_size, in_dims, *inputs[:4])
        outputs = _Bias.apply(*folded, *inputs[4:])
        return unfold_candidates(info.batch_size, outputs)


class _Gradient(torch.autograd.Function):
    """Gradients of product and threshold; a function, so that vmap can batch it."""

    @staticmethod
    def forward(
        product: Tensor,
        threshold: Tensor,
        packed: Tensor,
        seed: Tensor | None,
        stored: Tensor,
        grad: Tensor,
        tokens: int,
    ) -> tuple[Tensor, Tensor]:
        from synaptune.synapse.triton_scan import run_backward

        tensors = (product, threshold, packed, seed, stored, grad)
        ready = (None if x is None else x.contiguous() for x in tensors)
        return run_backward(*ready, tokens)  # type: ignore[arg-type]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Store nothing: there is no second derivative."""

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], *inputs: Any
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        folded = fold_candidates(info.batch_size, in_dims, *inputs[:-1])
        return unfold_candidates(info.batch_size, _Gradient.apply(*folded, inputs[-1]))
