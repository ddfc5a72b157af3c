"""Points and finished trials that others add to a search, before it starts or while it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from synaptune.search.optimizers.base import Observation
from synaptune.search.space.space import UnitPoint
from synaptune.search.trial import Trial


class EnqueuedPoint(NamedTuple):
    """A point that a search evaluates before it asks its optimizer again.

    Attributes:
        key: identifier of the point in its study.
        unit: the point.
    """

    key: str
    unit: UnitPoint


class Inbox:
    """Where a search looks for additions; this one has none."""

    def find_point(self, trials: Sequence[Trial]) -> EnqueuedPoint | None:
        """Return the oldest point that none of the trials of the search has, or None."""
        return None

    def read_imported(self, first: int = 0) -> Sequence[Observation]:
        """Return the imported trials from position `first` on, in the order of their import."""
        return ()
