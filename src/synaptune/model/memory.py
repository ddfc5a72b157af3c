"""The postsynaptic memory beside a feed-forward block.

    a[t] = unit(A x[t])     b[t] = rms_norm(B x[t])        first `rank_eligibility` coordinates  (1)
    write[t] = 2 sigmoid(w . x[t])                          w = 0 at first                       (2)
    r[t] = (F[t] + K) a[t]                                                                       (3)
    y[t] += r[t] Bo            hebbian                                                           (4)
    y[t] += rms_norm(r[t]) Bo  delta                                                             (5)

x normalised input of the block, y its output, F fast weights (synapse/fast_weights.py), K slow
weights, a buffer that changes once per optimizer step. Both activities come from the block's input,
so that the memory can learn while the block's output is still zero. With several heads each has its
own A, B, w, F, K and norm, and Bo reads all of them.
Source: (2), (5) gate and normalised read-out of Yang et al., arXiv 2412.06464.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptune.core.parameters import constant, list_specs
from synaptune.model.attention import upcast
from synaptune.model.config import ModelConfig
from synaptune.synapse.fast_weights import Activity, Consolidation, memory_scan
from synaptune.synapse.kinase import PostsynapticParams
from synaptune.synapse.memory_kernel import fast_memory_scan
from synaptune.synapse.metaplasticity import consolidate
from synaptune.synapse.tensors import SynapseTensors

RANK_MAX = next(
    int(s.high) for s in list_specs(PostsynapticParams) if s.label == "rank_eligibility"
)
RMS_FLOOR = 1e-6  # the order of magnitude of torch's rms_norm in fp32
READ_FLOOR = constant(
    "fast_weights.read_floor",
    1e-4,
    meaning="square added to the mean square of the read-out before its root",
    source="chosen: a read-out below 0.01 stays small",
)


class Memory(nn.Module):
    """Projections A, B, w, Bo and the slow weights K of one block.

    The heads are rows of the matrices, one after another; for the scan they are further sequences.

    Attributes:
        heads: number of memories side by side.
        rows: rank that is computed, at least the rank of the parameters.
        EAGER: methods that torch.compile does not trace, because they are compiled already.
    """

    EAGER = ("scan",)

    slow: Tensor

    def __init__(self, config: ModelConfig, rows: int) -> None:
        super().__init__()
        self.tick, self.delta = config.memory_tick, config.fast_weights == "delta"
        self.heads, self.rows, self.kernel = config.memory_heads, rows, config.kernel
        most = self.heads * RANK_MAX
        self.pre = nn.Parameter(torch.empty(most, config.width))
        self.post = nn.Parameter(torch.empty(most, config.width))
        self.write = nn.Parameter(torch.zeros(self.heads * config.width))
        self.out = nn.Parameter(torch.empty(most, config.width))
        self.register_buffer("slow", torch.zeros(most, RANK_MAX))

    def compute_activity(self, x: Tensor, params: SynapseTensors) -> Activity:
        """Return a, b (1) and the learned factor (2) of x (batch, token, width), in fp32.

        Each head is a sequence of its own: the leading axis is batch * heads.
        """
        rank, mask = params.postsynaptic.rank_eligibility, self._make_mask(params)
        size = self.heads * self.rows
        write = self.write.view(self.heads, -1)
        weights = torch.cat([self._cut_rows(self.pre), self._cut_rows(self.post), write])
        a, b, write = (
            self._split_heads(part)
            for part in upcast(F.linear(x, weights)).split([size, size, self.heads], -1)
        )
        a, b = a * mask, b * mask
        b = b * torch.rsqrt(b.square().sum(-1, keepdim=True) / rank + RMS_FLOOR)
        return Activity(F.normalize(a, dim=-1), b, 2.0 * write[..., 0].sigmoid())

    def _cut_rows(self, weight: Tensor) -> Tensor:
        """Return the computed rows of each head, (heads * rows, width)."""
        return weight.unflatten(0, (self.heads, RANK_MAX))[:, : self.rows].flatten(0, 1)

    def _split_heads(self, x: Tensor) -> Tensor:
        """Return (batch, token, heads * size) as (batch * heads, token, size)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2).flatten(0, 1)

    def _join_heads(self, x: Tensor) -> Tensor:
        """Return (batch * heads, token, size) as (batch, token, heads * size)."""
        return x.unflatten(0, (-1, self.heads)).transpose(1, 2).flatten(2)

    def _make_mask(self, params: SynapseTensors) -> Tensor:
        """Return which of the computed coordinates are within the rank of the parameters."""
        rows = torch.arange(self.rows, device=self.slow.device)
        return rows < params.postsynaptic.rank_eligibility

    def read(self, a: Tensor, recalled: Tensor, params: SynapseTensors) -> Tensor:
        """Return the term that (4) or (5) adds to y, (batch, token, width).

        Args:
            a: pre-activity, (batch * heads, token, rank).
            recalled: F a, (batch * heads, token, rank).
            params: parameters of the synapse.
        """
        # A run that continues one of a larger rank has slow weights beyond its own.
        inside = self._make_mask(params).repeat(self.heads)[:, None]
        slow = self._cut_rows(self.slow)[:, : self.rows] * inside
        slow = torch.block_diag(*slow.split(self.rows))
        r = self._join_heads(recalled) + self._join_heads(a) @ slow.T
        if self.delta:
            rank, r = params.postsynaptic.rank_eligibility, r.unflatten(-1, (self.heads, -1))
            r = (r * torch.rsqrt(r.square().sum(-1, keepdim=True) / rank + READ_FLOOR)).flatten(-2)
        return r.to(self.out.dtype) @ self._cut_rows(self.out)

    def scan(self, activity: Activity, params: SynapseTensors) -> tuple[Tensor, Consolidation]:
        """Return what the tokens recall, and what the slow weights consolidate (`memory_scan`)."""
        scan = fast_memory_scan if self.kernel == "auto" else memory_scan
        return scan(activity, params.postsynaptic, params.bdnf, delta=self.delta, tick=self.tick)

    def forward(self, x: Tensor, params: SynapseTensors) -> tuple[Tensor, Consolidation]:
        """Run the memory on the normalised input x (batch, token, width) of the block.

        Returns:
            The term that it adds to the block's output, and the means over the batch for the slow
            weights, (heads, rank, rank) and (heads, rank).
        """
        activity = self.compute_activity(x, params)
        with torch.autocast(x.device.type, enabled=False):  # the state is a sum over many tokens
            recalled, ends = self.scan(activity, params)
        means = Consolidation(*(part.unflatten(0, (-1, self.heads)).mean(0) for part in ends))
        return self.read(activity.pre, recalled, params), means

    def consolidate_slow(self, consolidation: Consolidation, params: SynapseTensors) -> Tensor:
        """Return K after one optimizer step; does not change the module."""
        rest = RANK_MAX - self.rows
        gated = F.pad(consolidation.gated, (0, rest, 0, rest)).flatten(0, 1)
        bdnf = F.pad(consolidation.bdnf, (0, rest)).flatten()
        return consolidate(self.slow, gated, bdnf, params.postsynaptic, params.bdnf)
