"""Errors that a user can cause: one line of what was got, what was expected, what to do; shown without a traceback."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

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
