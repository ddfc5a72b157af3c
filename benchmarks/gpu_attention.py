"""Attention with its biases for benchmarks/gpu.py: random inputs, a run, and its errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from synaptune.model.attention import AttentionBias, biased_attention, rms_norm
from synaptune.model.config import ModelConfig

SMALL = ModelConfig(layers=1, width=128, heads=2, context=200)  # 200 is no multiple of a tile
NAMES = ("q", "k", "v", "rows", "distance")


def make_attention(
    device: torch.device, config: ModelConfig, batch: int, dtype: torch.dtype
) -> list[Tensor]:
    """Draw q, k, v, the bias rows and the distance of one layer, all with gradients."""
    stream = torch.Generator().manual_seed(0)
    shape = (batch, config.heads, config.context)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=stream).to(device)

    inputs = [rms_norm(draw(*shape, config.head_width)).to(dtype) for _ in range(3)]
    inputs.append(draw(*shape[:2], -(-config.context // config.tick) - 1, config.context))
    inputs.append(draw(*shape).abs().cumsum(-1))
    return [tensor.requires_grad_() for tensor in inputs]


def run_attention(
    inputs: Sequence[Tensor], kernel: str = "auto", grad: Tensor | None = None
) -> Tensor:
    """Run forward and backward; with q, k and v alone the attention has no bias."""
    q, k, v, *biases = inputs
    if not biases:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        bias = AttentionBias(*biases, ModelConfig().tick)
        out = biased_attention(q, k, v, bias, kernel=kernel)
    out.backward(torch.ones_like(out) if grad is None else grad.to(out.dtype))
    return out


def check_attention(device: torch.device) -> list[dict[str, Any]]:
    """Relative errors of the output and the gradients against double precision, on a device."""
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        inputs = make_attention(device, SMALL, 2, dtype)
        exact = [x.detach().double().requires_grad_() for x in inputs]
        stream = torch.Generator().manual_seed(1)
        grad = torch.randn(inputs[0].shape, generator=stream).to(device)
        expected = run_attention(exact, "torch", grad)
        for kernel in ("torch", "auto"):
            leaves = [x.detach().requires_grad_() for x in inputs]
            row: dict[str, Any] = {"attention": f"{kernel}, {str(dtype)[6:]}"}
            row["values"] = compute_error(run_attention(leaves, kernel, grad), expected)
            for name, leaf, reference in zip(NAMES, leaves, exact, strict=True):
                row[f"by {name}"] = compute_error(leaf.grad, reference.grad)
            results.append(row)
    return results


def compute_error(value: Tensor | None, reference: Tensor | None) -> float:
    """Return the norm of the error over that of the reference."""
    assert value is not None
    assert reference is not None
    return float((value.detach().double() - reference.detach()).norm() / reference.detach().norm())
