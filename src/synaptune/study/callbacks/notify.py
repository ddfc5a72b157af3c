"""Notifications of a search by apprise: webhooks, and every service that apprise has a URL for.

A daemon thread sends them, so a search never waits for a receiver and never fails because of one.
A receiver that fails repeatedly is reported once, and the end tells how many messages did not
arrive. URLs contain secrets: every message shows only the part of a URL that `mask_url` returns.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import re
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from synaptune.core.errors import UserError, user_error
from synaptune.core.text import get_first_line
from synaptune.search.callback import Callback
from synaptune.search.trial import Trial, find_best

EVENTS = ("generation", "best", "failure", "end")
_TIMEOUT = 5.0  # time limit of one message, and of all queued messages at the end [s]
_MAX_QUEUED = 100  # messages; a further message replaces the oldest one
_MAX_FAILURES = 3  # consecutive failures after which a receiver gets no more messages
_log_messages: deque[str] = deque(maxlen=20)  # the last log messages of apprise
# The body of a webhook is the event. The fields of apprise are left out; its message is `text`.
_WEBHOOK_BODY = dict.fromkeys(("version", "title", "attachments", "type"), "") | {"message": "text"}


@dataclass
class NotifyConfig:
    """Receivers and events.

    Attributes:
        urls: webhooks `https://...` (JSON by POST) or URLs of apprise; `'${oc.env:NAME}'` keeps a
            secret out of every file.
        events: some of `generation` (complete), `best` (new best trial), `failure` (failed trial)
            and `end` (end of the command, with its reason).
    """

    urls: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=lambda: list(EVENTS))


@dataclass(frozen=True)
class Event:
    """The content of a message.

    Attributes:
        study: name of the study.
        event: an entry of EVENTS.
        finished: number of ended trials of all concurrent searches.
        total: number of planned trials of all concurrent searches; None if unknown.
        best: best objective of all concurrent searches; None if no trial is complete.
        trial: number of the trial; None if the event has no trial.
        objective: objective of the trial; None if the event has none.
        reason: reason of a failure or an end, or the state of a generation.
        phase: phase of the study; None for the end of a command.
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
        """Return the event in one line."""
        name = {"best": "new best", "failure": "failed trial"}.get(self.event, self.event)
        details = f" {self.objective:.6g}" if self.objective is not None else ""
        details += f" (trial {self.trial})" if self.trial is not None else ""
        details += f": {self.reason}" if self.reason else ""
        best = f", best {self.best:.6g}" if self.best is not None and self.event != "best" else ""
        phase = f" of {self.phase}" if self.phase not in (None, "search") else ""
        count = f"{self.finished} of {self.total}" if self.total else str(self.finished)
        return f"{self.study}: {name}{phase}{details}; {count} trials{best}"


Send = Callable[[Event], str | None]  # returns why a message was not sent, or None


def mask_url(url: str) -> str:
    """Return a URL without its secrets: scheme and host of a webhook, scheme of any other URL.

    Other services of apprise can have a token in place of the host.
    """
    scheme, separator, rest = url.partition("://")
    host = re.match(r"(?:[^/?#]*@)?([\w.-]+)(?=[:/?#]|$)", rest) if _is_webhook(url) else None
    if not separator:
        return "***"
    return f"{scheme.lower()}://{'' if host is None else f'{host[1]}/'}***"


def _is_webhook(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


@dataclass
class Receiver:
    """A receiver of messages.

    Attributes:
        name: masked URL.
        send: sends an event.
        failures: number of consecutive failures.
        delivered: number of messages that it accepted.
        reason: why it did not accept the last message that it refused; None if it refused none.
    """

    name: str
    send: Send
    failures: int = 0
    delivered: int = 0
    reason: str | None = None

    def receive(self, event: Event) -> None:
        """Send an event, unless the receiver has failed too often; print its last failure."""
        if self.failures == _MAX_FAILURES:
            return
        try:
            reason = self.send(event)
        except Exception as error:  # any error of the receiver or of a library
            reason = type(error).__name__
        if reason is None:
            self.failures, self.delivered = 0, self.delivered + 1
        else:
            self.failures, self.reason = self.failures + 1, reason
        if self.failures == _MAX_FAILURES:
            message = f"notify: {self.name} failed {_MAX_FAILURES} times in a row ({reason})"
            print(f"{message}; it gets no more messages", file=sys.stderr, flush=True)

    def report_undelivered(self, count: int) -> None:
        """Print how many of so many messages the receiver did not accept, if any."""
        if missing := count - self.delivered:
            reason = self.reason or "no answer in time"
            message = f"notify: {missing} of {count} messages not delivered to {self.name}"
            print(f"{message} ({reason})", file=sys.stderr, flush=True)


class Notifier:
    """Sends events to all receivers in a separate thread."""

    def __init__(self, config: NotifyConfig, study: str, *, timeout: float = _TIMEOUT) -> None:
        """Start the thread.

        Args:
            config: receivers and events.
            study: name of the study.
            timeout: time limit of one message, and of all queued messages in `close` [s].

        Raises:
            UserError: see make_receivers.
        """
        self._events, self._timeout = set(config.events), timeout
        self._receivers = make_receivers(config, timeout)
        self._counts, self._best = Event(study, "end", total=0), None
        self._message_count = 0
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._is_closed = not self._receivers
        self._thread = threading.Thread(target=self._run, daemon=True)
        if self._receivers:
            self._thread.start()

    def send(self, event: str, **details: Any) -> None:
        """Queue an event with the counts of the search.

        Args:
            event: an entry of EVENTS.
            details: further attributes of Event.
        """
        if event in self._events and not self._is_closed:
            self._message_count += 1
            if self._queue.qsize() >= _MAX_QUEUED:
                with contextlib.suppress(queue.Empty):
                    self._queue.get_nowait()
            self._queue.put(replace(self._counts, event=event, **details))

    def reset(self) -> None:
        """Reset the counts. All callbacks made afterwards belong to concurrent searches."""
        self._best = None
        self._counts = replace(self._counts, finished=0, total=0, best=None)

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
            size: number of trials of a generation.
            total: number of planned trials; None if unknown.
            phase: phase of the study.
            maximize: whether larger objectives are better.
            earlier: trials that ended before this process started.
        """
        known = self._counts.total
        self._counts = replace(
            self._counts, total=None if total is None or known is None else known + total
        )
        self.count(earlier, maximize)
        generations = Counter(trial.index // size for trial in earlier)
        return _NotifierCallback(self, size, phase, maximize, generations)

    def count(self, trials: Sequence[Trial], maximize: bool) -> Trial | None:
        """Count ended trials; return the best trial so far."""
        self._best = find_best(filter(None, (self._best, *trials)), maximize)
        self._counts = replace(
            self._counts,
            finished=self._counts.finished + len(trials),
            best=self._best and self._best.objective,
        )
        return self._best

    @contextlib.contextmanager
    def send_end(self) -> Iterator[None]:
        """Send the reason for the end of the block, and wait a short time for queued messages."""
        reason = "done"
        try:
            yield
        except BaseException as error:
            reason = _describe_error(error)
            raise
        finally:
            self.send("end", reason=reason)
            self.close()

    def close(self) -> None:
        """Wait a short time for queued messages, drop the rest, and print what did not arrive."""
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(self._timeout)
        if not self._is_closed:
            for receiver in self._receivers:
                receiver.report_undelivered(self._message_count)
        self._is_closed = True

    def _run(self) -> None:
        while (event := self._queue.get()) is not None and not self._is_closed:
            for receiver in self._receivers:
                receiver.receive(event)


def _describe_error(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "stopped by the user"
    name = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"an error: {name}{get_first_line(error)}"


@dataclass
class _NotifierCallback(Callback):
    """Sends the events of one search.

    Attributes:
        notifier: sends the events.
        size: number of trials of a generation.
        label: phase of the study.
        maximize: whether larger objectives are better.
        generations: number of ended trials by generation.
    """

    notifier: Notifier
    size: int
    label: str
    maximize: bool
    generations: Counter[int]

    def on_end(self, trial: Trial, finished: int) -> None:
        best, send = self.notifier.count([trial], self.maximize), self.notifier.send
        if trial.state == "failed":
            reason = get_first_line(trial.reason)
            send("failure", phase=self.label, trial=trial.number, reason=reason)
        if best is trial:
            send("best", phase=self.label, trial=trial.number, objective=trial.objective)
        generation = trial.index // self.size
        self.generations[generation] += 1
        if self.generations[generation] == self.size:
            send("generation", phase=self.label, reason=f"{generation} is complete")


def make_receivers(config: NotifyConfig, timeout: float = _TIMEOUT) -> list[Receiver]:
    """Make the receivers.

    Args:
        config: receivers and events.
        timeout: time limit of one message [s].

    Raises:
        UserError: an event or a URL is unknown, or apprise is not installed.
    """
    if unknown := [event for event in config.events if event not in EVENTS]:
        raise user_error(
            got=f"notify.events={unknown}", expected=f"some of {', '.join(EVENTS)}", do="correct it"
        )
    return [Receiver(mask_url(url), _make_send(url, timeout)) for url in config.urls]


def _make_send(url: str, timeout: float) -> Send:
    try:
        import apprise
    except ImportError:
        raise user_error(
            got=f"notify.urls with {mask_url(url)}, and no apprise",
            expected="apprise, which sends the messages",
            do="pip install 'synaptune[notify]'",
        ) from None
    # Log messages contain URLs: no handler gets those of apprise, and its HTTP client writes none.
    logging.getLogger("apprise").setLevel(logging.WARNING)
    logging.getLogger("apprise").addFilter(_keep_log_message)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.INFO)
    target: Any = _make_webhook(url, timeout) if _is_webhook(url) else url
    service = apprise.Apprise()
    if not service.add(target):
        raise user_error(
            got=f"notify.urls with {mask_url(url)}",
            expected="https://HOST[:PORT]/PATH in ASCII, or a URL that apprise knows"
            " (github.com/caronc/apprise/wiki)",
            do="correct it",
        )

    def send(event: Event) -> str | None:
        if _is_webhook(url):
            target.payload_extras = _WEBHOOK_BODY | asdict(event)
        _log_messages.clear()
        if service.notify(body=event.to_text(), title=f"synaptune {event.event}"):
            return None
        text = " ".join(_log_messages)
        code = re.search(r"error=(\d{3})\b", text)
        other = "no connection" if "Connection error" in text else "not accepted"
        return f"HTTP {code[1]}" if code else other

    return send


def _keep_log_message(record: logging.LogRecord) -> bool:
    """Filter of the logger of apprise: keep a message for the next failure and emit none."""
    _log_messages.append(record.getMessage())
    return False


def _make_webhook(url: str, timeout: float) -> Any:
    """Make the service json:// or jsons:// of apprise for a web URL; None if the URL is invalid.

    Path and query are set unchanged: apprise would use the query as its own options.
    """
    import apprise

    try:
        parts = urlsplit(url)
    except ValueError:  # an unmatched bracket
        return None
    webhook: Any = apprise.Apprise.instantiate("json" + url[4:].partition("?")[0])
    if webhook is not None:
        webhook.fullpath = urlunsplit(("", "", parts.path, parts.query, ""))
        webhook.headers = {"User-Agent": "synaptune"}
        webhook.socket_connect_timeout = webhook.socket_read_timeout = timeout
    return webhook
