"""Exceptions that end a training run before its last step."""

from __future__ import annotations

from collections.abc import Callable

from synaptune.core.errors import UserError

# Called with (optimizer step, validation loss [nats/token]) after each validation; it raises
# RunPruned to end the run.
ValidationCallback = Callable[[int, float], None]


class DivergedError(UserError):
    """The loss is not finite. The run fails and has no score."""

    def __init__(self, step: int, loss: float) -> None:
        super().__init__(
            f"got a training loss of {loss} by step {step}\n"
            "  expected: a finite loss\n"
            "  to do: lower training.learning_rate or training.clip, "
            "or move the synapse.* values back towards their defaults"
        )
        self.step = step
        self.loss = loss

    def __reduce__(self):
        """Pickle by the arguments, so that the exception can pass between processes."""
        return DivergedError, (self.step, self.loss)


class RunPruned(Exception):
    """Raised by a validation callback to end a run early; the run has not failed."""

    def __init__(self, step: int) -> None:
        super().__init__(f"pruned at step {step}")
        self.step = step

    def __reduce__(self):
        """Pickle by the arguments, so that the exception can pass between processes."""
        return RunPruned, (self.step,)
