"""Dimensions of the search space from Hydra's sweep syntax.

The `parametrization` of Hydra's Nevergrad plugin is accepted too.

    name=interval(10,100)   name=tag(log, interval(10,100))   name=int(interval(4,16))
    name=choice(a,b,c)      name=a,b,c                        name=range(1,9)   name=range(0,1,0.25)

    parametrization:
      name: [a, b, c]                             # choices
      name: {lower: 4, upper: 16, integer: true}  # a range
      name: {init: 0.02, step: 2.0, log: true}    # a range of UNBOUNDED_STEPS to each side

A choice with weights is written as

    `+hydra.sweeper.parametrization={name: {choices: [a, b, c], weights: [1, 1, 2]}}`

An interval without a tag keeps the declared scale of a parameter; the tags `log`, `lin` and `int`
override it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
)

from synaptune.core.errors import user_error
from synaptune.search.space.space import Dimension, make_choices
from synaptune.search.space.values import find_choice

TAGS = ("log", "lin", "int")
RANGE_KEYS = ("init", "lower", "upper", "step", "log", "integer")
CHOICE_KEYS = ("init", "choices", "weights")
UNBOUNDED_STEPS = 10  # from init to an end that is not given; chosen: a factor of 1000 for step 2


def parse_sweep(
    override: Override, declared: Dimension | None, start: Any, *, longest_range: float = math.inf
) -> Dimension:
    """Return the dimension that a sweep override describes.

    Args:
        override: the parsed override.
        declared: the declared dimension of the parameter; None if there is none.
        start: the configured value.
        longest_range: number of values up to which `range(...)` is a range of integers; a longer
            one is a list of choices.

    Raises:
        UserError: the sweep is not valid.
    """
    name, sweep = override.get_key_element(), override.value()
    if isinstance(sweep, IntervalSweep):
        return _parse_interval(name, sweep, declared, start)
    if isinstance(sweep, RangeSweep):
        return _parse_range(name, sweep, start, longest_range)
    if override.is_choice_sweep():
        # The order of the list: a sweep_iterator of shuffle(...) has another one each time.
        listed = sweep.list if isinstance(sweep, ChoiceSweep) else list(override.sweep_iterator())
        return make_choices(name, map(Override._convert_value, listed), start)
    raise user_error(
        got=override.input_line or name,
        expected="interval, choice, range or a,b,c",
        do="correct the sweep",
    )


def parse_parametrization(name: str, entry: Any, start: Any) -> Dimension:
    """Return the dimension that a mapping or a list in `hydra.sweeper.parametrization` describes.

    Args:
        name: name of the parameter.
        entry: a list of choices, {init, choices, weights} or {init, lower, upper, step, log,
            integer}. An end that is not given lies UNBOUNDED_STEPS steps from init; with both ends
            the step has no effect.
        start: the configured value.

    Raises:
        UserError: the entry is not valid.
    """
    if not isinstance(entry, Mapping):
        return make_choices(name, entry, start)
    if "choices" in entry:
        return _parse_weighted(name, entry, start)
    return _parse_bounds(name, entry, start)


def _parse_bounds(name: str, entry: Mapping[Any, Any], start: Any) -> Dimension:
    init = entry.get("init", start)
    low, high, step = (entry.get(key) for key in ("lower", "upper", "step"))
    log, integer = entry.get("log", False), entry.get("integer", False)
    is_valid = (
        all(key in RANGE_KEYS for key in entry)
        and all(value is None or _to_number(value) is not None for value in (init, low, high, step))
        and isinstance(log, bool)
        and isinstance(integer, bool)
    )
    if is_valid and init is not None and None in (low, high):
        ends = _find_ends(float(init), step, log=log, integer=integer)
        low = ends[0] if low is None else low
        high = ends[1] if high is None else high
    if is_valid and "init" in entry and init is not None and low is not None and high is not None:
        is_valid = low <= init <= high
    if not is_valid or low is None or high is None:
        raise user_error(
            got=f"parametrization {name}: {dict(entry)}"
            + ("" if "init" in entry else f", where the value is {start!r}"),
            expected="numbers for lower, upper and the start (init between them, else the "
            "configured value); without both ends a start and a step (above 1 with log, else "
            "above 0); true or false for log and integer; no other keys than "
            f"{', '.join(RANGE_KEYS)}",
            do="correct the entry",
        )
    scale = "log" if log else "lin"
    return Dimension(name, scale, low, high, integer=integer, start=init)


def _find_ends(
    init: float, step: float | None, *, log: bool, integer: bool
) -> tuple[float | None, float | None]:
    """Return the values UNBOUNDED_STEPS steps below and above init; None where there are none.

    The default step is that of Nevergrad: a factor of 2 on a log scale, else 1.
    """
    if step is None:
        step = 2.0 if log else 1.0
    if step <= (1.0 if log else 0.0) or (log and init <= 0.0):
        return None, None
    try:
        reach = step**UNBOUNDED_STEPS if log else step * UNBOUNDED_STEPS
        low, high = (init / reach, init * reach) if log else (init - reach, init + reach)
        if integer:
            low, high = max(math.floor(low), 1) if log else math.floor(low), math.ceil(high)
    except OverflowError:
        return None, None
    return low, high


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


def _parse_range(name: str, sweep: RangeSweep, start: Any, longest: float) -> Dimension:
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
    if 1 < len(values) <= longest and isinstance(values[0], int) and sweep.step == 1:
        return Dimension(
            name,
            "log" if "log" in tags else "lin",
            values[0],
            values[-1],
            integer=True,
            start=_to_number(start),
        )
    return make_choices(name, values, start)


def _parse_weighted(name: str, entry: Mapping[Any, Any], start: Any) -> Dimension:
    choices, weights = entry["choices"], entry.get("weights") or ()
    listed = all(
        isinstance(values, Sequence) and not isinstance(values, str)
        for values in (choices, weights)
    )
    numbers = listed and all(_to_number(weight) is not None for weight in weights)
    unknown = [str(key) for key in entry if key not in CHOICE_KEYS]
    if (
        unknown
        or not numbers
        or ("init" in entry and find_choice(list(choices), entry["init"]) is None)
    ):
        raise user_error(
            got=f"parametrization {name}: {dict(entry)}",
            expected="choices: a list of values, weights: a list of as many numbers (or none), "
            "init: one of the choices",
            do="correct the entry",
        )
    return make_choices(name, choices, entry.get("init", start), weights)


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
