"""What can end a training run before its last step."""

from __future__ import annotations

from collections.abc import Callable

from synaptune.core.errors import UserError

# (optimizer step, validation loss [nats/token]), after each validation; raises Pruned to end the run.
ValidationCallback = Callable[[int, float], None]


class DivergedError(UserError):
    """The loss stopped being a number: a failed run, never a score."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(
            f"got a training loss of {loss} by step {step}\n"
            "  expected: a finite loss\n"
            "  to do: lower training.learning_rate or training.clip, or move the synapse.* values back towards their defaults"
        )
        self.step = step
        self.loss = loss

    def __reduce__(self):
        """Pickles by its arguments, so it travels between worker processes."""
        return DivergedError, (self.step, self.loss)


class RunPruned(Exception):
    """Raised by a report: the run is not worth its remaining steps. It ends in order and is no failure."""

    def __init__(self, step: int) -> None:
        super().__init__(f"pruned at step {step}")
        self.step = step

    def __reduce__(self):
        """Pickles by its arguments, so it travels between worker processes."""
        return RunPruned, (self.step,)
