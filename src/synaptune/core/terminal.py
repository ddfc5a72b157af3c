"""Output to a terminal, a file or no stream at all."""

from __future__ import annotations

import io
import sys
from typing import Any


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
