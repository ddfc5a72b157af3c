"""The overrides of a sweep: which are fixed, which are swept, and those of a job.

They are combined as Hydra's own sweeper does it: `hydra.sweeper.params` first, then the command
line, and the last override of a key holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from synaptune.core.errors import user_error
from synaptune.core.text import get_first_line
from synaptune.search.space.override_text import format_value
from synaptune.search.space.values import Value

# A parsed override, or a mapping or list of `hydra.sweeper.params`.
Entry = Override | Mapping[Any, Any] | Sequence[Any]


@dataclass(frozen=True)
class SweepOverrides:
    """The overrides of a sweep, in the order in which a job gets them.

    Attributes:
        entries: by the key of the override, e.g. `x`, `+x`, `db@source`, `~x`.
    """

    entries: Mapping[str, Entry]

    @property
    def fixed(self) -> list[str]:
        """The overrides that every job has."""
        return [
            _format_fixed(key, entry) for key, entry in self.entries.items() if _is_fixed(entry)
        ]

    @property
    def fixed_names(self) -> set[str]:
        """Names that the fixed overrides set or delete."""
        return {get_name(key) for key, entry in self.entries.items() if _is_fixed(entry)}

    @property
    def swept(self) -> dict[str, Entry]:
        """The swept entries by key."""
        return {key: entry for key, entry in self.entries.items() if not _is_fixed(entry)}

    def build(self, values: Mapping[str, Value]) -> list[str]:
        """Return the overrides of a job with these values of the searched parameters, by name."""
        words, others = [], dict(values)
        for key, entry in self.entries.items():
            if _is_fixed(entry):
                words.append(_format_fixed(key, entry))
            elif get_name(key) in others:
                words.append(f"{key}={format_value(others.pop(get_name(key)))}")
        return [*words, *(f"{name}={format_value(value)}" for name, value in others.items())]


def read_overrides(
    params: Mapping[str, Any], arguments: Sequence[str], parser: OverridesParser
) -> SweepOverrides:
    """Return the overrides of a sweep.

    Args:
        params: `hydra.sweeper.params` and `parametrization`: plain values by name. A text is the
            right side of an override; mappings and lists are read by `parse_parametrization`.
        arguments: overrides of the command line.
        parser: Hydra's parser.

    Raises:
        UserError: an entry of `params` cannot be parsed.
    """
    entries: dict[str, Entry] = {}
    for key, entry in params.items():
        if isinstance(entry, Mapping | list):
            _replace_entry(entries, key, entry)
        else:
            override = _parse_param(key, entry, parser)
            _replace_entry(entries, override.get_key_element(), override)
    for override in parser.parse_overrides(list(arguments)):
        _replace_entry(entries, override.get_key_element(), override)
    return SweepOverrides(entries)


def get_name(key: str) -> str:
    """Return the name of the parameter that the key of an override stands for."""
    return key.lstrip("+~")


def _replace_entry(entries: dict[str, Entry], key: str, entry: Entry) -> None:
    """Add an entry. It replaces an earlier one of its name, which may have been added with `+`."""
    if not key.startswith("~"):
        for earlier in [other for other in entries if not other.startswith("~")]:
            if get_name(earlier) == get_name(key) and earlier != key:
                if key.startswith("+"):
                    del entries[earlier]
                else:
                    key = earlier
    entries[key] = entry


def _parse_param(key: str, entry: Any, parser: OverridesParser) -> Override:
    text = entry if isinstance(entry, str) else format_value(entry)
    try:
        return parser.parse_override(f"{key}={text}")
    except HydraException as error:
        raise user_error(
            got=f"parametrization {key}: {entry} ({get_first_line(error)})",
            expected="interval(..), choice(..), range(..), a,b,c or a value",
            do="correct it; quote a text with other characters: \"'...'\"",
        ) from error


def _is_fixed(entry: Entry) -> TypeGuard[Override]:
    return isinstance(entry, Override) and not entry.is_sweep_override()


def _format_fixed(key: str, override: Override) -> str:
    is_bare = "=" not in str(override.input_line)  # ~NAME
    return key if is_bare else f"{key}={override.get_value_string()}"
