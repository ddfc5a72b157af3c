"""Constructed inspections of a trained model; protocols/inspection.py documents the schema."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

TEXT = (
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\n"
    "First <Citizen> & Co:\nYou are all resolved"
)
KEYS = (0, 16, 48)
LAST = 200  # last optimizer step
EXPERTS = 4
TRACES = ("calcium", "ready", "reserve", "energy", "release", "efficacy")


def make_inspection(draw: np.random.Generator, scale: float) -> Mapping[str, Any]:
    """Make an inspection; scale multiplies the release."""
    tokens = list(TEXT)
    terminals = [_make_traces(draw, scale, len(tokens), born) for born in KEYS]
    mean = {
        name: [
            float(
                np.mean(
                    [trace[name][index] for trace in terminals if trace[name][index] is not None]
                )
            )
            for index in range(len(tokens))
        ]
        for name in TRACES
    }
    steps = list(range(0, LAST + 1, 5))
    return {
        "unit": [],
        "seed": 1000,
        "values": {},
        "val_loss": 2.27 - 0.2 * scale,
        "validated": 2.27 - 0.2 * scale,
        "reproduced": True,
        "curve": [[step, 2.0 + 2.0 * math.exp(-step / 40.0)] for step in steps],
        "life": {
            "steps": steps,
            "utilisation": [_make_shares(draw, scale, step) for step in steps],
            "events": [[60, "merge", 0], [60, "split", 1], [120, "merge", 0], [180, "split", 0]][
                : 4 if scale > 0.8 else 2
            ],
        },
        "dynamics": {
            "text": tokens,
            "layer": 0,
            "terminals": [
                {"key": born, **trace} for born, trace in zip(KEYS, terminals, strict=True)
            ],
            "mean": mean,
        },
    }


def _make_shares(draw: np.random.Generator, scale: float, step: int) -> list[float]:
    raw = np.exp(
        draw.normal(0.0, 0.1, EXPERTS)
        + (1.4 - scale) * np.linspace(0.6, -0.6, EXPERTS) * step / LAST
    )
    return (raw / raw.sum()).tolist()


def _make_traces(
    draw: np.random.Generator, scale: float, length: int, born: int
) -> dict[str, list[float | None]]:
    """Simulate the traces of a terminal that is created at token `born`."""
    traces: dict[str, list[float | None]] = {name: [None] * born for name in TRACES}
    calcium, ready, reserve, energy = 0.0, 8.0, 30.0, 1.0
    for _ in range(length - born):
        calcium = 0.7 * calcium + scale * draw.gamma(0.6, 0.5)
        release = ready * (1.0 - math.exp(-0.15 * scale * calcium))
        primed = 0.08 * reserve / 30.0 * energy * (8.0 - ready + release)
        ready, reserve = ready - release + primed, reserve - primed + 0.05 * (30.0 - reserve)
        energy = min(1.0, energy + 0.02 - 0.015 * release)
        for name, value in zip(
            TRACES, (calcium, ready, reserve, energy, release, math.log(0.2 + release)), strict=True
        ):
            traces[name].append(round(value, 4))
    return traces
