"""The release of a GPU against the reference, for gpu.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from synaptune.synapse.bias import efficacy_bias
from synaptune.synapse.circuit import SPECS, SynapseParams
from synaptune.synapse.fused import draw_fused_noise, fused_bias
from synaptune.synapse.kernel import fast_scan
from synaptune.synapse.release import draw_noise
from synaptune.synapse.tensors import SynapseTensors
from synaptune.synapse.terminal import terminal_scan


def check_release(device: torch.device) -> list[dict[str, Any]]:
    """Largest error of the release against the double-precision reference, per corner."""
    here = [spec for spec in SPECS if spec.subsystem in ("calcium", "vesicles", "energy")]
    # An emptied terminal has a gradient of 1 / epsilon, which multiplies rounding errors.
    floor = {"synapse.attention.epsilon": 1e-2}
    corners = {
        "defaults": floor,
        "low ends": floor | {spec.name: spec.low for spec in here},
        "high ends": floor | {spec.name: spec.high for spec in here},
    }
    rows = []
    for name, values in corners.items():
        stream = torch.Generator().manual_seed(0)
        drive = 3.0 * torch.randn(2, 2, 12, 200, generator=stream)
        grad = torch.randn(drive.shape, generator=stream)
        params = SynapseTensors(SynapseParams().with_values(values))
        there = drive.to(device).requires_grad_()
        bias, noise = run_release(there, params.to(device))
        bias.backward(grad.to(device))
        exact = drive.detach().double().requires_grad_()
        expected = compute_bias(exact, params.cpu().double(), noise.cpu().double())
        expected.backward(grad.double())
        assert there.grad is not None
        assert exact.grad is not None
        rows.append(
            {
                "release at": name,
                "error of the bias": float((bias.cpu() - expected).abs().max().detach()),
                "error of gradients": float((there.grad.cpu() - exact.grad).abs().max()),
                "largest gradient": float(exact.grad.abs().max()),
            }
        )
    return rows


def compute_bias(drive: Tensor, params: SynapseTensors, noise: Tensor) -> Tensor:
    """Return the bias of a drive by the reference."""
    e = terminal_scan(drive, params, 16, noise)
    return efficacy_bias(e[:, :, 1:], e[:, :, :1, :1], params.attention)


def run_release(drive: Tensor, params: SynapseTensors) -> tuple[Tensor, Tensor]:
    """Return the bias of a drive by the code of its device, and its noise."""
    stream = torch.Generator(drive.device).manual_seed(0)
    if not drive.is_cuda:
        fraction = params.stochastic.stochastic_train_frac
        noise = draw_noise(tuple(drive.shape), fraction, stream, drive)
        e = fast_scan(drive, params, 16, noise)
        return efficacy_bias(e[:, :, 1:], e[:, :, :1, :1], params.attention), noise
    bias, _ = fused_bias(drive, drive.new_zeros(drive.shape[1]), params, 16, stream)
    return bias, draw_fused_noise(drive, params, 16, stream.manual_seed(0))
