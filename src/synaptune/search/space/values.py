"""Parameter values: any value that YAML has, compared by type and value.

Python's `==` takes 1, 1.0 and True for the same value. As choices of a parameter they differ.
Tuples come from Python callers; a tuple and a list with equal elements differ as well.
"""

from __future__ import annotations

import ast
import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Value = Any  # None, bool, int, float, str, list, tuple or dict, nested to any depth
SCALARS = (bool, int, float, str)
# Optuna stores scalars and None. Other choices are stored as the text of a Python literal.
_LITERAL_PREFIX = "!literal "


def to_plain(value: Any) -> Value:
    """Return a value with the scalars and arrays of numpy and torch replaced by those of Python.

    The result shares no list or dict with the argument.

    Raises:
        TypeError: the value has a type that YAML does not have.
    """
    if value is None or type(value) in SCALARS:
        return value
    if isinstance(value, Mapping):
        return {to_plain(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple):
        return tuple(map(to_plain, value))
    if isinstance(value, list):
        return list(map(to_plain, value))
    if hasattr(value, "tolist"):  # numpy and torch
        return to_plain(value.tolist())
    for kind in SCALARS:  # subclasses, such as the members of an IntEnum
        if isinstance(value, kind):
            # str() of a member of a (str, Enum) is its name.
            return str.__str__(value) if isinstance(value, str) else kind(value)
    raise TypeError(f"a value of type {type(value).__name__}")


def to_number(value: Any) -> float:
    """Return a number of Python, numpy or torch, or an array of one number, as a float.

    A masked number of numpy is nan.

    Raises:
        TypeError: it is no number.
    """
    try:
        if _is_masked(value):
            return math.nan
        number = value.item() if hasattr(value, "item") else value
        if not isinstance(number, bool | str | bytes) and hasattr(type(number), "__float__"):
            return float(number)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{_describe_type(value)}: {error}") from error
    raise TypeError(_describe_type(value))


def _is_masked(value: Any) -> bool:
    mask: Any = getattr(value, "mask", None)  # of a masked array; a method of a table of pandas
    return hasattr(mask, "any") and bool(mask.any())


def _describe_type(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {tuple(shape)}" if shape else "")


def copy_value(value: Value) -> Value:
    """Return a copy, so that a caller can change a list or dict."""
    return value if value is None or isinstance(value, SCALARS) else copy.deepcopy(value)


def make_key(value: Value) -> str:
    """Return a text that two values share if they are equal in type and value."""
    if isinstance(value, Mapping):
        entries = sorted((make_key(key), make_key(entry)) for key, entry in value.items())
        return "{" + ", ".join(f"{key}: {entry}" for key, entry in entries) + "}"
    if isinstance(value, list | tuple):
        inner = ", ".join(map(make_key, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner},)"
    return repr(value)


def is_same(first: Value, second: Value) -> bool:
    """Return whether two values are equal in type and value."""
    return make_key(first) == make_key(second)


def find_choice(choices: Sequence[Value], value: Value) -> int | None:
    """Return the index of the choice that is `value`, or None if there is none.

    A value without an exact match stands for a choice that YAML writes the same way (a tuple for a
    list) or for the same number of another type (1 for 1.0, but never for True).
    """
    for convert in (make_key, _make_yaml_key):
        key = convert(value)
        index = next((at for at, choice in enumerate(choices) if convert(choice) == key), None)
        if index is not None:
            return index
    return None


def _make_yaml_key(value: Value) -> str:
    if isinstance(value, tuple):
        return make_key(list(value))
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return make_key(int(value))
    return make_key(value)


def _iterate_scalars(value: Value) -> Iterator[Any]:
    """Yield the scalars of a value, keys of mappings included."""
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _iterate_scalars(entry)
    else:
        yield value


def find_resolver(value: Value) -> str | None:
    """Return a text in a value that OmegaConf would compute, as `${oc.env:NAME}`, or None."""
    texts = (entry for entry in _iterate_scalars(value) if isinstance(entry, str))
    return next((text for text in texts if ":" in text.partition("${")[2]), None)


def find_value_fault(value: Value) -> str | None:
    """Return why a choice cannot be stored, or None if it can."""
    for entry in _iterate_scalars(value):
        if entry is not None and not isinstance(entry, SCALARS):
            return f"a {type(entry).__name__}"
        if isinstance(entry, float) and math.isnan(entry):
            return "nan"
    return None


def encode_choices(choices: Sequence[Value]) -> list[bool | int | float | str | None]:
    """Return choices as the scalars that Optuna stores; `decode_choice` is the inverse.

    A choice that Optuna would not tell from an earlier one (True from 1) becomes a text as well.
    """
    encoded: list[Any] = []
    plain: set[bool | int | float | str | None] = set()  # a set holds True and 1 once, as Optuna
    for choice in choices:
        is_scalar = choice is None or isinstance(choice, bool | int | float | str)
        is_literal = isinstance(choice, str) and choice.startswith(_LITERAL_PREFIX)
        if not is_scalar or is_literal or choice in plain:
            encoded.append(_LITERAL_PREFIX + _format_literal(choice))
        else:
            encoded.append(choice)
            plain.add(choice)
    return encoded


def decode_choice(stored: Value) -> Value:
    """Return the choice that a scalar of `encode_choices` stands for."""
    if isinstance(stored, str) and stored.startswith(_LITERAL_PREFIX):
        return ast.literal_eval(stored.removeprefix(_LITERAL_PREFIX))
    return stored


def _format_literal(value: Value) -> str:
    """Return a Python literal. Unlike `repr`, it also holds infinities."""
    if isinstance(value, Mapping):
        entries: Iterable[str] = (
            f"{_format_literal(key)}: {_format_literal(entry)}" for key, entry in value.items()
        )
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_format_literal, value)) + "]"
    if isinstance(value, tuple):
        return "(" + "".join(f"{_format_literal(entry)}, " for entry in value) + ")"
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    return repr(value)
