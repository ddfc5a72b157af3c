"""What a search minimises: one number from a run's metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

OBJECTIVES: dict[str, Callable[[Mapping[str, float]], float]] = {
    "val_loss": lambda metrics: metrics["val_loss"],
}


@dataclass(frozen=True)
class ObjectiveConfig:
    """name: an entry of OBJECTIVES; smaller is better."""

    name: str = "val_loss"


def objective_faults(config: ObjectiveConfig) -> list[str]:
    """One line when the objective is unknown; empty when all is well."""
    if config.name in OBJECTIVES:
        return []
    return [f"objective.name={config.name}: expected one of {', '.join(OBJECTIVES)}"]


def score(config: ObjectiveConfig, metrics: Mapping[str, float]) -> float:
    """The number to minimise, in the unit of its metric (`val_loss`: nats/token)."""
    return OBJECTIVES[config.name](metrics)
