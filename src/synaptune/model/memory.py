"""The postsynaptic memory beside a feed-forward block.

    a[t] = unit(x[t] A)     b[t] = rms_norm(y[t] Bp)        first `rank_eligibility` coordinates (1)
    y[t] += ((F[n(t)] + K) a[t]) Bo                                                              (2)

x input and y output of the block, F fast weights (synapse/fast_weights.py), K slow weights, a
buffer that changes once per optimizer step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptune.core.parameters import list_specs
from synaptune.model.attention import upcast
from synaptune.synapse.fast_weights import Consolidation, memory_scan
from synaptune.synapse.kinase import PostsynapticParams
from synaptune.synapse.metaplasticity import consolidate
from synaptune.synapse.tensors import SynapseTensors

RANK_MAX = next(
    int(s.high) for s in list_specs(PostsynapticParams) if s.label == "rank_eligibility"
)
RMS_FLOOR = 1e-6  # the order of magnitude of torch's rms_norm in fp32


class Memory(nn.Module):
    """Projections A, Bp, Bo and the slow weights K of one block.

    The rank is applied as a mask, so that it can be a tensor like the other parameters.
    """

    slow: Tensor

    def __init__(self, width: int, tick: int, variant: str) -> None:
        super().__init__()
        self.tick, self.delta = tick, variant == "delta"
        self.pre = nn.Parameter(torch.empty(RANK_MAX, width))
        self.post = nn.Parameter(torch.empty(RANK_MAX, width))
        self.out = nn.Parameter(torch.empty(RANK_MAX, width))
        self.register_buffer("slow", torch.zeros(RANK_MAX, RANK_MAX))

    def compute_activities(
        self, x: Tensor, y: Tensor, params: SynapseTensors
    ) -> tuple[Tensor, Tensor]:
        """Return a and b (1), each (batch, token, rank), in fp32."""
        rank = params.postsynaptic.rank_eligibility
        mask = (torch.arange(RANK_MAX, device=x.device) < rank).to(x.dtype)
        a = F.normalize(upcast(F.linear(x, self.pre * mask[:, None])), dim=-1)
        b = upcast(F.linear(y, self.post * mask[:, None]))
        return a, b * torch.rsqrt(b.square().sum(-1, keepdim=True) / rank + RMS_FLOOR)

    def read(self, a: Tensor, weights: Tensor) -> Tensor:
        """Return ((F + K) a) Bo (2), (..., token, width).

        Args:
            a: (..., token, rank).
            weights: fast weights F, (..., rank, rank).
        """
        return ((a @ (weights + self.slow).transpose(-1, -2)).to(self.out.dtype)) @ self.out

    def forward(self, x: Tensor, y: Tensor, params: SynapseTensors) -> tuple[Tensor, Consolidation]:
        """Run the memory on a batch of sequences.

        Args:
            x: input of the block, (batch, token, width).
            y: output of the block, (batch, token, width).
            params: parameters of the synapse.

        Returns:
            The term that (2) adds to y, and the means that the slow weights consolidate.
        """
        a, b = self.compute_activities(x, y, params)
        batch, length, rank = a.shape
        end = length // self.tick * self.tick  # of the last complete tick
        ticks = (batch, end // self.tick, self.tick, rank)
        weights, consolidation = memory_scan(
            a[:, :end].reshape(ticks),
            b[:, :end].reshape(ticks),
            params.postsynaptic,
            params.bdnf,
            delta=self.delta,
        )
        out = self.read(a[:, :end].reshape(ticks), weights[:, :-1]).flatten(1, 2)
        if end < length:
            out = torch.cat([out, self.read(a[:, end:], weights[:, -1])], 1)
        return out, consolidation

    def consolidate_slow(self, consolidation: Consolidation, params: SynapseTensors) -> Tensor:
        """Return K after one optimizer step; does not change the module."""
        return consolidate(
            self.slow, consolidation.gated, consolidation.bdnf, params.postsynaptic, params.bdnf
        )
