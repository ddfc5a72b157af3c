"""A pruner over the trials of a search: it keeps what every trial has reported, and asks the pruner at each report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from synaptune.search.callback import Callback
from synaptune.search.objective.learning_curve import extrapolate
from synaptune.search.pruning import History, Pruner
from synaptune.search.trial import Trial

_MAX_LOSS = 1e100  # the fit squares losses, and their sum has to stay a number
_HISTORY_STATES: dict[str, Literal["running", "complete", "pruned"]] = {
    "complete": "complete",
    "pruned": "pruned",
}


class TrialPruner(Callback):
    """Whether a trial should stop; call it at a report, and tell it every trial that ended."""

    is_required = True

    def __init__(
        self,
        pruner: Pruner,
        earlier: Iterable[tuple[Trial, Mapping[int, float]]],
        *,
        maximize: bool = False,
    ) -> None:
        """earlier: trials that have ended, each with the values it reported by step; maximize: reported values are to be large."""
        self._pruner, self._sign = pruner, -1.0 if maximize else 1.0
        self._histories: dict[int, History] = {}
        for trial, values in earlier:
            self._keep(trial, {step: self._sign * value for step, value in values.items()})

    def __call__(self, trial: Trial, step: int, value: float) -> bool:
        """Take a report; whether the trial should stop there."""
        known = self._histories.get(trial.number)
        # A trial that is run again reports from its beginning, and what a lost attempt reported is no part of it.
        before = (
            {} if known is None else {at: loss for at, loss in known.losses.items() if at < step}
        )
        history = History(trial.number, "running", before | {step: self._sign * value})
        self._histories[trial.number] = history
        return self._pruner.prune(
            history, [other for other in self._histories.values() if other.number != trial.number]
        )

    def estimate(self, trial: Trial) -> float | None:
        """Where the power law of its reports (objective/curve.py) puts a trial at the last step that others reached; null when they
        tell too little.

        The law has no value at step 0: of a trial that counts from 0 every step is one more. A report that is no number is left out.
        """
        known = self._histories.get(trial.number)
        if known is None:
            return None
        shift = 1 if 0 in known.losses else 0
        points = [
            (step + shift, loss)
            for step, loss in known.losses.items()
            if step + shift > 0 and abs(loss) <= _MAX_LOSS
        ]
        last = max(history.step or 0 for history in self._histories.values())
        end = extrapolate(points, last + shift)
        return None if end is None else self._sign * end.mean

    def on_end(self, trial: Trial, finished: int) -> None:
        """Take in how a trial ended; a failed one is no measure for others."""
        known = self._histories.pop(trial.number, None)
        if known is not None:
            self._keep(trial, known.losses)

    def _keep(self, trial: Trial, losses: Mapping[int, float]) -> None:
        state = _HISTORY_STATES.get(trial.state)
        if state is not None and losses:
            self._histories[trial.number] = History(trial.number, state, losses)
