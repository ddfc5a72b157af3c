"""The console of rich on which tables and pictures are printed."""

from __future__ import annotations

import os
from typing import IO

from rich.console import Console

_UNKNOWN_WIDTH = 80  # of a terminal that does not say how wide it is; the width of a VT100


class OutputConsole(Console):
    """A console that leaves it to its program what to do when nobody reads its output."""

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError; rich ends the program with exit code 1."""
        raise BrokenPipeError


def make_console(file: IO[str] | None = None) -> Console:
    """Return the console of a stream; None means standard output.

    Some shells of editors and of services set COLUMNS=0, with which rich prints nothing.
    """
    columns = os.environ.get("COLUMNS", "")
    is_unknown = columns.isdigit() and int(columns) == 0
    return OutputConsole(file=file, width=_UNKNOWN_WIDTH if is_unknown else None)
