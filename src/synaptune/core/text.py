"""What a report calls a parameter, and a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
