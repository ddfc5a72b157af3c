"""A picture kept at the bottom of a terminal while everything that is printed scrolls by above it.

One thread alone writes to the terminal: what the rest of the process prints waits in a queue that
even a signal handler may use,
so that no lock is ever held by a thread that a Ctrl-C interrupts.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TextIO

from synaptune.core.terminal import is_terminal

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

REDRAW_SECONDS = 1.0  # between two drawings when nothing happens [s]; chosen: ages tick in seconds
MIN_REDRAW_SECONDS = 0.2  # least time between two drawings [s]; chosen: 2 % of a core at 4 ms each
_CLOSE_TIMEOUT = 5.0  # seconds for a terminal to take the last picture


class Screen:
    """A picture on a terminal, from now until `close`.

    What sys.stdout and sys.stderr are given meanwhile is printed above it.
    """

    def __init__(self, render: Callable[[], RenderableType], console: Console) -> None:
        """render: called in the drawing thread, at every event and once a second.

        Console: a terminal.
        """
        self._render, self._console = render, console
        self._queue: SimpleQueue[str | None] = SimpleQueue()  # text to print; null: draw again
        self._closing = threading.Event()
        self._failure: Exception | None = None
        self._redirected = [
            (name, stream, _RedirectedStream(stream, self._queue))
            for name in ("stdout", "stderr")
            if is_terminal(stream := getattr(sys, name))
        ]
        for name, _, aside in self._redirected:
            setattr(sys, name, aside)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def redraw(self) -> None:
        """Draw again soon; raises what broke the drawing."""
        if self._failure is not None:
            raise self._failure
        self._queue.put(None)

    def close(self) -> None:
        """Draw a last time, leave the picture, and give the streams back."""
        self._closing.set()
        self._queue.put(None)
        try:
            self._thread.join(_CLOSE_TIMEOUT)
        finally:
            for name, stream, aside in self._redirected:
                aside.active = False
                if getattr(sys, name) is aside:
                    setattr(sys, name, stream)
            self._redirected = []
            sys.stdout.write(self._take_rest())

    def _take_rest(self) -> str:
        """What was printed after the drawing had ended, or broken."""
        text = self._collect_text(0.0)
        return text if text.endswith("\n") or not text else text + "\n"

    def _run(self) -> None:
        try:
            self._draw()
        except (
            Exception
        ) as error:  # of the terminal or the picture: kept for the thread that runs the search
            self._failure = error

    def _draw(self) -> None:
        from rich.live import Live

        live = Live(
            console=self._console,
            get_renderable=self._render,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        live.start(refresh=True)
        self._console.show_cursor(
            True
        )  # a search is often killed, and would leave the terminal without it
        text = ""
        try:
            while not self._closing.is_set():
                text = self._print(text + self._collect_text(REDRAW_SECONDS))
                live.refresh()
                self._closing.wait(MIN_REDRAW_SECONDS)
        finally:
            if text := text + self._take_rest():
                self._print(text if text.endswith("\n") else text + "\n")
            live.stop()

    def _collect_text(self, timeout: float) -> str:
        """The text that came within a patience [s], or at the first event."""
        texts, until = [], time.monotonic() + timeout
        while True:
            try:
                texts.append(self._queue.get(timeout=max(0.0, until - time.monotonic())) or "")
                until = 0.0
            except Empty:
                return "".join(texts)

    def _print(self, text: str) -> str:
        """Print whole lines; returns the rest."""
        from rich.text import Text

        lines = text.split("\n")
        # Of a line that was written over itself, as by a progress bar, the last version counts.
        whole = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines[:-1]]
        if whole:
            printed = Text("\n").join(Text.from_ansi(line) for line in whole)
            printed.no_wrap, printed.overflow = (
                True,
                "ignore",
            )  # the terminal wraps it, so that a path stays one word
            self._console.print(printed, crop=False)
        return lines[-1]


class _RedirectedStream:
    """A stream whose text goes to the drawing thread.

    In a forked child, and when the picture is done, to the real stream.
    """

    def __init__(self, stream: TextIO, queue: SimpleQueue[str | None]) -> None:
        self._stream, self._queue, self._process = stream, queue, os.getpid()
        self.active = True

    def write(self, text: str) -> int:
        if not self.active or os.getpid() != self._process:
            return self._stream.write(text)
        self._queue.put(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if not self.active or os.getpid() != self._process:
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_console(stream: TextIO | None = None) -> Console | None:
    """A console on a stream (null: standard output) that can hold a picture.

    Null for a file, a pipe or a dumb terminal.
    """
    chosen = sys.stdout if stream is None else stream
    if not is_terminal(chosen):
        return None
    from rich.console import Console

    console = Console(file=chosen)
    return console if console.is_terminal and not console.is_dumb_terminal else None
