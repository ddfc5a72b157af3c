"""Near names for error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """The known names closest to `name`, comma-separated; `none` when nothing is alike.

    Dotted names are compared by their last part as well, so a right name in a wrong group is found.
    """
    names = list(known)
    tail = name.rsplit(".", 1)[-1]
    by_tail = [entry for entry in names if entry.rsplit(".", 1)[-1] == tail]
    alike = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    ordered = list(dict.fromkeys(by_tail + alike))[:count]
    return ", ".join(ordered) if ordered else "none"
