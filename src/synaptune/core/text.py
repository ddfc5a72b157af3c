"""Names, numbers, times and reasons as short text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# (unit, its length [s], shortest duration that is written in it [s])
_UNITS = (
    ("days", 86_400.0, 172_800.0),
    ("h", 3600.0, 5400.0),
    ("min", 60.0, 90.0),
    ("s", 1.0, 0.0),
)
# [s] between two lines about the progress in a log file; chosen: two lines a minute
LINE_SECONDS = 30.0
_LONGEST_VALUE = 60  # [characters] a longer value is cut


def show_path(path: Path) -> str:
    """Return a path for a message: relative to the working folder if it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except (ValueError, OSError):  # elsewhere; OSError: the working folder was removed
        return str(path)


def make_labels(names: Sequence[str]) -> Mapping[str, str]:
    """Return the label of each parameter: the shortest ending of its name that is unique."""
    paths = [name.split(".") for name in names]
    counts: dict[tuple[str, ...], int] = {}
    for path in paths:
        for length in range(1, len(path) + 1):
            ending = tuple(path[-length:])
            counts[ending] = counts.get(ending, 0) + 1
    labels: dict[str, str] = {}
    for name, path in zip(names, paths, strict=True):
        unique = (length for length in range(1, len(path)) if counts[tuple(path[-length:])] == 1)
        labels[name] = ".".join(path[-next(unique, len(path)) :])
    return labels


def make_label(name: str, names: Sequence[str]) -> str:
    """Return the label of one parameter; the last part of `name` when it is not in `names`."""
    return make_labels(names).get(name, name.rsplit(".", 1)[-1])


def format_duration(seconds: float) -> str:
    """Format a duration in a suitable unit: `8.2 s`, `6.7 min`, `2.6 h`, `3.5 days`."""
    unit, size = next((unit, size) for unit, size, least in _UNITS if seconds >= least or not least)
    value = f"{seconds / size:.1f}"
    return f"{value.removesuffix('.0') if len(value) < 4 else f'{seconds / size:,.0f}'} {unit}"


def format_bytes(size: float) -> str:
    """Format a size in a suitable unit: `0 B`, `3.4 kB`, `171 MB`."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = 0
    while size >= 999.5 and power < len(units) - 1:
        size, power = size / 1000.0, power + 1
    return f"{size:.3g} {units[power]}"


def format_parameter(value: Any) -> str:
    """Return a parameter's value as a short text of one line.

    A float has four significant digits. A text with line breaks, control characters or spaces at
    its ends is quoted. A long text is cut in its middle.
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    is_plain = text.isprintable() and text == text.strip() != ""
    return _cut_text(text if is_plain else repr(value))


def format_choices(choices: Sequence[Any]) -> list[str]:
    """Return the texts of choices: quoted, or numbered, where two would read the same."""
    texts = list(map(format_parameter, choices))
    texts = [
        _cut_text(repr(choice)) if texts.count(text) > 1 else text
        for choice, text in zip(choices, texts, strict=True)
    ]
    return [
        f"{text} (choice {number})" if texts.count(text) > 1 else text
        for number, text in enumerate(texts, 1)
    ]


def _cut_text(text: str) -> str:
    half = _LONGEST_VALUE // 2
    return text if len(text) <= _LONGEST_VALUE else f"{text[:half]}…{text[-half + 1 :]}"


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
