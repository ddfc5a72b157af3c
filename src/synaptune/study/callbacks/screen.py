"""A picture at the bottom of a terminal; printed text scrolls above it.

Only one thread writes to the terminal. The text that other threads print goes into a queue, which a
signal handler can use as well. A thread that Ctrl-C interrupts therefore never holds a lock.
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

# Longest and shortest time between two drawings [s]; chosen: the table shows ages in seconds, and a
# drawing of 4 ms takes at most 2 % of a core.
REDRAW_SECONDS, MIN_REDRAW_SECONDS = 1.0, 0.2
_CLOSE_TIMEOUT = 5.0  # longest wait for the last drawing [s]


class Screen:
    """A picture on a terminal until `close`.

    The text that is written to sys.stdout and sys.stderr appears above it.
    """

    def __init__(self, render: Callable[[], RenderableType], console: Console) -> None:
        """Redirect the standard streams and start the drawing thread.

        Args:
            render: returns the picture; the drawing thread calls it at every event and once a
                second.
            console: console on a terminal.
        """
        self._render, self._console = render, console
        self._queue: SimpleQueue[str | None] = SimpleQueue()  # text to print; None: draw again
        self._closing = threading.Event()
        self._failure: Exception | None = None
        self._redirected = [
            (name, stream, _RedirectedStream(stream, self._queue))
            for name in ("stdout", "stderr")
            if is_terminal(stream := getattr(sys, name))
        ]
        for name, _, redirected in self._redirected:
            setattr(sys, name, redirected)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def redraw(self) -> None:
        """Draw again soon; raises the exception of a drawing that failed."""
        if self._failure is not None:
            raise self._failure
        self._queue.put(None)

    def close(self) -> None:
        """Draw a last time and restore the streams; the picture stays on the terminal."""
        self._closing.set()
        self._queue.put(None)
        try:
            self._thread.join(_CLOSE_TIMEOUT)
        finally:
            for name, stream, redirected in self._redirected:
                redirected.active = False
                if getattr(sys, name) is redirected:
                    setattr(sys, name, stream)
            self._redirected = []
            # Text from after the end of the drawing thread.
            sys.stdout.write(_end_line(self._collect_text(0.0)))

    def _run(self) -> None:
        try:
            self._draw()
        except Exception as error:  # `redraw` raises it in the thread of the search
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
        self._console.show_cursor(True)  # a killed search would leave the terminal without it
        text = ""
        try:
            while not self._closing.is_set():
                text = self._print(text + self._collect_text(REDRAW_SECONDS))
                live.refresh()
                self._closing.wait(MIN_REDRAW_SECONDS)
        finally:
            self._print(_end_line(text + self._collect_text(0.0)))
            live.stop()

    def _collect_text(self, timeout: float) -> str:
        """Return the text in the queue; wait for the first entry at most `timeout` [s]."""
        texts, deadline = [], time.monotonic() + timeout
        while True:
            try:
                texts.append(self._queue.get(timeout=max(0.0, deadline - time.monotonic())) or "")
                deadline = 0.0
            except Empty:
                return "".join(texts)

    def _print(self, text: str) -> str:
        """Print the complete lines of a text; return the rest."""
        from rich.text import Text

        *lines, rest = text.split("\n")
        if lines:
            # A progress bar overwrites its line; only the last version is printed.
            last = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines]
            # The terminal wraps long lines, so that a path stays one word.
            separator = Text("\n", no_wrap=True, overflow="ignore")
            self._console.print(separator.join(map(Text.from_ansi, last)), crop=False)
        return rest


def _end_line(text: str) -> str:
    """Return a text with a newline at its end; an empty text stays empty."""
    return text if text.endswith("\n") or not text else text + "\n"


class _RedirectedStream:
    """A stream whose text goes to the drawing thread.

    In a forked child and after `Screen.close`, the text goes to the original stream.
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


def make_picture_console(stream: TextIO | None = None) -> Console | None:
    """Return a console that can show a picture; None for a file, a pipe or a dumb terminal.

    Args:
        stream: stream of the console; None means standard output.
    """
    file = sys.stdout if stream is None else stream
    if not is_terminal(file):
        return None
    from synaptune.core.console import make_console

    console = make_console(file)
    return console if console.is_terminal and not console.is_dumb_terminal else None
