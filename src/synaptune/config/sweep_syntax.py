"""Dimensions of the search space from Hydra's sweep syntax.

The `parametrization` of Hydra's Nevergrad plugin is accepted too.

    name=interval(10,100)   name=tag(log, interval(10,100))   name=int(interval(4,16))
    name=choice(a,b,c)      name=a,b,c                        name=range(1,9)   name=range(0,1,0.25)

A choice with weights is written as

    `+hydra.sweeper.parametrization={name: {choices: [a, b, c], weights: [1, 1, 2]}}`

An interval without a tag keeps the declared scale of a parameter; the tags `log`, `lin` and `int`
override it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
    Transformer,
)
from hydra.errors import HydraException

from synaptune.core.errors import user_error
from synaptune.core.text import get_first_line
from synaptune.search.space.space import Dimension
from synaptune.search.space.values import Value

TAGS = ("log", "lin", "int")
RANGE_KEYS = ("init", "lower", "upper", "log", "integer")
CHOICE_KEYS = ("init", "choices", "weights")


def parse_sweep(override: Override, declared: Dimension | None, start: Any) -> Dimension:
    """Return the dimension that a sweep override describes.

    Args:
        override: the parsed override.
        declared: the declared dimension of the parameter; None if there is none.
        start: the configured value.

    Raises:
        UserError: the sweep is not valid.
    """
    name, sweep = override.get_key_element(), override.value()
    if isinstance(sweep, IntervalSweep):
        return _parse_interval(name, sweep, declared, start)
    if isinstance(sweep, RangeSweep):
        return _parse_range(name, sweep, start)
    if isinstance(sweep, ChoiceSweep) or override.is_choice_sweep():
        return _make_categorical(name, list(override.sweep_iterator()), start)
    raise user_error(
        got=override.input_line or name,
        expected="interval, choice, range or a,b,c",
        do="correct the sweep",
    )


def parse_parametrization(
    name: str, entry: Any, declared: Dimension | None, start: Any
) -> Dimension:
    """Return the dimension that an entry of `hydra.sweeper.parametrization` describes.

    Args:
        name: name of the parameter.
        entry: sweep syntax as text, {init, lower, upper, log, integer} or {init, choices, weights}.
        declared: the declared dimension of the parameter; None if there is none.
        start: the configured value.

    Raises:
        UserError: the entry is not valid.
    """
    if not isinstance(entry, Mapping):
        return parse_sweep(_parse_sweep_text(name, entry), declared, start)
    return (
        _parse_weighted(name, entry, start)
        if "choices" in entry
        else _parse_bounds(name, entry, start)
    )


def format_value(value: Value) -> str:
    """Return a value as the text of an override; strings get no quotes."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)


def _parse_sweep_text(name: str, entry: Any) -> Override:
    reason = ""
    try:
        override = OverridesParser.create().parse_override(f"{name}={entry}")
        if override.is_sweep_override():
            return override
    except HydraException as error:
        reason = f" ({get_first_line(error)})"
    raise user_error(
        got=f"parametrization {name}: {entry}{reason}",
        expected="interval(..), choice(..) or range(..)",
        do="correct it, or give a fixed value as an override",
    )


def _parse_bounds(name: str, entry: Mapping[Any, Any], start: Any) -> Dimension:
    init = entry.get("init", start)
    known = all(key in RANGE_KEYS for key in entry) and all(
        isinstance(entry.get(key, False), bool) for key in ("log", "integer")
    )
    numbers = all(_to_number(entry.get(key)) is not None for key in ("lower", "upper")) and (
        init is None or _to_number(init) is not None
    )
    if not known or not numbers:
        raise user_error(
            got=f"parametrization {name}: {dict(entry)}"
            + ("" if "init" in entry else f", where the value is {start!r}"),
            expected="numbers for lower, upper and the start (init, else the configured value), "
            "true or false for log and integer, and no other keys than "
            f"{', '.join(RANGE_KEYS)} (one step size serves the whole unit box)",
            do="correct the entry",
        )
    scale = "log" if entry.get("log", False) else "lin"
    return Dimension(
        name,
        scale,
        entry["lower"],
        entry["upper"],
        integer=entry.get("integer", False),
        start=init,
    )


def _parse_interval(
    name: str, sweep: IntervalSweep, declared: Dimension | None, start: Any
) -> Dimension:
    tags = _check_tags(name, sweep.tags)
    assert sweep.start is not None
    assert sweep.end is not None
    if "log" in tags:
        scale = "log"
    elif "lin" in tags or declared is None or declared.scale == "categorical":
        scale = "lin"
    else:
        scale = declared.scale
    integer = "int" in tags or isinstance(sweep.start, int)
    if declared is not None:
        integer = integer or declared.integer
    elif isinstance(start, int) and not isinstance(start, bool):
        integer = integer or (float(sweep.start).is_integer() and float(sweep.end).is_integer())
    return Dimension(name, scale, sweep.start, sweep.end, integer=integer, start=_to_number(start))


def _parse_range(name: str, sweep: RangeSweep, start: Any) -> Dimension:
    tags = _check_tags(name, sweep.tags)
    try:
        values = list(sweep.range())
    except (ValueError, ArithmeticError) as error:  # a step of 0, or an end that is not a number
        got = f"{name}=range({sweep.start},{sweep.stop},{sweep.step})"
        raise user_error(
            got=f"{got}: {error}",
            expected="range(START,STOP[,STEP]) with a step other than 0",
            do="correct the range",
        ) from error
    if len(values) > 1 and isinstance(values[0], int) and sweep.step == 1:
        return Dimension(
            name,
            "log" if "log" in tags else "lin",
            values[0],
            values[-1],
            integer=True,
            start=_to_number(start),
        )
    return _make_categorical(name, values, start)


def _make_categorical(name: str, values: list[Any], start: Any) -> Dimension:
    choices: tuple[Value, ...] = tuple(
        value if isinstance(value, bool | int | float) else Transformer.str(value)
        for value in values
    )
    return Dimension(
        name, "categorical", choices=choices, start=start if start in choices else None
    )


def _parse_weighted(name: str, entry: Mapping[Any, Any], start: Any) -> Dimension:
    choices, weights = entry["choices"], entry.get("weights") or ()
    listed = all(
        isinstance(values, Sequence) and not isinstance(values, str)
        for values in (choices, weights)
    )
    numbers = listed and all(
        isinstance(weight, int | float) and not isinstance(weight, bool) for weight in weights
    )
    plain = listed and all(isinstance(value, bool | int | float | str) for value in choices)
    unknown = [str(key) for key in entry if key not in CHOICE_KEYS]
    if unknown or not plain or not numbers or ("init" in entry and entry["init"] not in choices):
        raise user_error(
            got=f"parametrization {name}: {dict(entry)}",
            expected="choices: a list of values, weights: a list of as many numbers (or none), "
            "init: one of the choices",
            do="correct the entry",
        )
    return replace(
        _make_categorical(name, list(choices), entry.get("init", start)),
        weights=tuple(float(weight) for weight in weights),
    )


def _check_tags(name: str, tags: set[str]) -> set[str]:
    if unknown := tags - set(TAGS):
        raise user_error(
            got=f"{name} with tag {', '.join(sorted(unknown))}",
            expected=f"tags of {', '.join(TAGS)}",
            do="correct the tag",
        )
    return tags


def _to_number(start: Any) -> float | None:
    return start if isinstance(start, int | float) and not isinstance(start, bool) else None
