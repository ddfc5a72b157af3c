"""Optuna's CMA-ES told its space beforehand; imported only when it is searched with, because it imports Optuna.

By itself Optuna's sampler learns the space from the first trial that ends, and draws uniformly until then: a first generation
that starts together would lie anywhere.
"""

from __future__ import annotations

from typing import Any

from optuna.samplers import CmaEsSampler


class BoxCmaEsSampler(CmaEsSampler):
    """Samples every trial in the given distributions (floats and integers of more than one value)."""

    def __init__(self, distributions: dict[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self._distributions = distributions

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        """The given distributions, from the first trial on."""
        return self._distributions
