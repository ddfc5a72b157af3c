"""User errors: what was got, what was expected and what to do, printed without a traceback."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable

EXIT_USER_ERROR, EXIT_INTERRUPTED, EXIT_BROKEN_PIPE = 2, 130, 141
# A file-size limit raises EFBIG and a quota raises EDQUOT; the remedy is that of a full disk.
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
NOT_WRITABLE = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOTDIR,
        errno.EEXIST,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
    }
)


class UserError(Exception):
    """An error in the input, the configuration or the environment that the user can correct."""


def user_error(*, got: str, expected: str, do: str) -> UserError:
    """Return a UserError in the standard form: what was got, what was expected, what to do."""
    return UserError(f"got {got}\n  expected: {expected}\n  to do: {do}")


def explain_disk_error(error: OSError, do: str) -> UserError | None:
    """Return the UserError for a full disk or a path that is refused; None for other errors."""
    if error.errno not in NO_SPACE | NOT_WRITABLE:
        return None
    location = f" ({error.filename})" if error.filename else ""
    is_full = error.errno in NO_SPACE
    expected = "a disk with free space" if is_full else "a path that can be read and written"
    return user_error(got=f"{error.strerror}{location}", expected=expected, do=do)


def is_memory_error(error: BaseException) -> bool:
    """Return whether a device or the CPU has too little memory; torch need not be imported."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    texts = ("out of memory", "allocate memory", "size calculation overflowed")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def find_nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return the known names closest to `name`.

    The last part of dotted names is compared as well: a correct name in a wrong group matches.
    """
    names = list(known)
    tail = name.rsplit(".", 1)[-1]
    by_tail = [entry for entry in names if entry.rsplit(".", 1)[-1] == tail]
    by_spelling = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    return list(dict.fromkeys(by_tail + by_spelling))[:count]


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ` (closest: a, b)` with the known names closest to `name`, or "" without any."""
    nearest = find_nearest(name, known)
    return f" (closest: {', '.join(nearest)})" if nearest else ""


def flush_output() -> None:
    """Write what standard output still holds.

    Raises:
        BrokenPipeError: nobody reads it; `discard_output` then avoids a message of the interpreter.
    """
    if sys.stdout is not None:  # a service has none
        sys.stdout.flush()


def discard_output() -> None:
    """Discard standard output from now on: its reader, such as `head`, has seen enough."""
    if sys.stdout is not None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run_command(command: Callable[[], object], *, disk: str, interrupted: str = "") -> int:
    """Run a command and return its exit code: 2 after a user's mistake, 130 after Ctrl-C.

    Args:
        command: what to run.
        disk: what to do about a full disk.
        interrupted: what to say after Ctrl-C.
    """
    try:
        command()
        flush_output()
        return 0
    except BrokenPipeError:
        discard_output()
        return 0
    except (UserError, OSError) as error:
        message = explain_disk_error(error, disk) if isinstance(error, OSError) else error
        if message is None:
            raise
        print(message, file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"\ninterrupted{interrupted}", file=sys.stderr)
        return EXIT_INTERRUPTED
