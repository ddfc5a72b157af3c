"""The memory of a GPU against the reference, for gpu.py."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from synaptune.synapse.circuit import SynapseParams
from synaptune.synapse.fast_weights import Activity, memory_scan
from synaptune.synapse.memory_kernel import fast_memory_scan
from synaptune.synapse.tensors import SynapseTensors

TICK = 4
NAMES = ("values", "by pre", "by post", "by write")


def check_memory(device: torch.device, tokens: int) -> list[dict[str, Any]]:
    """Largest relative errors of the memory against the double-precision reference, per rank."""
    rows = []
    for rank in (8, 32):
        values = {"synapse.postsynaptic.rank_eligibility": rank}
        params = SynapseTensors(SynapseParams().with_values(values)).to(device)
        activity, grad = make_activity(device, tokens, rank)
        found = run_memory(fast_memory_scan, activity, params, grad)
        wide = Activity(*(x.double() for x in activity))
        expected = run_memory(memory_scan, wide, params.double(), grad.double())
        row: dict[str, Any] = {"memory of rank": rank}
        for name, value, reference in zip(NAMES, found, expected, strict=True):
            row[name] = float((value.double() - reference).abs().max() / reference.abs().max())
        rows.append(row)
    return rows


def make_activity(device: torch.device, tokens: int, rank: int) -> tuple[Activity, Tensor]:
    """Draw an activity of four sequences, and the gradient of what they recall."""
    stream = torch.Generator().manual_seed(rank)
    pre, post, grad = (torch.randn(4, tokens, rank, generator=stream) for _ in range(3))
    write = 2.0 * torch.rand(4, tokens, generator=stream)
    drawn = Activity(normalize(pre, dim=-1), post, write)
    return Activity(*(x.to(device) for x in drawn)), grad.to(device)


def run_memory(
    scan: Any, activity: Activity, params: SynapseTensors, grad: Tensor
) -> tuple[Tensor, ...]:
    """Return what the tokens recall, and the gradients of the activity."""
    leaves = Activity(*(x.detach().requires_grad_() for x in activity))
    recalled, _ = scan(leaves, params.postsynaptic, params.bdnf, delta=True, tick=TICK)
    return recalled.detach(), *torch.autograd.grad(recalled, list(leaves), grad)
