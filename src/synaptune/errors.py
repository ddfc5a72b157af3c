"""Errors that a user can cause: one line of what was got, what was expected, what to do; shown without a traceback."""


class UserError(Exception):
    """A mistake in the input, the configuration or the environment, worded for the person who can mend it."""


def mistake(*, got: str, expected: str, do: str) -> UserError:
    """The one form of a user error: what was got, what was expected, what to do."""
    return UserError(f"got {got}\n  expected: {expected}\n  to do: {do}")
