"""Distance in the attention, per key: each head counts the tokens in a time of its own.

    bias[j] = barrier_strength c_h[j] / T_max                                                    (1)
    c_h[j] = sum_{s <= j} m_h[s]                                                                 (2)
    m_h[s] = 1                                      barrier
    m_h[s] = exp(b_h)                               learned: a slope per layer and head          (3)
    m_h[s] = exp(w_h . x[s] + b_h)                  clock: the speed follows the content         (4)

x normalised input of the attention. The distance of a query t from a key j is c[t] - c[j]; c[t] is
common to all keys of the query and cancels in the softmax, so (1) is one number per key. With w = 0
and b = 0, their first values, all three are the same barrier. A head can forget at the end of a
paragraph and not within a word.
Source: (1) ALiBi, Press et al., arXiv 2108.12409; (4) in other words the forget gate of the
Forgetting Transformer, Lin et al., arXiv 2503.02130: its log gate is -barrier_strength m / T_max.
Read as biology, neuromodulation sets how fast the clock of an axon runs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from synaptune.core.parameters import constant
from synaptune.model.attention import upcast
from synaptune.synapse.bias import distance_bias
from synaptune.synapse.tensors import SynapseTensors

MAX_LOG_SPEED = constant(
    "distance.max_log_speed",
    8.0,
    unit="nat",
    meaning="largest exponent in the speed of a clock",
    source="chosen: forgets everything within a token",
)


class Distance(nn.Module):
    """Speed of the clock of each head in one layer.

    Args:
        width: width of the input.
        heads: attention heads.
        variant: barrier, learned or clock.
        context: T_max [token].

    Attributes:
        EAGER: methods that torch.compile does not trace; on a GPU it fails at this sum (torch
            2.11).
    """

    EAGER = ("accumulate",)

    def __init__(self, width: int, heads: int, variant: str, context: int) -> None:
        super().__init__()
        self.heads, self.context = heads, context
        self.bias = None if variant == "barrier" else nn.Parameter(torch.zeros(heads))
        self.weight = nn.Parameter(torch.zeros(heads, width)) if variant == "clock" else None

    def advance(self, x: Tensor) -> Tensor:
        """Return m of x (batch, token, width), (batch or 1, head or 1, token) in fp32."""
        if self.bias is None:
            return torch.ones(1, 1, x.shape[1], device=x.device, dtype=upcast(x[:0]).dtype)
        speed = upcast(self.bias)[:, None].expand(1, self.heads, x.shape[1])
        if self.weight is not None:
            speed = speed + upcast(F.linear(x, self.weight)).transpose(1, 2)
        return speed.clamp(max=MAX_LOG_SPEED).exp()

    def accumulate(self, speed: Tensor) -> Tensor:
        """Return the sum of m up to each token."""
        return speed.cumsum(-1)

    def forward(
        self, x: Tensor, params: SynapseTensors, before: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the bias (1) and the clock c (2) of the tokens of x.

        Args:
            x: normalised input, (batch, token, width).
            params: parameters of the synapse.
            before: c of the last token before x, (batch or 1, head or 1, 1); None at the start.
        """
        time = self.accumulate(self.advance(x))
        if before is not None:
            time = time + before
        return distance_bias(time, params.attention, context=self.context), time
