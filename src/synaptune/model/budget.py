"""A limit on the trainable parameters of any model; a candidate over it is never trained."""

from __future__ import annotations

from dataclasses import dataclass

from synaptune.core.errors import UserError

PARAMETERS = "parameters"  # metric of a run: its trainable parameters


@dataclass(frozen=True)
class BudgetConfig:
    """Settings of the `budget` group.

    Attributes:
        max_params: largest number of trainable parameters; None for no limit.
        fit: whether an image network takes the largest size within max_params.
    """

    max_params: int | None = None
    fit: bool = False


class BudgetExceeded(UserError):
    """A model has more trainable parameters than `budget.max_params`.

    Args:
        count: its trainable parameters.
        limit: the largest number.
    """

    def __init__(self, count: int, limit: int) -> None:
        super().__init__(
            f"got a model of {count:,} trainable parameters\n"
            f"  expected: at most {limit:,} (budget.max_params)\n"
            "  to do: make the model smaller, or raise budget.max_params"
        )
        self.count, self.limit = count, limit

    def __reduce__(self):
        """Pickle by the arguments, so that the exception can pass between processes."""
        return BudgetExceeded, (self.count, self.limit)


class NothingFits(UserError):
    """Every candidate of a search was over the budget.

    Args:
        candidates: number of candidates.
        smallest: parameters of the smallest one.
    """

    def __init__(self, candidates: int, smallest: int) -> None:
        super().__init__(
            f"got {candidates} candidates, each over budget.max_params; the smallest has "
            f"{smallest:,} trainable parameters\n"
            "  expected: a candidate within the budget\n"
            "  to do: raise budget.max_params, or search smaller models"
        )


def check_budget(count: int, budget: BudgetConfig) -> None:
    """Raise BudgetExceeded if a model has too many trainable parameters."""
    if budget.max_params is not None and count > budget.max_params:
        raise BudgetExceeded(count, budget.max_params)


def find_budget_faults(budget: BudgetConfig) -> list[str]:
    """Return one line for each invalid value."""
    if budget.max_params is not None and budget.max_params < 1:
        return [f"budget.max_params={budget.max_params}: expected at least 1, or null"]
    if budget.fit and budget.max_params is None:
        return ["budget.fit=true: expected budget.max_params, the size to fit"]
    return []
