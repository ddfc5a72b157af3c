"""Repetition of database calls while their errors are transient, up to a time limit."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from synaptune.study.database.connection import redact_url
from synaptune.study.database.errors import DatabaseUnavailable, as_user_errors

# Longest wait for a database that does not answer [s]; chosen: a restart with recovery.
RETRY_TIMEOUT = 120.0
# The same at the start of a command [s]; chosen: a wrong address is reported soon.
OPENING_RETRY_TIMEOUT = 15.0
# First and longest pause between two attempts [s]; each pause is twice the one before. Chosen: a
# short failure costs little time, and a recovering server gets few requests.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

ReturnT = TypeVar("ReturnT")


class Retry:
    """Repeats calls to one database. Each outage is printed once for all threads.

    Args:
        url: URL of the database.
        limit: time limit after the first failure [s].
        before_retry: called before each repetition, to restore what a lost connection released.
    """

    def __init__(
        self,
        url: str,
        limit: float = RETRY_TIMEOUT,
        before_retry: Callable[[], None] = lambda: None,
    ) -> None:
        self.limit = limit
        self._url, self._before_retry = url, before_retry
        self._is_lost = False
        self._guard = threading.Lock()

    def __call__(self, attempt: Callable[[bool], ReturnT]) -> ReturnT:
        """Call `attempt(is_retry)` until it succeeds.

        Args:
            attempt: the call. Its argument is True if an earlier attempt may have been applied
                without an answer.

        Returns:
            The result of the call.

        Raises:
            UserError: no answer within the limit, or an error that is not transient.
        """
        failed_at, pause = None, _FIRST_PAUSE
        while True:
            try:
                with as_user_errors(self._url):
                    if failed_at is not None:
                        self._before_retry()
                    answer = attempt(failed_at is not None)
            except DatabaseUnavailable as error:
                failed_at = failed_at or time.monotonic()
                left = failed_at + self.limit - time.monotonic()
                if left <= 0:
                    raise DatabaseUnavailable(
                        redact_url(self._url), f"no answer for {self.limit:g} s ({error.cause})"
                    ) from error
                self._print_change(
                    True, f"does not answer ({error.cause}): trying again for {self.limit:g} s"
                )
                time.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                if failed_at is not None:
                    seconds = time.monotonic() - failed_at
                    self._print_change(False, f"answers again after {seconds:.1f} s")
                return answer

    def _print_change(self, is_lost: bool, message: str) -> None:
        """Print a message if the database became lost or available; other threads print nothing."""
        with self._guard:
            if self._is_lost != is_lost:
                self._is_lost = is_lost
                print(f"{redact_url(self._url)} {message}", file=sys.stderr, flush=True)
