"""Names, numbers, times and reasons as short text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# A time's unit, its seconds, and the seconds from which it is used.
_UNITS = (
    ("days", 86_400.0, 172_800.0),
    ("h", 3600.0, 5400.0),
    ("min", 60.0, 90.0),
    ("s", 1.0, 0.0),
)


def make_labels(names: Sequence[str]) -> Mapping[str, str]:
    """What to call each parameter: as many of its name's last parts as tell it from the others."""
    parts = [name.split(".") for name in names]
    endings: dict[tuple[str, ...], int] = {}
    for own in parts:
        for kept in range(1, len(own) + 1):
            endings[tuple(own[-kept:])] = endings.get(tuple(own[-kept:]), 0) + 1
    found: dict[str, str] = {}
    for name, own in zip(names, parts, strict=True):
        kept = next(
            (kept for kept in range(1, len(own)) if endings[tuple(own[-kept:])] == 1), len(own)
        )
        found[name] = ".".join(own[-kept:])
    return found


def make_label(name: str, names: Sequence[str]) -> str:
    """What to call one of the parameters; a name that is not among them is called by its last part."""
    return make_labels(names).get(name, name.rsplit(".", 1)[-1])


def format_duration(seconds: float) -> str:
    """A time in the unit that suits it: `8.2 s`, `6.7 min`, `2.6 h`, `3.5 days`."""
    unit, size = next((unit, size) for unit, size, least in _UNITS if seconds >= least or not least)
    shown = f"{seconds / size:.1f}"
    return f"{shown.removesuffix('.0') if len(shown) < 4 else f'{seconds / size:,.0f}'} {unit}"


def format_parameter(value: Any) -> str:
    """Return a parameter's value as text, a number with four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def get_first_line(reason: BaseException | str | None) -> str:
    """Return the first line of an error or a reason.

    An error without a message gives its type, no reason gives `unknown`.
    """
    lines = str(reason or "").strip().splitlines()
    if lines:
        return lines[0]
    return type(reason).__name__ if isinstance(reason, BaseException) else "unknown"


def get_override_key(override: str) -> str:
    """Return the name in an override of Hydra: `a.b` of `+a.b=1` and of `~a.b`."""
    return override.lstrip("+~").split("=", 1)[0]
