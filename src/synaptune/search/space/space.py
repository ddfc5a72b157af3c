"""Search space: conversion between parameter values and unit coordinates.

Each searched parameter is one coordinate u in [0, 1]:

    lin          value = low + u (high - low)                                            (1)
    log          value = exp(ln low + u (ln high - ln low))                              (2)
    decay        (1) between the ends of -ln(1 - value)                                  (3)
    integer      (1) or (2) over [low - s/2, high + s/2], rounded to low + k s; s is 1   (4)
                 unless the dimension has a step
    categorical  value = the choice whose part of [0, 1] contains u; the parts are       (5)
                 equal, or proportional to the weights

A value with a bin is converted back to the middle of its bin. A float is rounded to six significant
digits, or more in a range that is narrow beside its numbers, so that the stored, the displayed and
the evaluated number are the same.
Source: chosen; on a linear scale (4) makes the outermost integers as likely as the others.
"""

from __future__ import annotations

import bisect
import fnmatch
import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from synaptune.core.errors import UserError, suggest, user_error
from synaptune.core.parameters import SCALES, Spec
from synaptune.search.space.values import (
    Value,
    copy_value,
    find_choice,
    find_value_fault,
    to_plain,
)

UnitPoint = tuple[float, ...]
# Of a float; a range narrow beside its numbers keeps as many more as tell MIN_STEPS values apart.
SIGNIFICANT_DIGITS = 6
MIN_STEPS = 10**4
_EXACT_INTEGERS = 2**53  # beyond, a float does not hold every integer
# Least share of a weighted choice: a search of some hundred evaluations would not draw a rarer one.
MIN_SHARE = 1e-3


@dataclass(frozen=True)
class Dimension:
    """One searched parameter: a range of numbers or a list of choices.

    Attributes:
        name: name of the parameter.
        scale: `lin`, `log` or `decay` for a range of numbers, `categorical` for choices.
        low: lower end of the range, included.
        high: upper end of the range, included.
        integer: whether the range contains integers only.
        choices: the choices of a categorical dimension.
        start: value at which the search starts; None means the middle, unless it is a choice.
        weights: weights of the choices, in any unit; empty means equal weights.
        step: distance of two integers; the range is a multiple of it.
        given: name of the dimension on whose value the choices depend; None if they do not.
        cases: by value of `given`, the choices that it allows, as pairs; a value without a case
            allows all. The choices of a case have equal parts of [0, 1].
    """

    name: str
    scale: Literal["lin", "log", "decay", "categorical"]
    low: float = 0.0
    high: float = 1.0
    integer: bool = False
    choices: tuple[Value, ...] = ()
    start: Value | None = None
    weights: tuple[float, ...] = ()
    step: int = 1
    given: str | None = None
    cases: tuple[tuple[Value, tuple[Value, ...]], ...] = ()

    def __post_init__(self) -> None:
        if fault := self._find_fault():
            raise user_error(
                got=f"{self.name}: {fault}",
                expected="low < high, both finite (positive on a log scale, below 1 on a decay "
                "scale), or at least one "
                "choice, with no weights or one for each choice, all positive and at least "
                f"{MIN_SHARE:g} of their sum",
                do="correct the range, or the choices",
            )

    def _find_fault(self) -> str | None:
        if self.scale == "categorical":
            return self._find_choice_fault()
        if self.weights:
            return f"weights {list(self.weights)} with a range of numbers"
        if not math.isfinite(self.high - self.low):
            return f"range {self.low:g} to {self.high:g}, not finite or too wide for a float"
        if self.low >= self.high:
            return f"low {format_number(self.low)} is not below high {format_number(self.high)}"
        if self.integer and (self.low != int(self.low) or self.high != int(self.high)):
            return f"integer range {format_number(self.low)} to {format_number(self.high)}"
        if self.integer and max(abs(self.low), abs(self.high)) > _EXACT_INTEGERS:
            return f"integers up to {format_number(self.high)}, beyond 2**53"
        if self.step != 1 and (fault := self._find_step_fault()):
            return fault
        if self.scale == "decay" and (self.integer or self.high >= 1.0):
            return f"decay range to {self.high:g}{' of integers' if self.integer else ''}"
        edge = self._get_edges()[0]
        return f"log range from {self.low:g}" if self.scale == "log" and edge <= 0 else None

    def _find_step_fault(self) -> str | None:
        if self.step < 1 or not self.integer or self.scale != "lin":
            return f"step {self.step} in a {self.scale} range; it needs integers on a linear scale"
        if (self.high - self.low) % self.step:
            return f"range {self.low:g} to {self.high:g}, no multiple of the step {self.step}"
        return None

    def _find_choice_fault(self) -> str | None:
        if not self.choices:
            return "no choices"
        for value, allowed in self.cases:
            unknown = [entry for entry in allowed if find_choice(self.choices, entry) is None]
            if unknown or not allowed:
                return f"case {value!r} with {unknown or 'no'} choices, which are not among all"
        if fault := next(filter(None, map(find_value_fault, self.choices)), None):
            return f"choices with {fault}, which cannot be stored"
        if self.weights and len(self.weights) != len(self.choices):
            return f"{len(self.weights)} weights for {len(self.choices)} choices"
        min_weight = MIN_SHARE * sum(self.weights)
        invalid = [
            weight
            for weight in self.weights
            if not (math.isfinite(min_weight) and 0.0 < weight >= min_weight)
        ]
        return f"weight {invalid[0]:g}" if invalid else None

    @functools.cached_property
    def _choice_edges(self) -> list[float]:
        """The edges 0, ..., 1 between the parts of the choices, eq. (5)."""
        if not self.weights:
            return [index / len(self.choices) for index in range(len(self.choices) + 1)]
        sums = [0.0, *itertools.accumulate(self.weights)]
        return [total / sums[-1] for total in sums]

    def _get_edges(self) -> tuple[float, float]:
        half = self.step / 2 if self.integer else 0.0
        return self.low - half, self.high + half

    @property
    def bins(self) -> int | None:
        """Number of values; None for a continuous range."""
        if self.scale == "categorical":
            return len(self.choices)
        return int(self.high - self.low) // self.step + 1 if self.integer else None

    def get_bin(self, unit: float) -> tuple[float, float]:
        """Return the ends of the bin in [0, 1] that contains a unit coordinate.

        The dimension must have bins.
        """
        if self.scale == "categorical":
            index = self.get_choice_index(unit)
            return self._choice_edges[index], self._choice_edges[index + 1]
        value = self.to_value(unit)
        lower, upper = self._get_edges()
        left, right = float(value) - self.step / 2, float(value) + self.step / 2
        return self._locate(left, lower, upper), self._locate(right, lower, upper)

    def _locate(self, number: float, lower: float, upper: float) -> float:
        """Return the coordinate of a number between two edges."""
        first, last = SCALES[self.scale][0](lower), SCALES[self.scale][0](upper)
        return (SCALES[self.scale][0](number) - first) / (last - first)

    def to_value(self, unit: float) -> Value:
        """Return the value at a unit coordinate, which is clipped to [0, 1]."""
        unit = min(max(float(unit), 0.0), 1.0)
        if self.scale == "categorical":
            return copy_value(self.choices[self.get_choice_index(unit)])
        number = self._interpolate(unit)
        if self.integer:
            first = self.low if self.step > 1 else 0.0
            nearest = first + self.step * math.floor((number - first) / self.step + 0.5)
            return int(min(max(nearest, self.low), self.high))  # eq. (4)
        return min(max(float(f"{number:.{self._digits}g}"), self.low), self.high)

    def get_choice_index(self, unit: float) -> int:
        """Return the index of the choice at a unit coordinate in [0, 1], eq. (5)."""
        if self.weights:
            return min(bisect.bisect_right(self._choice_edges, unit), len(self.choices)) - 1
        return min(int(unit * len(self.choices)), len(self.choices) - 1)

    def get_choice_unit(self, index: int) -> float:
        """Return the unit coordinate in the middle of the part of a choice."""
        return sum(self._choice_edges[index : index + 2]) / 2.0

    @property
    def _digits(self) -> int:
        """Significant digits that tell MIN_STEPS values of the range apart, at least the usual."""
        largest = max(abs(self.low), abs(self.high))
        width = self.high - self.low
        if self.scale == "decay":  # its steps are narrowest at the upper end
            width = (1.0 - self.high) * math.log((1.0 - self.low) / (1.0 - self.high))
        if largest > 1e300:  # the product below would be infinite
            return 17
        missing = math.log10(largest * MIN_STEPS / width)
        return min(max(SIGNIFICANT_DIGITS, math.ceil(missing) + 1), 17)

    def to_number(self, unit: float) -> float:
        """Return the unrounded number at a unit coordinate, which is clipped to [0, 1].

        This is the inverse of `to_unit` within the range. For an integer dimension it lies between
        the integers.
        """
        return min(max(self._interpolate(min(max(float(unit), 0.0), 1.0)), self.low), self.high)

    def _interpolate(self, unit: float) -> float:
        """Compute eq. (1), (2) or (3) between the edges."""
        to_scale, from_scale = SCALES[self.scale]
        first, last = map(to_scale, self._get_edges())
        return from_scale(first + unit * (last - first))

    def to_unit(self, value: Value) -> float:
        """Return the unit coordinate of a value, which is clipped to the range.

        Raises:
            UserError: the value is not one of the choices.
        """
        if self.scale == "categorical":
            index = find_choice(self.choices, value)
            if index is None:
                raise user_error(
                    got=f"{self.name}={value!r}",
                    expected=f"one of {list(self.choices)}",
                    do="correct the value",
                )
            return self.get_choice_unit(index)
        lower, upper = self._get_edges()
        return self._locate(min(max(float(value), self.low), self.high), lower, upper)

    def contains(self, value: Value) -> bool:
        """Return whether a value lies in the range or is one of the choices."""
        if self.scale == "categorical":
            return find_choice(self.choices, value) is not None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and self.low <= value <= self.high

    def make_grid(self, points: int) -> list[float]:
        """Return the unit coordinates of a grid.

        The grid holds all values of a categorical dimension, or of one with at most `points` bins.
        Otherwise it holds `points` evenly spaced coordinates, both ends included.
        """
        if self.scale == "categorical" or (self.bins is not None and self.bins <= points):
            if self.choices:
                return [self.get_choice_unit(index) for index in range(len(self.choices))]
            values = range(int(self.low), int(self.high) + 1, self.step)
            return [self.to_unit(value) for value in values]
        if points == 1:
            return [0.5]
        return [index / (points - 1) for index in range(points)]

    def get_case(self, value: Value) -> Dimension:
        """Return the dimension of the choices that a value of `given` allows."""
        index = find_choice([known for known, _ in self.cases], value)
        if index is None:
            return self
        return replace(self, choices=self.cases[index][1], weights=(), given=None, cases=())

    def get_start(self) -> float:
        """Return the unit coordinate at which a search starts."""
        if self.start is not None or (self.choices and self.contains(None)):
            return self.to_unit(self.start)
        return 0.5

    def describe(self) -> str:
        """Return the range in one line, e.g. `log [10, 100]`."""
        if self.scale == "categorical":
            weighted = f" weights {list(self.weights)}" if self.weights else ""
            cases = {value: list(allowed) for value, allowed in self.cases}
            depends = f" given {self.given} {cases}" if self.given else ""
            return f"choice {list(self.choices)}{weighted}{depends}"
        ends = f"[{format_number(self.low)}, {format_number(self.high)}]"
        step = f" step {self.step}" if self.step > 1 else ""
        return f"{self.scale}{' int' if self.integer else ''} {ends}{step}"


def format_number(number: float) -> str:
    """Return a number with six digits, or with all of them where six would change it."""
    short = f"{number:g}"
    if float(short) == number:
        return short
    is_exact = float(number).is_integer() and abs(number) <= _EXACT_INTEGERS
    return str(int(number)) if is_exact else repr(number)


def make_choices(
    name: str, choices: Iterable[Value], start: Value = None, weights: Iterable[float] = ()
) -> Dimension:
    """Return a categorical dimension.

    Args:
        name: name of the parameter.
        choices: any values of YAML; scalars and arrays of numpy become those of Python.
        start: value at which the search starts if it is one of the choices.
        weights: weights of the choices; empty means equal weights.

    Raises:
        UserError: a choice cannot be stored, or the weights do not fit.
    """
    try:
        plain = tuple(map(to_plain, choices))
    except TypeError as error:
        raise user_error(
            got=f"{name}: {error} as a choice",
            expected="values that YAML has: None, bool, int, float, str, list, dict",
            do="give names of the values, and look the values up in the objective",
        ) from error
    index = find_choice(plain, start)
    known = None if index is None else plain[index]
    return Dimension(
        name, "categorical", choices=plain, start=known, weights=tuple(map(float, weights))
    )


@dataclass(frozen=True)
class Space:
    """The searched parameters in a fixed order."""

    dimensions: tuple[Dimension, ...]

    def __post_init__(self) -> None:
        by_name = {dimension.name: dimension for dimension in self.dimensions}
        for dimension in self.dimensions:
            parent = by_name.get(dimension.given or "")
            if dimension.given and parent is not None and parent.given:
                raise user_error(
                    got=f"{dimension.name}: choices that depend on {dimension.given}, which depends"
                    f" on {parent.given}",
                    expected="choices that depend on a parameter of its own",
                    do="correct `given`",
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters."""
        return tuple(dimension.name for dimension in self.dimensions)

    @property
    def is_point(self) -> bool:
        """Whether nothing is left to search: no dimension, or one value for each."""
        return all(dimension.bins == 1 for dimension in self.dimensions)

    def to_values(self, unit: Sequence[float]) -> dict[str, Value]:
        """Return the values by name at a point of the unit box."""
        pairs = list(zip(self.dimensions, unit, strict=True))
        values = {dimension.name: dimension.to_value(u) for dimension, u in pairs}
        for dimension, u in pairs:
            if dimension.given is not None and dimension.given in values:
                values[dimension.name] = dimension.get_case(values[dimension.given]).to_value(u)
        return values

    def to_unit(self, values: Mapping[str, Value]) -> UnitPoint:
        """Return the point of the unit box that belongs to values by name."""

        def to_unit(dimension: Dimension) -> float:
            value = values[dimension.name]
            if dimension.given is not None and dimension.given in values:
                case = dimension.get_case(values[dimension.given])
                dimension = case if case.contains(value) else dimension
            return dimension.to_unit(value)

        return tuple(map(to_unit, self.dimensions))

    def reorder(self, names: Sequence[str]) -> Space:
        """Return the space with its dimensions in the order of `names`, if these are its names."""
        by_name = {dimension.name: dimension for dimension in self.dimensions}
        if sorted(names) != sorted(by_name):
            return self
        return Space(tuple(by_name[name] for name in names))

    def get_start(self) -> UnitPoint:
        """Return the point at which a search starts: the start of each parameter, or its middle."""
        return tuple(dimension.get_start() for dimension in self.dimensions)

    def describe(self) -> dict[str, str]:
        """Return the ranges by name, as they are stored with a study."""
        return {dimension.name: dimension.describe() for dimension in self.dimensions}


def make_space(dimensions: Iterable[Dimension]) -> Space:
    """Return a space to search.

    Raises:
        UserError: there is no dimension.
    """
    space = Space(tuple(dimensions))
    if not space.dimensions:
        raise user_error(
            got="an empty search space",
            expected="at least one parameter",
            do="choose search_space=phase1, or name parameters in search_space.parameters",
        )
    return space


def make_dimension(spec: Spec, start: Value | None = None, steps: int | None = None) -> Dimension:
    """Return the dimension of a declared parameter.

    Args:
        spec: declaration of the parameter.
        start: value at which the search starts; None means the declared default.
        steps: optimizer steps of a run; required for a parameter that is searched as a fraction of
            it.
    """
    if spec.of_run:
        if steps is None:
            raise ValueError(f"{spec.name} is searched as a fraction of the run: give its steps")
        spec = replace(spec.for_run(steps), of_run=True)
    integer = spec.of_run or spec.scale == "int"
    scale = "lin" if spec.scale == "int" else spec.scale
    return Dimension(
        spec.name,
        scale,
        spec.low,
        spec.high,
        integer=integer,
        start=spec.default if start is None else start,
    )


def expand_patterns(patterns: Sequence[str], known: Sequence[str]) -> list[str]:
    """Expand a list of names and wildcards (`synapse.calcium.*`) to names.

    Raises:
        UserError: some entries match no known name; the message lists all of them.
    """
    names: list[str] = []
    unknown: list[str] = []
    for pattern in patterns:
        matches = fnmatch.filter(known, pattern)
        names += matches
        if not matches:
            unknown.append(f"{pattern}{suggest(pattern, known)}")
    if unknown:
        raise UserError(
            f"got search_space.parameters with {len(unknown)} unknown names: {'; '.join(unknown)}\n"
            f"  expected: names of docs/parameters.md, or wildcards such as synapse.calcium.*\n"
            f"  to do: correct conf/search_space or search_space.parameters=[...]"
        )
    return list(dict.fromkeys(names))
