"""Optuna's CMA-ES with a search space that is known from the first trial on.

Optuna's own sampler infers the space from the first trial that ends, and samples uniformly until
then. The points of a first generation that runs concurrently would all be uniform. This module
imports Optuna, and is itself imported only if the sampler is used.
"""

from __future__ import annotations

from typing import Any

from optuna.samplers import CmaEsSampler


class BoxCmaEsSampler(CmaEsSampler):
    """Samples every trial from given distributions: floats, and integers with several values."""

    def __init__(self, distributions: dict[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self._distributions = distributions

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        """Return the given distributions."""
        return self._distributions
