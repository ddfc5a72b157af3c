"""The search space of a program: a mapping from names to ranges of the Python API."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from synaptune.core.errors import suggest, user_error
from synaptune.search.space.space import Dimension, Space, make_choices, make_space
from synaptune.search.space.values import to_plain

RANGE_KINDS = ("uniform", "log_uniform", "int", "categorical")


def read_search_space(search_space: Any) -> Space:
    """Return the space of a mapping from names to entries.

    An entry is ("uniform", low, high), ("log_uniform", low, high), ("int", low, high[, step]) or
    ("categorical", choices[, weights]). Numbers can be those of numpy.

    Raises:
        UserError: an entry is invalid.
    """
    is_named = isinstance(search_space, Mapping) and all(map(_is_name, search_space))
    if not is_named or not search_space:
        raise user_error(
            got=f"search_space={search_space!r}",
            expected="a dict from names to entries, at least one, such as"
            ' {"x": ("uniform", 0, 1)}; names'
            " have no lone surrogates and no character 0",
            do="correct it",
        )
    return make_space(_read_dimension(name, entry) for name, entry in search_space.items())


def restore_steps(space: Space, stored: Mapping[str, str]) -> Space:
    """Return the space as an earlier study stored it.

    Version 0.1.0 took an integer range with a step for a list of choices.

    Args:
        space: the space of this program.
        stored: the ranges of the study by name.
    """

    def restore(dimension: Dimension) -> Dimension:
        values = range(int(dimension.low), int(dimension.high) + 1, dimension.step)
        choices = Dimension(dimension.name, "categorical", choices=tuple(values))
        return choices if stored.get(dimension.name) == choices.describe() else dimension

    return replace(
        space,
        dimensions=tuple(
            restore(dimension) if dimension.step > 1 else dimension
            for dimension in space.dimensions
        ),
    )


def _is_name(name: Any) -> bool:
    # No database stores lone surrogates, PostgreSQL no character 0.
    return isinstance(name, str) and name != "" and not re.search("[\0\ud800-\udfff]", name)


def _read_dimension(name: str, entry: Any) -> Dimension:
    parts = tuple(entry) if isinstance(entry, Sequence) and not isinstance(entry, str) else ()
    match tuple(map(_read_part, parts)):
        case ("uniform", (int() | float()) as low, (int() | float()) as high):
            return Dimension(name, "lin", low, high)
        case ("log_uniform", (int() | float()) as low, (int() | float()) as high):
            return Dimension(name, "log", low, high)
        case ("int", int() as low, int() as high):
            return Dimension(name, "lin", low, high, integer=True)
        case ("int", int() as low, int() as high, int() as step) if step > 0:
            if low < high < low + step:
                return make_choices(name, [low])
            last = high - (high - low) % step
            return Dimension(name, "lin", low, last, integer=True, step=step)
        case ("categorical", list() as choices):
            return make_choices(name, choices)
        case ("categorical", list() as choices, list() as weights) if all(
            isinstance(weight, int | float) for weight in weights
        ):
            return make_choices(name, choices, weights=weights)
    kind = str(parts[0]) if parts else ""
    raise user_error(
        got=f"search_space {name}: {entry!r}",
        expected='("uniform", low, high), ("log_uniform", low, high), ("int", low, high[, step]) '
        'or ("categorical", [...][, weights])'
        + ("" if kind in RANGE_KINDS else suggest(kind, RANGE_KINDS)),
        do="correct the entry",
    )


def _read_part(part: Any) -> Any:
    """Return a number as that of Python, and a collection as a list of what it holds."""
    if isinstance(part, list | tuple | range) or getattr(part, "shape", ()):
        return list(part)
    try:
        return to_plain(part)
    except TypeError:
        return part
