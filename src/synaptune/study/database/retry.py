"""Calls of a database that outlast its restart: repeated while its errors pass by themselves, up to a limit."""

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
# The same at the start of a command [s]; chosen: a mistyped address is told soon.
OPENING_RETRY_TIMEOUT = 15.0
_FIRST_PAUSE = 0.1  # pause before the first repetition [s]; chosen: doubled each time
_LONGEST_PAUSE = 5.0  # longest pause between two [s]; chosen: gentle to a recovery

ReturnT = TypeVar("ReturnT")


class Retry:
    """Repeats calls of one database; what it waits for is said once for each outage, however many threads wait.

    limit: seconds from the first failure; mend: called before each repetition, for what a lost connection takes with it.
    """

    def __init__(
        self,
        url: str,
        limit: float = RETRY_TIMEOUT,
        before_retry: Callable[[], None] = lambda: None,
    ) -> None:
        self.limit = limit
        self._url, self._before_retry = url, before_retry
        self._gone_since: float | None = None
        self._guard = threading.Lock()

    def __call__(self, attempt: Callable[[bool], ReturnT]) -> ReturnT:
        """The answer of `attempt(again)`; again is true once an earlier attempt may have been applied without an answer.

        Raises UserError: no answer within the limit, or an error that does not pass.
        """
        begun, pause = None, _FIRST_PAUSE
        while True:
            try:
                with as_user_errors(self._url):
                    if begun is not None:
                        self._before_retry()
                    answer = attempt(begun is not None)
            except DatabaseUnavailable as error:
                begun = begun or time.monotonic()
                left = begun + self.limit - time.monotonic()
                if left <= 0:
                    raise DatabaseUnavailable(
                        redact_url(self._url), f"no answer for {self.limit:g} s ({error.cause})"
                    ) from error
                self._print_lost(error)
                time.sleep(min(pause, left))
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                if begun is not None:
                    self._print_restored()
                return answer

    def _print_lost(self, error: DatabaseUnavailable) -> None:
        with self._guard:
            if self._gone_since is None:
                self._gone_since = time.monotonic()
                print(
                    f"{redact_url(self._url)} does not answer ({error.cause}): trying again for {self.limit:g} s",
                    file=sys.stderr,
                    flush=True,
                )

    def _print_restored(self) -> None:
        with self._guard:
            if self._gone_since is not None:
                print(
                    f"{redact_url(self._url)} answers again after {time.monotonic() - self._gone_since:.1f} s",
                    file=sys.stderr,
                    flush=True,
                )
                self._gone_since = None
