"""What a search distribution looks like after a generation, and whether it is healthy.

    covariance[i, j] = s[i] C[i, j] s[j],  s = step size x coordinate scale, C the adapted matrix                (1)
    condition        = largest / smallest eigenvalue of the covariance                                           (2)
    eigenvalue ratio = largest / smallest eigenvalue of the correlation matrix                                   (3)

Everything is in coordinates of the unit box. (2) mixes how differently the parameters are scaled with how strongly they are
entangled, (3) sees the entanglement alone, so that a search with both above their limits can be told from one with one.
Source: (1) Hansen 2016, arXiv:1604.00772, eq. (5); (3) chosen: it is not implied by (2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Largest healthy value of eq. (2); chosen: a step a thousand times its neighbour's.
CONDITION_LIMIT = 1e6
# Largest healthy value of eq. (3); chosen: two parameters correlated beyond 0.998.
RATIO_LIMIT = 1e3
# Longest healthy time without a new best loss [generation]; chosen: a short search is no longer.
STAGNATION_LIMIT = 30


@dataclass(frozen=True)
class Diagnostics:
    """A search distribution over n named parameters, in unit coordinates.

    generation: generations told; mean: its centre, by name; step: overall step size; sigma: standard deviation by name;
    covariance, correlation: (n, n) rows; eigenvalues: of the covariance, ascending; condition: eq. (2); eigenvalue_ratio:
    eq. (3); stagnation: generations since the best loss last fell.
    """

    generation: int
    mean: dict[str, float]
    step: float
    sigma: dict[str, float]
    covariance: tuple[tuple[float, ...], ...]
    correlation: tuple[tuple[float, ...], ...]
    eigenvalues: tuple[float, ...]
    condition: float
    eigenvalue_ratio: float
    stagnation: int

    def to_scalars(self) -> dict[str, float]:
        """The numbers a logger plots, by name."""
        return {
            "generation": float(self.generation),
            "step": self.step,
            "condition": self.condition,
            "eigenvalue_ratio": self.eigenvalue_ratio,
            "stagnation": float(self.stagnation),
            **{f"mean/{name}": value for name, value in self.mean.items()},
            **{f"sigma/{name}": value for name, value in self.sigma.items()},
        }


def diagnose(
    *,
    generation: int,
    names: tuple[str, ...],
    mean: Any,
    step: float,
    covariance: Any,
    stagnation: int,
) -> Diagnostics:
    """Diagnostics of a distribution by its mean (n,) and covariance (n, n), eqs. (2) and (3)."""
    import numpy as np

    deviation = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(deviation, deviation)
    eigenvalues = np.linalg.eigvalsh(covariance)
    of_correlation = np.linalg.eigvalsh(correlation)
    return Diagnostics(
        generation=generation,
        mean=dict(zip(names, mean.tolist(), strict=True)),
        step=step,
        sigma=dict(zip(names, deviation.tolist(), strict=True)),
        covariance=_to_rows(covariance),
        correlation=_to_rows(correlation),
        eigenvalues=tuple(eigenvalues.tolist()),
        condition=_ratio(eigenvalues),
        eigenvalue_ratio=_ratio(of_correlation),
        stagnation=stagnation,
    )


def find_health_warnings(diagnostics: Diagnostics) -> list[str]:
    """What is wrong with a search distribution, one line each; empty when it is healthy."""
    found = []
    if diagnostics.condition >= CONDITION_LIMIT:
        found.append(
            f"condition number {diagnostics.condition:.3g} of the covariance (limit {CONDITION_LIMIT:g}): some parameter hardly "
            f"matters, or matters far more than the others; narrow or widen its range, or use a log scale"
        )
    if diagnostics.eigenvalue_ratio >= RATIO_LIMIT:
        found.append(
            f"eigenvalue ratio {diagnostics.eigenvalue_ratio:.3g} of the correlation matrix (limit {RATIO_LIMIT:g}): some parameters "
            f"move as one; search one of them"
        )
    if diagnostics.stagnation >= STAGNATION_LIMIT:
        found.append(
            f"no better loss for {diagnostics.stagnation} generations (limit {STAGNATION_LIMIT}): converged, or lost in noise; stop, "
            f"restart elsewhere, or average over seeds"
        )
    return found


def _ratio(eigenvalues: Any) -> float:
    """Largest over smallest of ascending eigenvalues; infinite when rounding took the smallest to zero or below."""
    return float(eigenvalues[-1] / eigenvalues[0]) if eigenvalues[0] > 0.0 else float("inf")


def _to_rows(matrix: Any) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in matrix.tolist())
