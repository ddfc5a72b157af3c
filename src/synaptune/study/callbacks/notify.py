"""Notifications of a search by apprise: webhooks, and any service that apprise knows by a URL.

One daemon thread sends. No search waits for a receiver or fails by it, and a receiver that fails
is reported once. URLs hold secrets, so no message shows more of one than `mask_url` does.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from synaptune.core.errors import UserError, user_error
from synaptune.search.callback import Callback
from synaptune.search.trial import Trial, find_best

EVENTS = ("generation", "best", "failure", "end")
_WEB_SCHEMES = ("http", "https")
_TIMEOUT = 5.0  # seconds for one message, and for all that still wait at the end
_MAX_WAITING = 100  # messages; beyond that the oldest give way
_messages: deque[str] = deque(maxlen=20)  # what apprise logged last
_MAX_FAILURES = 3  # failures in a row after which a receiver gets no more
# The body of a webhook is the event: apprise's own fields are left out, its message is `text`.
_WEBHOOK_BODY = dict.fromkeys(("version", "title", "attachments", "type"), "") | {"message": "text"}


@dataclass
class NotifyConfig:
    """Receivers and events.

    Attributes:
        urls: webhooks `https://...` (JSON by POST) or URLs of apprise; `'${oc.env:NAME}'` keeps a
            secret out of every file.
        events: some of `generation` (one is whole), `best` (a new one), `failure` (of a trial) and
            `end` (of the command, with its reason).
    """

    urls: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=lambda: list(EVENTS))


@dataclass(frozen=True)
class Event:
    """The content of a message; phase, trial, objective and reason where the event has one.

    Attributes:
        finished: number of ended trials of all searches that run side by side.
        total: number of their planned trials; None when unknown.
        best: their best objective.
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
        details = f" {self.objective:.6g}" if self.objective is not None else ""
        details += f" (trial {self.trial})" if self.trial is not None else ""
        details += f": {self.reason}" if self.reason else ""
        best = f", best {self.best:.6g}" if self.best is not None and self.event != "best" else ""
        phase = f" of {self.phase}" if self.phase not in (None, "search") else ""
        count = f"{self.finished} of {self.total}" if self.total else str(self.finished)
        return f"{self.study}: {words}{phase}{details}; {count} trials{best}"


Send = Callable[[Event], str | None]  # returns why a message was not taken


def mask_url(url: str) -> str:
    """A URL without its secrets: scheme and host of a webhook, only the scheme of any other.

    Other services of apprise may have a token in place of the host.
    """
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
        """Start the thread.

        Args:
            timeout: time for one message, and for those that wait at `close` [s].

        Raises:
            UserError: see make_receivers.
        """
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
        """Queue an event, with the counts of the search."""
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
        """Send how the block ended, and wait a short time for messages in the queue."""
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
        """Wait a short time until everything is sent."""
        if self._thread is not None:
            self._enqueue(None)
            self._thread.join(self._timeout)
            with self._condition:
                self._waiting.clear()  # a thread that waits for a receiver ends afterwards
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
                        message = f"notify: {name} failed {_MAX_FAILURES} times in a row ({fault})"
                        message += "; it gets no more messages"
                        print(message, file=sys.stderr, flush=True)


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
    """Make the receivers, each with its masked URL.

    Raises:
        UserError: an event or a URL is unknown, or apprise is not installed.
    """
    if unknown := [event for event in config.events if event not in EVENTS]:
        raise user_error(
            got=f"notify.events={unknown}", expected=f"some of {', '.join(EVENTS)}", do="correct it"
        )
    return [(mask_url(url), _make_receiver(url, timeout)) for url in config.urls]


def _make_receiver(url: str, timeout: float) -> Send:
    try:
        import apprise
    except ImportError:
        raise user_error(
            got=f"notify.urls with {mask_url(url)}, and no apprise",
            expected="apprise, which sends the messages",
            do="pip install 'synaptune[notify]'",
        ) from None
    # Log lines show URLs: apprise's are kept from every handler, its HTTP client writes none.
    logging.getLogger("apprise").setLevel(logging.WARNING)
    logging.getLogger("apprise").addFilter(_keep_from_logs)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)
    is_webhook = _read_scheme(url) in _WEB_SCHEMES
    target: Any = _make_webhook(url, timeout) if is_webhook else url
    service = apprise.Apprise()
    if not service.add(target):
        raise user_error(
            got=f"notify.urls with {mask_url(url)}",
            expected="https://HOST[:PORT]/PATH in ASCII, or a URL that apprise knows"
            " (github.com/caronc/apprise/wiki)",
            do="correct it",
        )

    def send(event: Event) -> str | None:
        if is_webhook:
            target.payload_extras = _WEBHOOK_BODY | asdict(event)
        _messages.clear()
        if service.notify(body=event.to_text(), title=f"synaptune {event.event}"):
            return None
        text = " ".join(_messages)
        code = re.search(r"error=(\d{3})\b", text)
        no_code = "no connection" if "Connection error" in text else "not taken"
        return f"HTTP {code[1]}" if code else no_code

    return send


def _keep_from_logs(record: logging.LogRecord) -> bool:
    """Filter of apprise's logger: keep a message for the next failure and emit nothing."""
    _messages.append(record.getMessage())
    return False


def _make_webhook(url: str, timeout: float) -> Any:
    """Make apprise's service json:// or jsons:// for a URL of the web; None when it is unusable.

    Path and query stay as they are: apprise would take the query for options of its own.
    """
    import apprise

    try:
        parts = urlsplit(url)
    except ValueError:  # a bracket that does not close
        return None
    webhook: Any = apprise.Apprise.instantiate("json" + url[4:].partition("?")[0])
    if webhook is not None:
        webhook.fullpath = urlunsplit(("", "", parts.path, parts.query, ""))
        webhook.headers = {"User-Agent": "synaptune"}
        webhook.socket_connect_timeout = webhook.socket_read_timeout = timeout
    return webhook


def _try_send(send: Send, event: Event) -> str | None:
    """Send an event; returns why it could not be sent, without any part of a URL, or None."""
    try:
        return send(event)
    except Exception as error:  # whatever a receiver or its library does ends here
        return type(error).__name__


def _first_line(text: str | None) -> str:
    return text.splitlines()[0] if text else "unknown"
