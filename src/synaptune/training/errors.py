"""What can go wrong in a training run through the values it was given."""

from __future__ import annotations

from synaptune.errors import UserError


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
