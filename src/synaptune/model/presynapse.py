"""The presynaptic terminals of one attention layer: queries and keys give the synaptic bias.

    l[n, j] = g_h qbar[n] . k[j] / sqrt(d) - theta_h            (1)

qbar[n] mean query of tick n; g_h gain and theta_h firing threshold, learned per head.
Source: (1) chosen: the mean attention logit of a tick as the depolarisation of the terminal.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from synaptune.model.attention import upcast
from synaptune.synapse.bias import efficacy_bias
from synaptune.synapse.fused import can_fuse, fused_bias
from synaptune.synapse.kernel import fast_scan
from synaptune.synapse.release import draw_noise
from synaptune.synapse.tensors import SynapseTensors
from synaptune.synapse.terminal import terminal_scan

INITIAL_GAIN, INITIAL_THRESHOLD = 1.0, 2.0


class Presynapse(nn.Module):
    """Gain and threshold per head, and the scan over the ticks.

    Attributes:
        EAGER: methods that torch.compile does not trace, because they are compiled already.
    """

    EAGER = ("scan", "fuse")

    def __init__(self, heads: int, tick: int, kernel: str) -> None:
        super().__init__()
        self.tick, self.kernel = tick, kernel
        self.gain = nn.Parameter(torch.full((heads,), INITIAL_GAIN))
        self.threshold = nn.Parameter(torch.full((heads,), INITIAL_THRESHOLD))

    def compute_product(self, mean_query: Tensor, keys: Tensor) -> Tensor:
        """Return the inner product of (1), (batch, head, tick, key), in the dtype of a product.

        Args:
            mean_query: qbar, (batch, head, tick, d).
            keys: k, (batch, head, key, d).
        """
        scaled = mean_query * (self.gain[:, None, None] * keys.shape[-1] ** -0.5)
        return scaled.to(keys.dtype) @ keys.transpose(-1, -2)

    def compute_drive(self, mean_query: Tensor, keys: Tensor) -> Tensor:
        """Return l (1), (batch, head, tick, key), in fp32; arguments of `compute_product`."""
        return upcast(self.compute_product(mean_query, keys)) - self.threshold[:, None, None]

    def scan(self, drive: Tensor, params: SynapseTensors, noise: Tensor | None) -> Tensor:
        """Return the efficacy of the drive; `terminal_scan` describes both."""
        scan = fast_scan if self.kernel == "auto" else terminal_scan
        return scan(drive, params, self.tick, noise)

    def fuse(
        self,
        product: Tensor,
        params: SynapseTensors,
        noise: torch.Generator | None,
        needs_efficacy: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Return bias and efficacy of the product, on a GPU; `fused_bias` describes both."""
        return fused_bias(
            product, self.threshold, params, self.tick, noise, needs_efficacy=needs_efficacy
        )

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        params: SynapseTensors,
        noise: torch.Generator | None,
        *,
        needs_efficacy: bool = True,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the synaptic bias [nat] and the efficacy [vesicle] of every key in every tick.

        The efficacy is (batch, head, ceil(token / tick), key). The bias lacks the first tick, in
        which all terminals are new: it is 0 there.

        Args:
            q: queries, (batch, head, token, d).
            k: keys, (batch, head, token, d).
            params: parameters of the synapse.
            noise: generator of stochastic release per tick; None for the expected release.
            needs_efficacy: whether the efficacy is read; where it costs time and is not, None takes
                its place.
        """
        updates = -(-q.shape[2] // self.tick) - 1
        mean_query = average_ticks(q, self.tick)[:, :, :updates]
        if self.kernel == "auto" and can_fuse(q, params, self.tick):
            return self.fuse(self.compute_product(mean_query, k), params, noise, needs_efficacy)
        drive = self.compute_drive(mean_query, k)
        eta = None
        if noise is not None and updates:
            eta = draw_noise(
                tuple(drive.shape), params.stochastic.stochastic_train_frac, noise, drive
            )
        e = self.scan(drive, params, eta)
        # In the first tick every terminal is new.
        return efficacy_bias(e[:, :, 1:], e[:, :, :1, :1], params.attention), e


def average_ticks(x: Tensor, tick: int) -> Tensor:
    """Return the mean of x (batch, head, token, d) over each whole tick."""
    whole = x.shape[2] // tick
    # The gradient of a slice is a copy of the whole tensor, so nothing is cut where all fits.
    x = x if whole * tick == x.shape[2] else x[:, :, : whole * tick]
    return x.unflatten(2, (whole, tick)).mean(3)
