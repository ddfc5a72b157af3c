"""The learning rate and the validations as functions of the step; a checkpoint stores neither.

    warm-up   eta[s] = eta_peak s / S_w                                                        (1)
    cosine    eta[s] = eta_peak (f + (1 - f) (1 + cos(pi (s - S_w) / (S - S_w))) / 2)          (2)

    advanced  (1); then over 0.7 of the rest a cosine from eta_peak to 0.05 eta_peak, then a line
              to 0                                                                             (3)

s optimizer step, counted from 1; S steps of the run; S_w = warmup_fraction S; f = final_fraction.
Source: (3) the plan of the focused sweep; (2) Loshchilov and Hutter 2017 (SGDR), eq. 5, one cycle.
"""

from __future__ import annotations

import math

from synaptune.training.config import TrainingConfig

_COSINE_SHARE, _KNEE = 0.7, 0.05  # eq. (3)


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of optimizer step `step`, counted from 1."""
    warmup = max(1, round(config.warmup_fraction * config.steps))
    if step <= warmup:
        return config.learning_rate * step / warmup  # eq. (1)
    progress = (step - warmup) / max(1, config.steps - warmup)
    if config.schedule == "advanced":  # eq. (3)
        if progress <= _COSINE_SHARE:
            wave = 0.5 * (1.0 + math.cos(math.pi * progress / _COSINE_SHARE))
            return config.learning_rate * (_KNEE + (1.0 - _KNEE) * wave)
        return config.learning_rate * _KNEE * max(0.0, 1.0 - progress) / (1.0 - _COSINE_SHARE)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (
        config.final_fraction + (1.0 - config.final_fraction) * cosine
    )  # eq. (2)


def get_evaluation_steps(config: TrainingConfig) -> list[int]:
    """Return the steps followed by a validation: evenly spread, the last step included.

    A run that ends before `steps` has those of the whole run up to its end, and one at its end.
    """
    steps = {
        max(1, round(config.steps * part / config.evaluations))
        for part in range(1, config.evaluations + 1)
    }
    return sorted({step for step in steps if step <= config.end} | {config.end})
