"""The learning rate and the validations as functions of the step; a checkpoint stores neither.

    warm-up   eta[s] = eta_peak s / S_w                                                        (1)
    cosine    eta[s] = eta_peak (f + (1 - f) (1 + cos(pi (s - S_w) / (S - S_w))) / 2)          (2)

s optimizer step, counted from 1; S steps of the run; S_w = warmup_fraction S; f = final_fraction.
Source: (2) Loshchilov and Hutter 2017 (SGDR), eq. 5, one cycle.
"""

from __future__ import annotations

import math

from synaptune.training.config import TrainingConfig


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of optimizer step `step`, counted from 1."""
    warmup = max(1, round(config.warmup_fraction * config.steps))
    if step <= warmup:
        return config.learning_rate * step / warmup  # eq. (1)
    progress = (step - warmup) / max(1, config.steps - warmup)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (
        config.final_fraction + (1.0 - config.final_fraction) * cosine
    )  # eq. (2)


def get_evaluation_steps(config: TrainingConfig) -> list[int]:
    """Return the steps followed by a validation: evenly spread, the last step included."""
    return sorted(
        {
            max(1, round(config.steps * part / config.evaluations))
            for part in range(1, config.evaluations + 1)
        }
    )
