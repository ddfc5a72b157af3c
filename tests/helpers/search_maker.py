"""A constructed search: a known loss on the phase-1 space and a distribution that converges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from synaptune.analysis import results
from synaptune.search.space.space import Dimension, Space
from synaptune.search.trial import Trial

SPACE = Space(
    (
        Dimension("synapse.calcium.alpha_ca", "log", 0.1, 2.0, start=0.55),
        Dimension("synapse.calcium.syt1_slope", "lin", 2.0, 20.0, start=8.0),
        Dimension("synapse.vesicles.tau_rrp", "log", 10.0, 100.0, start=40.0),
        Dimension("synapse.postsynaptic.rank_eligibility", "lin", 4.0, 32.0, integer=True, start=8),
        Dimension("synapse.postsynaptic.post_fast_lr", "log", 1e-4, 1e-2, start=1.5e-3),
        Dimension("synapse.postsynaptic.camkii_up", "log", 0.01, 0.2, start=0.05),
        Dimension("synapse.structural.router_contrastive_push", "lin", 0.01, 0.5, start=0.1),
        Dimension("synapse.structural.energy_cost_rel", "log", 1e-3, 0.05, start=0.015),
        Dimension("synapse.attention.lambda_loge", "lin", 0.1, 5.0, start=1.0),
        Dimension("synapse.attention.barrier_strength", "log", 0.01, 30.0, start=0.1),
    )
)
# Decrease of the loss from the start to the optimum along each parameter [nats/token].
LOSS_DROPS = (0.004, 0.002, 0.03, 0.0, 0.012, 0.0, 0.003, 0.008, 0.06, 0.14)
OPTIMUM = (0.4, 0.45, 0.8, 0.5, 0.3, 0.5, 0.3, 0.4, 0.75, 0.82)  # in the unit box
SECONDS = 31.0  # mean duration of a run [s]
NOISE = 0.004  # standard deviation of a loss over seeds [nats/token]
AWKWARD = 'plain.<script>alert("&")</script>.$x_1$'  # a name that must be escaped
_GENERATION_SIZE = 10


def make_awkward_space(space: Space) -> Space:
    first, *rest = space.dimensions
    return Space((Dimension(AWKWARD, first.scale, first.low, first.high, start=first.start), *rest))


def compute_loss(unit: Sequence[float], draw: np.random.Generator, noise: float = NOISE) -> float:
    """Compute the loss: 2.27 at the start of the space, lower towards the optimum by LOSS_DROPS."""
    parts = zip(unit, SPACE.get_start(), OPTIMUM, LOSS_DROPS, strict=True)
    return (
        2.27
        + sum(worth * (((u - o) / (s - o)) ** 2 - 1.0) for u, s, o, worth in parts) * 0.9
        + draw.normal(0.0, noise)
    )


def make_search(
    space: Space, count: int, draw: np.random.Generator, maximize: bool
) -> tuple[list[Trial], list[results.Generation]]:
    start, optimum = np.array(SPACE.get_start()), np.array(OPTIMUM)
    trials: list[Trial] = []
    generations: list[results.Generation] = []
    sizes = [_GENERATION_SIZE] * (count // _GENERATION_SIZE) + (
        [count % _GENERATION_SIZE] if count % _GENERATION_SIZE else []
    )
    for number, size in enumerate(sizes):
        moved = 1.0 - math.exp(-3.0 * number / max(1, len(sizes) - 1))
        # Parameters without an effect oscillate.
        wander = np.array(
            [
                0.08 * math.sin(0.35 * number + 1.7 * axis) * (worth < 0.005)
                for axis, worth in enumerate(LOSS_DROPS)
            ]
        )
        mean = np.clip(start + moved * (optimum - start) + wander, 0.02, 0.98)
        spread = np.array(
            [0.2 * (1.0 - moved * min(1.0, 4.0 * worth**0.5)) for worth in LOSS_DROPS]
        )
        batch = [
            _make_trial(
                space,
                len(trials) + index,
                np.clip(draw.normal(mean, spread), 0, 1),
                generation=number,
                draw=draw,
                maximize=maximize,
            )
            for index in range(size)
        ]
        if number == 0:
            batch[0] = _make_trial(
                space, 0, start, generation=0, draw=draw, maximize=maximize, fails=False
            )
        trials += batch
        complete = [trial for trial in batch if trial.objective is not None]
        winner = min(
            complete,
            key=lambda trial: -trial.objective if maximize else trial.objective,
            default=None,
        )
        low, high = np.clip(mean - spread, 0, 1), np.clip(mean + spread, 0, 1)
        generations.append(
            results.Generation(
                number,
                mean=_to_numbers(space, mean),
                low=_to_numbers(space, low),
                high=_to_numbers(space, high),
                best={} if winner is None else winner.values,
                best_loss=None if winner is None else abs(winner.objective),
                condition=1.0 + 40.0 * moved,
                step=0.2 * (1.0 - 0.7 * moved),
            )
        )
    return trials, generations


def _to_numbers(space: Space, unit: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in space.to_values(unit.tolist()).items()}


def _make_trial(
    space: Space,
    number: int,
    unit: np.ndarray,
    *,
    generation: int,
    draw: np.random.Generator,
    maximize: bool,
    fails: bool = True,
) -> Trial:
    point = tuple(float(u) for u in unit)
    facts: dict[str, Any] = {
        "phase": "search",
        "generation": generation,
        "seed": 0,
        "seconds": SECONDS * draw.uniform(0.9, 1.2),
    }
    if fails and draw.uniform() < 0.06:
        kind = str(draw.choice(["number", "number", "memory", "timeout"]))
        return Trial(
            number,
            number,
            point,
            space.to_values(point),
            "failed",
            reason=f"failed: {kind}",
            facts=facts | {"failure": kind},
        )
    loss = compute_loss(point, draw)
    facts |= {"val_loss": loss, "val_perplexity": math.exp(loss)}
    return Trial(
        number,
        number,
        point,
        space.to_values(point),
        "complete",
        -loss if maximize else loss,
        facts=facts,
    )
