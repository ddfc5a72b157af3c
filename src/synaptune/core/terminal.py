"""Output to a terminal, a file or no stream at all."""

from __future__ import annotations

import io
import signal
import sys
import threading
from typing import Any

_FINALIZER_TIME = 0.05  # after which the interpreter has left a finalizer [s]


def is_terminal(stream: Any) -> bool:
    """Return whether a stream is a terminal; False for None and for an object that only writes."""
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):  # ValueError: it is closed
        return False


def escape_unknown_characters() -> None:
    """Let the standard streams escape the characters that their encoding lacks (LC_ALL=C)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def repeat_lost_interrupts() -> None:
    """Repeat Ctrl-C that arrives inside a finalizer, where Python ignores every exception.

    To be called in the main thread.
    """
    main_thread = threading.get_ident()

    def handle(ignored: sys.UnraisableHookArgs) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            arguments = (main_thread, signal.SIGINT)
            threading.Timer(_FINALIZER_TIME, signal.pthread_kill, arguments).start()
        else:
            sys.__unraisablehook__(ignored)

    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = handle


def print_line(text: str, stream: Any = None) -> None:
    """Print a line whatever the stream is; a program that searches must not end by its output.

    Args:
        text: the line; characters that the stream cannot encode are escaped.
        stream: the stream; None means standard output, which may be missing.
    """
    stream = sys.stdout if stream is None else stream
    try:
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:
            print(text.encode("ascii", "backslashreplace").decode(), file=stream, flush=True)
    except (OSError, ValueError, AttributeError):  # closed, lost, or it has no flush
        return
