"""Tells people elsewhere how a search goes: a webhook, or any service that apprise knows by a URL.

One daemon thread sends. Whatever a receiver does, be dead, slow or unwilling, no search waits for it, fails by it or hears of it
more than once. URLs hold secrets, so no line ever shows more of one than `masked` does.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from synaptune.core.errors import UserError, user_error
from synaptune.search.callback import Callback
from synaptune.search.trial import Trial, find_best

EVENTS = ("generation", "best", "failure", "end")
_WEB_SCHEMES = ("http", "https")
_TIMEOUT = 5.0  # seconds for one message, and for all that still wait at the end
_MAX_WAITING = 100  # messages; beyond that the oldest give way
_MAX_FAILURES = 3  # failures in a row after which a receiver gets no more


@dataclass
class NotifyConfig:
    """urls: where to, `https://...` (JSON by POST) or a URL of apprise; `'${oc.env:NAME}'` keeps a secret out of every file.

    events: of `generation` (one is whole), `best` (a new one), `failure` (of a trial), `end` (of the command, and how).
    """

    urls: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=lambda: list(EVENTS))


@dataclass(frozen=True)
class Event:
    """What a receiver is told: phase, trial, objective and reason where the event has one.

    finished, total, best: trials that have ended, of how many, and the best objective, over all searches that run side by side.
    """

    study: str
    event: str
    finished: int = 0
    total: int | None = None
    best: float | None = None
    trial: int | None = None
    objective: float | None = None
    reason: str | None = None
    phase: str | None = None

    def to_text(self) -> str:
        """The event in one line."""
        words = {"best": "new best", "failure": "failed trial"}.get(self.event, self.event)
        about = f" {self.objective:.6g}" if self.objective is not None else ""
        about += f" (trial {self.trial})" if self.trial is not None else ""
        about += f": {self.reason}" if self.reason else ""
        best = f", best {self.best:.6g}" if self.best is not None and self.event != "best" else ""
        phase = f" of {self.phase}" if self.phase not in (None, "search") else ""
        return f"{self.study}: {words}{phase}{about}; {self.finished}{f' of {self.total}' if self.total else ''} trials{best}"


Send = Callable[[Event], None]


class RefusedError(Exception):
    """A receiver did not take a message; the words hold no secret."""


def mask_url(url: str) -> str:
    """A URL without its secrets: of a webhook scheme and host, of any other only the scheme, since apprise takes tokens for hosts."""
    scheme = _read_scheme(url)
    try:
        host = urlsplit(url).hostname if scheme in _WEB_SCHEMES else None
    except ValueError:  # a bracket that does not close
        host = None
    return f"{scheme}://{host}/***" if host else f"{scheme}://***" if scheme else "***"


def _read_scheme(url: str) -> str:
    return url.partition("://")[0].lower() if "://" in url else ""


class Notifier:
    """Sends events to every receiver from a thread of its own."""

    def __init__(self, config: NotifyConfig, study: str, *, timeout: float = _TIMEOUT) -> None:
        """timeout: seconds for one message, and for what waits at `close`. Raises UserError for URLs or events that cannot be."""
        self._events, self._timeout = set(config.events), timeout
        self._receivers = make_receivers(config, timeout)
        self._latest = Event(study, "end", total=0)
        self._best: Trial | None = None
        self._waiting: deque[Event | None] = deque(maxlen=_MAX_WAITING)
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, daemon=True) if self._receivers else None
        if self._thread is not None:
            self._thread.start()

    def send(self, event: str, **about: Any) -> None:
        """Hand an event on, and return at once; what is known of the search is added."""
        if event in self._events and self._thread is not None:
            self._enqueue(replace(self._latest, event=event, **about))

    def reset(self) -> None:
        """Count from zero: the searches whose callbacks are made after this run side by side."""
        self._best = None
        self._latest = replace(self._latest, finished=0, total=0, best=None)

    def make_callback(
        self,
        *,
        size: int,
        total: int | None,
        phase: str = "search",
        maximize: bool = False,
        earlier: Sequence[Trial] = (),
    ) -> Callback:
        """Make the callback that sends the events of a search.

        Args:
            size: number of trials in a generation.
            total: number of planned trials; None when unknown.
            earlier: trials that ended before.
        """
        whole = None if total is None or self._latest.total is None else self._latest.total + total
        self._latest = replace(self._latest, total=whole)
        self.count(earlier, maximize)
        counts = Counter(trial.index // size for trial in earlier)
        return _NotifierCallback(self, size, phase, maximize, counts)

    def count(self, trials: Sequence[Trial], maximize: bool) -> Trial | None:
        """Count ended trials; returns the best trial so far."""
        self._best = find_best([*([] if self._best is None else [self._best]), *trials], maximize)
        finished = self._latest.finished + len(trials)
        self._latest = replace(
            self._latest, finished=finished, best=self._best and self._best.objective
        )
        return self._best

    @contextlib.contextmanager
    def send_end(self) -> Iterator[None]:
        """Around a command's work: tells how it ended, and waits a little for what is still to be sent."""
        reason = "an error"
        try:
            yield
            reason = "done"
        except KeyboardInterrupt:
            reason = "stopped by the user"
            raise
        except UserError as error:
            reason = f"an error: {_first_line(str(error))}"
            raise
        except BaseException as error:
            reason = f"an error: {type(error).__name__}: {_first_line(str(error))}"
            raise
        finally:
            self.send("end", reason=reason)
            self.close()

    def close(self) -> None:
        """Wait, but not long, until everything is sent."""
        if self._thread is not None:
            self._enqueue(None)
            self._thread.join(self._timeout)
            with self._condition:
                self._waiting.clear()  # a thread that still waits for its receiver ends after it
            self._enqueue(None)
            self._thread = None

    def _enqueue(self, event: Event | None) -> None:
        with self._condition:
            self._waiting.append(event)
            self._condition.notify()

    def _run(self) -> None:
        failures: Counter[int] = Counter()
        while len(failures) < len(self._receivers) or any(
            count < _MAX_FAILURES for count in failures.values()
        ):
            with self._condition:
                self._condition.wait_for(lambda: self._waiting)
                event = self._waiting.popleft()
            if event is None:
                return
            for number, (name, send) in enumerate(self._receivers):
                if failures[number] < _MAX_FAILURES:
                    failures[number] = (
                        0 if (fault := _try_send(send, event)) is None else failures[number] + 1
                    )
                    if failures[number] == _MAX_FAILURES:
                        line = f"notify: {name} failed {_MAX_FAILURES} times in a row ({fault}); it gets no more messages"
                        print(line, file=sys.stderr, flush=True)


@dataclass
class _NotifierCallback(Callback):
    """Sends the events of one search; counts: ended trials by generation."""

    notifier: Notifier
    size: int
    label: str
    maximize: bool
    counts: Counter[int]

    def on_end(self, trial: Trial, finished: int) -> None:
        best, send = self.notifier.count([trial], self.maximize), self.notifier.send
        if trial.state == "failed":
            reason = _first_line(trial.reason)
            send("failure", phase=self.label, trial=trial.number, reason=reason)
        if best is trial:
            send("best", phase=self.label, trial=trial.number, objective=trial.objective)
        number = trial.index // self.size
        self.counts[number] += 1
        if self.counts[number] == self.size:
            send("generation", phase=self.label, reason=f"{number} is whole")


def make_receivers(config: NotifyConfig, timeout: float = _TIMEOUT) -> list[tuple[str, Send]]:
    """The receivers with their masked names; raises UserError for a URL or event that cannot be, or when apprise is missing."""
    if unknown := [event for event in config.events if event not in EVENTS]:
        raise user_error(
            got=f"notify.events={unknown}", expected=f"some of {', '.join(EVENTS)}", do="correct it"
        )
    return [
        (
            mask_url(url),
            _make_webhook(url, timeout)
            if _read_scheme(url) in _WEB_SCHEMES
            else _make_apprise(url),
        )
        for url in config.urls
    ]


def _make_webhook(url: str, timeout: float) -> Send:
    try:
        parts = urlsplit(url)
        usable = (
            bool(parts.hostname)
            and parts.port != 0
            and url.isascii()
            and not any(letter.isspace() for letter in url)
        )
    except ValueError:  # a port that is no number, a bracket that does not close
        usable = False
    if not usable:
        raise user_error(
            got=f"notify.urls with {mask_url(url)}",
            expected="https://HOST[:PORT]/PATH in ASCII",
            do="correct it",
        ) from None
    headers = {"Content-Type": "application/json", "User-Agent": "synaptune"}
    if parts.username is not None:  # urllib takes credentials for a part of the host's name
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(login.encode()).decode()
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment=""))

    def send(event: Event) -> None:
        import urllib.request

        body = json.dumps(asdict(event) | {"text": event.to_text()}).encode()
        urllib.request.urlopen(
            urllib.request.Request(bare, body, headers, method="POST"), timeout=timeout
        ).close()

    return send


def _make_apprise(url: str) -> Send:
    try:
        import apprise
    except ImportError:
        raise user_error(
            got=f"notify.urls with {mask_url(url)}, and no apprise",
            expected="apprise, which sends to everything but http:// and https://",
            do="pip install 'synaptune[notify]', or give a webhook",
        ) from None
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)  # its lines show URLs
    service = apprise.Apprise()
    if not service.add(url):
        expected = "a URL that apprise knows (github.com/caronc/apprise/wiki), or a webhook"
        raise user_error(
            got=f"notify.urls with {mask_url(url)}", expected=expected, do="correct it"
        )

    def send(event: Event) -> None:
        if not service.notify(body=event.to_text(), title=f"synaptune {event.event}"):
            raise RefusedError("not taken")

    return send


def _try_send(send: Send, event: Event) -> str | None:
    """Why an event could not be sent, without any word that a URL might be in; null when it was."""
    import urllib.error

    try:
        send(event)
        return None
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except RefusedError as error:
        return str(error)
    except (
        Exception
    ) as error:  # the border of the outer world: whatever a receiver or its library does ends here
        cause = (
            error.reason
            if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError)
            else error
        )
        return (cause.strerror if isinstance(cause, OSError) else None) or type(cause).__name__


def _first_line(text: str | None) -> str:
    return text.splitlines()[0] if text else "unknown"
