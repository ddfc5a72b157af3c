"""Errors that a user can cause: one line of what was got, what was expected, what to do; shown without a traceback."""

from __future__ import annotations

import difflib
import errno
import os
import sys
from collections.abc import Callable, Iterable

EXIT_USER_ERROR, EXIT_INTERRUPTED = 2, 130
# EFBIG is what a file-size limit gives, EDQUOT a quota: to the person at the keyboard all three are "no room".
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
REFUSED = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
)


class UserError(Exception):
    """A mistake in the input, the configuration or the environment, worded for the person who can mend it."""


def user_error(*, got: str, expected: str, do: str) -> UserError:
    """The one form of a user error: what was got, what was expected, what to do."""
    return UserError(f"got {got}\n  expected: {expected}\n  to do: {do}")


def explain_disk_error(error: OSError, do: str) -> UserError | None:
    """The user error for a full disk, or a place that cannot be written; None for any other error."""
    if error.errno not in NO_SPACE | REFUSED:
        return None
    where = f" ({error.filename})" if error.filename else ""
    return user_error(
        got=f"{error.strerror}{where}", expected="a folder with space that can be written", do=do
    )


def find_nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The known names closest to `name`, comma-separated; `none` when nothing is alike.

    Dotted names are compared by their last part as well, so a right name in a wrong group is found.
    """
    names = list(known)
    tail = name.rsplit(".", 1)[-1]
    by_tail = [entry for entry in names if entry.rsplit(".", 1)[-1] == tail]
    alike = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    ordered = list(dict.fromkeys(by_tail + alike))[:count]
    return ", ".join(ordered) if ordered else "none"


def run_command(command: Callable[[], object], *, disk: str, interrupted: str = "") -> int:
    """Run a command and return its exit code: 2 after a user's mistake, 130 after Ctrl-C.

    Args:
        command: what to run.
        disk: what to do about a full disk.
        interrupted: what to say after Ctrl-C.
    """
    try:
        command()
        sys.stdout.flush()
        return 0
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
