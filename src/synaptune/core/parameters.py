"""Declarations of tunable numbers, each a dataclass field beside the equation that uses it.

The config schema, the command line, the search space, the study's distributions, the docs and the
report labels derive from the metadata of these fields.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Scale = Literal["lin", "log", "decay", "int"]
# Scale -> the functions from a number to where it is linear, and back.
SCALES: dict[str, tuple[Callable[[float], float], Callable[[float], float]]] = {
    "lin": (float, float),
    "log": (math.log, math.exp),
    "decay": (lambda number: -math.log1p(-number), lambda coordinate: -math.expm1(-coordinate)),
}


@dataclass(frozen=True)
class Spec:
    """The declaration of one tunable number.

    Attributes:
        name: full config path, such as `synapse.calcium.tau_c`.
        default: value without a setting [unit].
        low: lowest value of a search [unit].
        high: highest value of a search [unit].
        scale: scale of a search: linear, logarithmic, decay (linear in -ln(1 - value), for a share
            that is retained per token) or integer.
        unit: unit of default, low and high; 1 for a pure number.
        meaning: one line for the documentation.
        source: paper, derivation or reason of the default.
        phase: 1 when the phase-1 search includes the parameter, else 2.
        neutral: value that switches the term off, valid outside [low, high]; None without one.
        of_run: low and high are fractions of the run's optimizer steps.
    """

    name: str
    default: float
    low: float
    high: float
    scale: Scale
    unit: str
    meaning: str
    source: str
    phase: int
    neutral: float | None
    of_run: bool

    @property
    def subsystem(self) -> str:
        """Mechanism of the parameter, e.g. `calcium`."""
        return self.name.split(".")[-2]

    @property
    def label(self) -> str:
        """Last part of the name, e.g. `tau_c`."""
        return self.name.rsplit(".", 1)[-1]

    def for_run(self, steps: int) -> Spec:
        """Return the spec with low and high in `unit`, for a run of `steps` optimizer steps."""
        if not self.of_run:
            return self
        low, high = max(1, round(self.low * steps)), max(2, round(self.high * steps))
        return dataclasses.replace(
            self, low=low, high=high, default=min(max(self.default, low), high), of_run=False
        )

    def admits(self, value: float) -> bool:
        """Return whether a configured value is valid; the neutral value always is."""
        if self.of_run:
            return value >= 1
        return self.low <= value <= self.high or (
            self.neutral is not None and value == self.neutral
        )


@dataclass(frozen=True)
class Constant:
    """A number of an equation that is documented with its source and never searched."""

    name: str
    value: float
    unit: str
    meaning: str
    source: str


CONSTANTS: dict[str, Constant] = {}


def parameter(
    default: float,
    *,
    low: float,
    high: float,
    scale: Scale = "lin",
    unit: str = "1",
    meaning: str,
    source: str,
    phase: int = 2,
    neutral: float | None = None,
    of_run: bool = False,
) -> Any:
    """Declare a tunable number as a dataclass field; `Spec` documents the arguments."""
    if not of_run and not low <= default <= high:
        raise ValueError(
            f"parameter default {default} outside [{low}, {high}]: correct the declaration"
        )
    metadata = dict(low=low, high=high, scale=scale, unit=unit, meaning=meaning, source=source)
    metadata |= dict(phase=phase, neutral=neutral, of_run=of_run)
    return dataclasses.field(default=default, metadata={"parameter": metadata})


def constant(name: str, value: float, *, unit: str = "1", meaning: str, source: str) -> float:
    """Declare a number of an equation under a unique `<mechanism>.<constant>` and return it."""
    if name in CONSTANTS:
        raise ValueError(f"constant {name!r} is declared twice: rename one of them")
    CONSTANTS[name] = Constant(name, value, unit, meaning, source)
    return value


def list_specs(params: type, prefix: str = "synapse") -> Iterator[Spec]:
    """Yield the specs of a nested parameter dataclass in the order of declaration."""
    for field in dataclasses.fields(params):
        path = f"{prefix}.{field.name}"
        if "parameter" in field.metadata:
            yield Spec(
                name=path,
                default=field.default,  # type: ignore[arg-type]
                **field.metadata["parameter"],
            )
        elif isinstance(field.default_factory, type) and dataclasses.is_dataclass(
            field.default_factory
        ):
            yield from list_specs(field.default_factory, path)


def lookup(params: object, name: str) -> float:
    """Return the value of a nested parameter by its path below the root (`calcium.tau_c`)."""
    value = params
    for part in name.split("."):
        value = getattr(value, part)
    return value  # type: ignore[return-value]


def find_faults(params: object, prefix: str = "synapse") -> list[str]:
    """Return one line for each invalid value of a parameter dataclass; empty without a fault."""
    faults = []
    for spec in list_specs(type(params), prefix):
        value = lookup(params, spec.name.removeprefix(f"{prefix}."))
        if not spec.admits(value):
            bounds = "an integer of at least 1" if spec.of_run else f"{spec.low:g} to {spec.high:g}"
            neutral = f", or {spec.neutral:g} (off)" if spec.neutral is not None else ""
            faults.append(f"{spec.name}={value:g}: expected {bounds}{neutral} [{spec.unit}]")
    return faults
