"""Notifications at real receivers on this machine: one that listens, one that never answers, one
that refuses, none at all.
"""

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


class Receiver:
    """A server that keeps the requests it gets and answers them with a code.

    With null it holds them until `release`.
    """

    def __init__(self, code):
        self.requests, self.headers, self.arrived, self.release = (
            [],
            [],
            threading.Event(),
            threading.Event(),
        )
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                receiver.arrived.set()
                if code is None:
                    receiver.release.wait(60)
                receiver.requests.append(
                    json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                )
                receiver.headers.append(dict(self.headers) | {"path": self.path})
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
    made = Receiver(getattr(request, "param", 200))
    yield made
    made.close()


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


def told(*urls, objectives=(3.0, None, 2.0, 2.5), timeout=5.0, **config):
    """A small search told to receivers; returns when it has ended."""
    notifier = Notifier(NotifyConfig(list(urls), **config), "s", timeout=timeout)
    with notifier.send_end():
        watch = notifier.make_callback(size=2, total=4)
        for number, objective in enumerate(objectives):
            watch.on_end(trial(number, objective), number + 1)


def test_a_webhook_is_told_every_event_in_order(receiver):
    told(receiver.url)
    known = [
        (got["event"], got["trial"], got["objective"], got["best"], got["finished"], got["reason"])
        for got in receiver.requests
    ]
    assert known == [
        ("best", 0, 3.0, 3.0, 1, None),
        ("failure", 1, None, 3.0, 2, "ArithmeticError: no"),
        ("generation", None, None, 3.0, 2, "0 is whole"),
        ("best", 2, 2.0, 2.0, 3, None),
        ("generation", None, None, 2.0, 4, "1 is whole"),
        ("end", None, None, 2.0, 4, "done"),
    ]
    assert {(got["study"], got["total"]) for got in receiver.requests} == {("s", 4)}
    assert receiver.requests[3]["text"] == "s: new best 2 (trial 2); 3 of 4 trials"
    assert receiver.headers[0]["path"] == f"/hook/{SECRET}"


def test_the_end_counts_the_trials_that_were_no_event(receiver):
    told(receiver.url, objectives=(3.0, 2.0, 2.5), events=["end"])
    assert [(got["finished"], got["total"], got["best"]) for got in receiver.requests] == [
        (3, 4, 2.0)
    ]


def test_only_the_wanted_events_are_sent(receiver):
    told(receiver.url, events=["failure", "end"])
    assert [got["event"] for got in receiver.requests] == ["failure", "end"]


def test_a_search_that_goes_on_knows_its_generations_and_its_best(receiver):
    notifier = Notifier(NotifyConfig([receiver.url]), "s")
    with notifier.send_end():
        watch = notifier.make_callback(
            size=2,
            total=4,
            maximize=True,
            earlier=[trial(0, 5.0), trial(1, 1.0), trial(2, 4.0)],
        )
        watch.on_end(trial(3, 3.0), 4)
    assert [(got["event"], got["best"], got["reason"]) for got in receiver.requests] == [
        ("generation", 5.0, "1 is whole"),
        ("end", 5.0, "done"),
    ]


def test_searches_side_by_side_are_counted_together(receiver):
    notifier = Notifier(NotifyConfig([receiver.url]), "s")
    with notifier.send_end():
        notifier.reset()
        a, b = (notifier.make_callback(size=2, total=5, phase=phase) for phase in "ab")
        a.on_end(trial(0, 1.0), 1)
        b.on_end(replace(trial(1, 3.0), index=0), 1)
        b.on_end(replace(trial(2, 0.5), index=1), 2)
    assert [
        (got["event"], got["phase"], got["best"], got["finished"], got["total"])
        for got in receiver.requests
    ] == [
        ("best", "a", 1.0, 1, 10),
        ("best", "b", 0.5, 3, 10),
        ("generation", "b", 0.5, 3, 10),
        ("end", None, 0.5, 3, 10),
    ]
    assert receiver.requests[1]["text"] == "s: new best of b 0.5 (trial 2); 3 of 10 trials"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "stopped by the user"),
        (UserError("got a full disk\n  expected: space"), "an error: got a full disk"),
        (ValueError("odd"), "an error: ValueError: odd"),
    ],
)
def test_the_end_says_how_it_came(receiver, error, said):
    with pytest.raises(type(error)), Notifier(NotifyConfig([receiver.url]), "s").send_end():
        raise error
    assert [(got["event"], got["reason"]) for got in receiver.requests] == [("end", said)]


@pytest.mark.parametrize("receiver", [None], indirect=True)
def test_a_receiver_that_never_answers_holds_up_nothing(receiver):
    notifier = Notifier(NotifyConfig([receiver.url]), "s", timeout=60.0)
    watch = notifier.make_callback(size=2, total=1000)
    watch.on_end(trial(0, 1.0), 1)
    assert receiver.arrived.wait(30)
    for number in range(1, 1000):  # far more messages than may wait
        watch.on_end(trial(number, None), number + 1)
    assert receiver.requests == []
    notifier._timeout = 0.1
    notifier.close()
    assert receiver.requests == []


@pytest.mark.parametrize("receiver", [500], indirect=True)
def test_a_receiver_that_fails_is_given_up_once_and_the_others_are_not(receiver, capsys):
    listening = Receiver(200)
    dead = f"http://user:{SECRET}@127.0.0.1:{closed_port()}/{SECRET}"
    told(dead, receiver.url, listening.url)
    listening.close()
    assert len(listening.requests) == 6
    assert len(receiver.requests) == 3
    lines = sorted(capsys.readouterr().err.splitlines())
    assert lines == [
        f"notify: http://127.0.0.1/*** failed 3 times in a row ({reason}); it gets no more messages"
        for reason in ("HTTP 500", "no connection")
    ]


def test_a_login_in_the_url_becomes_a_header(receiver):
    told(f"http://me:p%40ss@{receiver.host}/x")
    assert receiver.headers[0]["Authorization"] == "Basic bWU6cEBzcw=="


def test_apprise_sends_to_its_own_kinds_of_receiver(receiver, caplog, capsys):
    pytest.importorskip("apprise")
    told(f"json://user:{SECRET}@{receiver.host}/x", events=["end"])
    assert [(got["title"], got["message"]) for got in receiver.requests] == [
        ("synaptune end", "s: end: done; 4 of 4 trials, best 2")
    ]
    told(f"json://user:{SECRET}@127.0.0.1:{closed_port()}/{SECRET}")
    shown = capsys.readouterr().err + caplog.text
    assert "json://*** failed 3 times in a row (no connection)" in shown
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("url", "shown"),
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
def test_a_masked_url_shows_no_secret(url, shown):
    assert mask_url(url) == shown


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
def test_a_url_that_cannot_be_is_refused_without_its_secret(url):
    with pytest.raises(UserError, match="to do") as caught:
        make_receivers(NotifyConfig([url]))
    assert SECRET not in str(caught.value)


def test_an_unknown_event_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=", ".join(EVENTS)):
        make_receivers(NotifyConfig(events=["begin"]))


@pytest.mark.parametrize("url", [f"slack://{SECRET}/b/c", f"https://example.org/{SECRET}"])
def test_without_apprise_the_message_says_what_to_install(monkeypatch, url):
    monkeypatch.setitem(sys.modules, "apprise", None)
    with pytest.raises(UserError, match=r"pip install 'synaptune\[notify\]'") as caught:
        make_receivers(NotifyConfig([url]))
    assert SECRET not in str(caught.value)


def test_a_webhook_gets_the_event_and_nothing_else_at_its_own_path_and_query(receiver):
    told(f"{receiver.url}%2Fx?sig=a%2Bb&sig=c&flag", objectives=(3.0,), events=["best"])
    assert set(receiver.requests[0]) == {"text", *(entry.name for entry in fields(Event))}
    assert receiver.headers[0]["path"] == f"/hook/{SECRET}%2Fx?sig=a%2Bb&sig=c&flag"
    assert receiver.headers[0]["User-Agent"] == "synaptune"


def test_no_line_of_a_log_shows_a_url(receiver, caplog):
    caplog.set_level(logging.DEBUG)
    told(receiver.url, f"http://127.0.0.1:{closed_port()}/{SECRET}", f"json://{SECRET}:1/")
    assert SECRET not in caplog.text


def test_an_event_reads_as_one_line():
    assert (
        Event("s", "failure", 3, None, 1.5, 2, reason="ValueError: x").to_text()
        == "s: failed trial (trial 2): ValueError: x; 3 trials, best 1.5"
    )


def test_a_sweep_tells_its_end_and_its_secret_is_in_no_file(receiver, tmp_path, monkeypatch):
    monkeypatch.setenv("HOOK", receiver.url)
    words = [
        "hydra/sweeper=random",
        "hydra.sweeper.optim.budget=2",
        "x=interval(0,10)",
        "+notify.urls=['${oc.env:HOOK}']",
        "seconds=0.2",
    ]
    log = tmp_path / "log"
    process = processes.start([str(APP), "-m", *words, f"log={log}"], tmp_path)
    while not log.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert [(got["event"], got["reason"]) for got in receiver.requests] == [
        ("best", None),
        ("end", "stopped by the user"),
    ]
    assert {got["study"] for got in receiver.requests} == {"app-random"}
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and SECRET.encode() in path.read_bytes()
    ]


def test_a_protocol_tells_the_mistake_it_ended_with(receiver, tmp_path):
    words = ["scale=smoke", "study.resume=must", f"notify.urls=['{receiver.url}']"]
    ended = processes.run(["-m", "synaptune.cli.main", "phase1", *words], tmp_path)
    assert ended.returncode == 2
    (got,) = receiver.requests
    assert (got["study"], got["event"]) == ("phase1", "end")
    assert got["reason"].startswith("an error: got study.resume=must, but no study phase1")


def test_a_run_logs_no_receiver(tmp_path, monkeypatch):
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
    ):  # its service writes the file, and may be late
        time.sleep(0.1)
        logged = b"".join(path.read_bytes() for path in tmp_path.rglob("*.wandb"))
    assert b"model.layers" in logged
    assert SECRET.encode() not in logged
