"""Values in the grammar of Hydra's overrides."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from synaptune.search.space.values import Value, is_same


def format_value(value: Value) -> str:
    """Return a value as the text of an override, without quotes where it needs none."""
    from hydra.core.override_parser.types import Transformer

    return Transformer.str(_quote(value))


def _quote(value: Value) -> Any:
    """Return a value for Hydra's formatter, with the strings quoted that need it."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if isinstance(value, str):
        return value if _is_read_back(value) else QuotedString(value, Quote.single)
    if isinstance(value, Mapping):
        return {key: _quote(entry) for key, entry in value.items()}
    return [_quote(entry) for entry in value] if isinstance(value, list | tuple) else value


@functools.lru_cache(maxsize=1024)
def _is_read_back(text: str) -> bool:
    """Return whether Hydra reads a string without quotes as the same string.

    Escapes count as quotes, except in an interpolation: a quoted one would be resolved in Hydra's
    list of overrides.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import Transformer
    from hydra.errors import HydraException

    escaped = Transformer.str(text)
    if not text or (escaped != text and "${" not in text):
        return False
    try:
        parsed = OverridesParser.create().parse_override(f"x={escaped}").value()
    except HydraException:
        return False
    return is_same(parsed, text)
