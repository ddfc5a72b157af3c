"""The limits of a search."""

from __future__ import annotations

from dataclasses import dataclass

from synaptune.core.errors import UserError


@dataclass(frozen=True)
class Plan:
    """The limits of a search.

    Attributes:
        budget: total number of ended trials, failed ones included; None means until the optimizer
            has no more points.
        maximize: whether a larger objective is better.
        max_failure_rate: largest tolerated fraction of failed trials in a generation [0..1].
        retries: further attempts at a trial whose worker died.
    """

    budget: int | None
    maximize: bool = False
    max_failure_rate: float = 0.5
    retries: int = 1

    def check(self) -> None:
        """Raise UserError that lists every invalid value."""
        faults = []
        if self.budget is not None and self.budget < 1:
            faults.append(f"budget={self.budget}: expected at least 1 evaluation")
        if not 0.0 <= self.max_failure_rate <= 1.0:
            faults.append(f"max_failure_rate={self.max_failure_rate:g}: expected 0 to 1")
        if self.retries < 0:
            faults.append(f"retries={self.retries}: expected at least 0")
        if faults:
            raise UserError(
                "got a search that cannot run\n  "
                + "\n  ".join(faults)
                + "\n  to do: correct these values"
            )
