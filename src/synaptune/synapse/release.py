"""Release: the calcium sensors, the release probability, and stochastic release.

    Syt1 = sigmoid(syt1_slope (C - cpx_thresh))
    Syt7 = sigmoid(syt7_slope (C - cpx_thresh / 2))                                             (1)
    Doc2 = doc2_gain sigmoid(4 (C - 0.12))                                                      (2)
    p = P (0.8 Syt1 + 0.2 Syt7)                     evoked, per vesicle and spike               (3)
    rho = clamp(s p + 0.1 Doc2, 0, 1)               per vesicle and token                       (4)
    x ~ x_mean + sqrt(x_mean (1 - x_mean / n)) noise, clamped to [0, n]                         (5)

C calcium, P primed share, s spike probability, n vesicles available in the tick.
Source: (1), (2) sensors of Sudhof, Neuron 80:675 (2013), with the complexin clamp as the threshold;
(3), (4) chosen shares; (5) the Gaussian limit of the binomial release of del Castillo and Katz,
J Physiol 124:560 (1954), reparametrised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from synaptune.core.parameters import constant, parameter
from synaptune.synapse.calcium import CalciumParams

if TYPE_CHECKING:
    from torch import Generator, Tensor

SYT1_SHARE = constant(
    "release.syt1_share",
    0.8,
    meaning="share of evoked release by synaptotagmin 1",
    source="chosen: the fast sensor dominates",
)
SYT7_SHARE = constant(
    "release.syt7_share",
    0.2,
    meaning="share of evoked release by synaptotagmin 7",
    source="derived: the rest",
)
SYT7_CLAMP = constant(
    "release.syt7_clamp",
    0.5,
    meaning="threshold of synaptotagmin 7 over that of 1",
    source="chosen: higher affinity",
)
DOC2_SLOPE = constant(
    "release.doc2_slope",
    4.0,
    meaning="steepness of Doc2",
    source="chosen: between the two synaptotagmins",
)
DOC2_HALF = constant(
    "release.doc2_half",
    0.12,
    meaning="calcium at half-maximal Doc2",
    source="chosen: resting residual calcium",
)
LEAK_SHARE = constant(
    "release.leak_share",
    0.1,
    unit="1/token",
    meaning="asynchronous release without a spike",
    source="chosen: rare",
)
NOISE_FLOOR = constant(
    "release.noise_floor",
    1e-6,
    unit="vesicle^2",
    meaning="variance floor of stochastic release",
    source="derived: keeps the root differentiable",
)
QUANTUM = constant(
    "release.quantum",
    1.0,
    unit="vesicle",
    meaning="smoothing of the efficacy's fluctuation, (x + 1) / (x_mean + 1)",
    source="chosen: one vesicle",
)


@dataclass(frozen=True)
class StochasticParams:
    """Stochastic release while training."""

    stochastic_train_frac: float = parameter(
        0.12,
        low=0.0,
        high=1.0,
        meaning="share of (tick, terminal) pairs that release at random while training",
        source="chosen: as much noise as a light dropout",
    )


class Sensors(NamedTuple):
    """Output of the calcium sensors.

    Attributes:
        evoked: evoked release per primed vesicle and spike [1].
        asynchronous: asynchronous release Doc2 [1].
    """

    evoked: Tensor
    asynchronous: Tensor


def sense(calcium: Tensor, params: CalciumParams) -> Sensors:
    """Return the output of the sensors at a calcium level (1, 2)."""
    syt1 = (params.syt1_slope * (calcium - params.cpx_thresh)).sigmoid()
    syt7 = (params.syt7_slope * (calcium - SYT7_CLAMP * params.cpx_thresh)).sigmoid()
    doc2 = params.doc2_gain * (DOC2_SLOPE * (calcium - DOC2_HALF)).sigmoid()
    return Sensors(SYT1_SHARE * syt1 + SYT7_SHARE * syt7, doc2)


def release_probability(spike: Tensor, primed: Tensor, sensors: Sensors) -> Tensor:
    """Return rho (3, 4) [1/token]."""
    return (spike * primed * sensors.evoked + LEAK_SHARE * sensors.asynchronous).clamp(0.0, 1.0)


def draw_release(expected: Tensor, available: Tensor, noise: Tensor) -> Tensor:
    """Draw stochastic release (5); where `noise` is 0 it equals the expected release exactly."""
    variance = (expected * (1.0 - expected / available.clamp(min=QUANTUM * NOISE_FLOOR))).clamp(
        min=0.0
    )
    release = expected + (variance + NOISE_FLOOR).sqrt() * noise
    return expected.where(noise == 0.0, release.clamp(min=0.0).minimum(available))


def fluctuation(released: Tensor, expected: Tensor) -> Tensor:
    """Return the factor of a draw on the efficacy; 1 where release equals its expectation."""
    return (released + QUANTUM) / (expected + QUANTUM)


def draw_noise(
    shape: tuple[int, ...], fraction: Tensor | float, generator: Generator, like: Tensor
) -> Tensor:
    """Draw standard normal noise for a random `fraction` of the pairs; the others get 0.

    Args:
        shape: (batch, head, tick, key).
        fraction: share of the (tick, terminal) pairs with noise [1].
        generator: source of the draws, on the device of `like`.
        like: gives device and dtype.
    """
    import torch

    mask = torch.rand(shape, generator=generator, device=like.device, dtype=like.dtype) < fraction
    return torch.randn(shape, generator=generator, device=like.device, dtype=like.dtype) * mask
