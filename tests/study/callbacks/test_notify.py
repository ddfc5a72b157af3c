"""Notifications to receivers on this machine that accept, refuse, never answer or do not exist."""

import json
import logging
import signal
import socket
import sys
import threading
import time
from dataclasses import fields, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

pytest.importorskip("apprise")

from helpers import processes
from helpers.paths import APPS
from synaptune.config.compose import compose_config
from synaptune.config.run import run
from synaptune.core.errors import UserError
from synaptune.search.trial import Trial
from synaptune.study.callbacks.notify import (
    EVENTS,
    Event,
    Notifier,
    NotifyConfig,
    make_receivers,
    mask_url,
)

APP = APPS / "app.py"
SECRET = "T0KEN"


class Server:
    """A server that stores requests and answers them with a code.

    With the code None it answers no request before `release` is set.
    """

    def __init__(self, code):
        self.requests, self.headers, self.arrived, self.release = (
            [],
            [],
            threading.Event(),
            threading.Event(),
        )
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.arrived.set()
                if code is None:
                    outer.release.wait(60)
                outer.requests.append(
                    json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                )
                outer.headers.append(dict(self.headers) | {"path": self.path})
                self.send_response(code or 200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}/hook/{SECRET}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver(request):
    server = Server(getattr(request, "param", 200))
    yield server
    server.close()


def closed_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def trial(number, objective):
    state = "failed" if objective is None else "complete"
    return Trial(
        number,
        number,
        (0.5,),
        {"x": 1.0},
        state,
        objective,
        reason="ArithmeticError: no\nmore" if objective is None else None,
    )


def send_search(*urls, objectives=(3.0, None, 2.0, 2.5), timeout=5.0, **config):
    """Send the events of a small search to receivers; return after its end."""
    notifier = Notifier(NotifyConfig(list(urls), **config), "s", timeout=timeout)
    with notifier.send_end():
        callback = notifier.make_callback(size=2, total=4)
        for number, objective in enumerate(objectives):
            callback.on_end(trial(number, objective), number + 1)


def test_a_webhook_gets_every_event_in_order(receiver):
    send_search(receiver.url)
    events = [
        (
            body["event"],
            body["trial"],
            body["objective"],
            body["best"],
            body["finished"],
            body["reason"],
        )
        for body in receiver.requests
    ]
    assert events == [
        ("best", 0, 3.0, 3.0, 1, None),
        ("failure", 1, None, 3.0, 2, "ArithmeticError: no"),
        ("generation", None, None, 3.0, 2, "0 is complete"),
        ("best", 2, 2.0, 2.0, 3, None),
        ("generation", None, None, 2.0, 4, "1 is complete"),
        ("end", None, None, 2.0, 4, "done"),
    ]
    assert {(body["study"], body["total"]) for body in receiver.requests} == {("s", 4)}
    assert receiver.requests[3]["text"] == "s: new best 2 (trial 2); 3 of 4 trials"
    assert receiver.headers[0]["path"] == f"/hook/{SECRET}"


def test_the_end_counts_trials_without_an_event(receiver):
    send_search(receiver.url, objectives=(3.0, 2.0, 2.5), events=["end"])
    assert [(body["finished"], body["total"], body["best"]) for body in receiver.requests] == [
        (3, 4, 2.0)
    ]


def test_only_the_configured_events_are_sent(receiver):
    send_search(receiver.url, events=["failure", "end"])
    assert [body["event"] for body in receiver.requests] == ["failure", "end"]


def test_a_continued_search_has_its_generations_and_its_best_trial(receiver):
    notifier = Notifier(NotifyConfig([receiver.url]), "s")
    with notifier.send_end():
        callback = notifier.make_callback(
            size=2,
            total=4,
            maximize=True,
            earlier=[trial(0, 5.0), trial(1, 1.0), trial(2, 4.0)],
        )
        callback.on_end(trial(3, 3.0), 4)
    assert [(body["event"], body["best"], body["reason"]) for body in receiver.requests] == [
        ("generation", 5.0, "1 is complete"),
        ("end", 5.0, "done"),
    ]


def test_concurrent_searches_are_counted_together(receiver):
    notifier = Notifier(NotifyConfig([receiver.url]), "s")
    with notifier.send_end():
        notifier.reset()
        a, b = (notifier.make_callback(size=2, total=5, phase=phase) for phase in "ab")
        a.on_end(trial(0, 1.0), 1)
        b.on_end(replace(trial(1, 3.0), index=0), 1)
        b.on_end(replace(trial(2, 0.5), index=1), 2)
    assert [
        (body["event"], body["phase"], body["best"], body["finished"], body["total"])
        for body in receiver.requests
    ] == [
        ("best", "a", 1.0, 1, 10),
        ("best", "b", 0.5, 3, 10),
        ("generation", "b", 0.5, 3, 10),
        ("end", None, 0.5, 3, 10),
    ]
    assert receiver.requests[1]["text"] == "s: new best of b 0.5 (trial 2); 3 of 10 trials"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), "stopped by the user"),
        (UserError("got a full disk\n  expected: space"), "an error: got a full disk"),
        (ValueError("odd"), "an error: ValueError: odd"),
    ],
)
def test_the_end_has_a_reason(receiver, error, reason):
    with pytest.raises(type(error)), Notifier(NotifyConfig([receiver.url]), "s").send_end():
        raise error
    assert [(body["event"], body["reason"]) for body in receiver.requests] == [("end", reason)]


@pytest.mark.parametrize("receiver", [None], indirect=True)
def test_a_receiver_that_never_answers_delays_nothing(receiver):
    notifier = Notifier(NotifyConfig([receiver.url]), "s", timeout=60.0)
    callback = notifier.make_callback(size=2, total=1000)
    callback.on_end(trial(0, 1.0), 1)
    assert receiver.arrived.wait(30)
    for number in range(1, 1000):  # far more messages than the queue takes
        callback.on_end(trial(number, None), number + 1)
    assert receiver.requests == []
    notifier._timeout = 0.1
    notifier.close()
    assert receiver.requests == []


@pytest.mark.parametrize("receiver", [500], indirect=True)
def test_a_receiver_that_fails_is_dropped_and_named_and_the_others_are_not(receiver, capsys):
    listening = Server(200)
    dead = f"http://user:{SECRET}@127.0.0.1:{closed_port()}/{SECRET}"
    send_search(dead, receiver.url, listening.url)
    listening.close()
    assert len(listening.requests) == 6
    assert len(receiver.requests) == 3
    lines = sorted(capsys.readouterr().err.splitlines())
    name, reasons = "http://127.0.0.1/***", ("HTTP 500", "no connection")
    assert lines == [
        *(f"notify: 6 of 6 messages not delivered to {name} ({reason})" for reason in reasons),
        *(
            f"notify: {name} failed 3 times in a row ({reason}); it gets no more messages"
            for reason in reasons
        ),
    ]


def test_the_end_of_a_short_search_names_a_receiver_that_got_nothing(receiver, capsys):
    dead = f"http://127.0.0.1:{closed_port()}/{SECRET}"
    send_search(dead, receiver.url, objectives=(3.0,), events=["end"])
    assert capsys.readouterr().err == (
        "notify: 1 of 1 messages not delivered to http://127.0.0.1/*** (no connection)\n"
    )


@pytest.mark.parametrize("receiver", [None], indirect=True)
def test_messages_without_an_answer_at_the_end_count_as_not_delivered(receiver, capsys):
    notifier = Notifier(NotifyConfig([receiver.url]), "s")
    notifier.send("failure")
    assert receiver.arrived.wait(30)
    notifier._timeout = 0.1
    notifier.close()
    notifier.close()
    said = "notify: 1 of 1 messages not delivered to http://127.0.0.1/*** (no answer in time)\n"
    assert capsys.readouterr().err == said


def test_a_login_in_the_url_becomes_a_header(receiver):
    send_search(f"http://me:p%40ss@{receiver.host}/x")
    assert receiver.headers[0]["Authorization"] == "Basic bWU6cEBzcw=="


def test_apprise_sends_to_its_own_services(receiver, caplog, capsys):
    pytest.importorskip("apprise")
    send_search(f"json://user:{SECRET}@{receiver.host}/x", events=["end"])
    assert [(body["title"], body["message"]) for body in receiver.requests] == [
        ("synaptune end", "s: end: done; 4 of 4 trials, best 2")
    ]
    send_search(f"json://user:{SECRET}@127.0.0.1:{closed_port()}/{SECRET}")
    output = capsys.readouterr().err + caplog.text
    assert "json://*** failed 3 times in a row (no connection)" in output
    assert SECRET not in output


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        (
            f"https://user:{SECRET}@example.org:8443/a/{SECRET}?key={SECRET}",
            "https://example.org/***",
        ),
        (f"slack://{SECRET}/b/c", "slack://***"),
        (f"http://[{SECRET}", "http://***"),
        (SECRET, "***"),
    ],
)
def test_a_masked_url_shows_no_secret(url, masked):
    assert mask_url(url) == masked


@pytest.mark.parametrize(
    "url",
    [
        f"http://[{SECRET}",
        f"http://host:{SECRET}/",
        f"nosuch://{SECRET}",
        SECRET,
        f"http://h {SECRET}/",
    ],
)
def test_an_invalid_url_is_refused_without_its_secret(url):
    with pytest.raises(UserError, match="to do") as caught:
        make_receivers(NotifyConfig([url]))
    assert SECRET not in str(caught.value)


def test_the_error_for_an_unknown_event_lists_the_known_events():
    with pytest.raises(UserError, match=", ".join(EVENTS)):
        make_receivers(NotifyConfig(events=["begin"]))


@pytest.mark.parametrize("url", [f"slack://{SECRET}/b/c", f"https://example.org/{SECRET}"])
def test_without_apprise_the_message_says_what_to_install(monkeypatch, url):
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(UserError, match=r"pip install 'synaptune\[notify\]'") as caught:
        make_receivers(NotifyConfig([url]))
    assert SECRET not in str(caught.value)


def test_a_webhook_gets_only_the_event_at_its_path_and_query(receiver):
    send_search(f"{receiver.url}%2Fx?sig=a%2Bb&sig=c&flag", objectives=(3.0,), events=["best"])
    assert set(receiver.requests[0]) == {"text", *(entry.name for entry in fields(Event))}
    assert receiver.headers[0]["path"] == f"/hook/{SECRET}%2Fx?sig=a%2Bb&sig=c&flag"
    assert receiver.headers[0]["User-Agent"] == "synaptune"


def test_no_log_message_contains_a_url(receiver, caplog):
    caplog.set_level(logging.DEBUG)
    send_search(receiver.url, f"http://127.0.0.1:{closed_port()}/{SECRET}", f"json://{SECRET}:1/")
    assert SECRET not in caplog.text


def test_the_text_of_an_event_is_one_line():
    assert (
        Event("s", "failure", 3, None, 1.5, 2, reason="ValueError: x").to_text()
        == "s: failed trial (trial 2): ValueError: x; 3 trials, best 1.5"
    )


def test_a_sweep_sends_its_end_and_stores_no_secret(receiver, tmp_path, monkeypatch):
    monkeypatch.setenv("HOOK", receiver.url)
    arguments = [
        "hydra/sweeper=random",
        "hydra.sweeper.optim.budget=2",
        "x=interval(0,10)",
        "+notify.urls=['${oc.env:HOOK}']",
        "seconds=0.2",
    ]
    log = tmp_path / "log"
    process = processes.start([str(APP), "-m", *arguments, f"log={log}"], tmp_path)
    while not log.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert [(body["event"], body["reason"]) for body in receiver.requests] == [
        ("best", None),
        ("end", "stopped by the user"),
    ]
    assert {body["study"] for body in receiver.requests} == {"app-random"}
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]


def test_a_protocol_sends_the_error_that_ended_it(receiver, tmp_path):
    arguments = ["scale=smoke", "study.resume=must", f"notify.urls=['{receiver.url}']"]
    finished = processes.run(["-m", "synaptune.cli.main", "phase1", *arguments], tmp_path)
    assert finished.returncode == 2
    (body,) = receiver.requests
    assert (body["study"], body["event"]) == ("phase1", "end")
    assert body["reason"].startswith("an error: got study.resume=must, but no study phase1")


def test_a_run_does_not_log_its_receivers(tmp_path, monkeypatch):
    """The record of a run goes to Weights & Biases."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    base, *_ = compose_config(
        [
            "scale=smoke",
            "training.steps=1",
            "logger.wandb=offline",
            f"notify.urls=['json://{SECRET}']",
        ],
    )
    run(base, tmp_path / "run", overrides=[])
    logged = b""
    deadline = time.monotonic() + 300.0
    while (
        b"val_loss" not in logged and time.monotonic() < deadline
    ):  # the W&B service writes the file with a delay
        time.sleep(0.1)
        logged = b"".join(path.read_bytes() for path in tmp_path.rglob("*.wandb"))
    assert b"model.layers" in logged
    assert SECRET.encode() not in logged
