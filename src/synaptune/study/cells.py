"""Parameter values as the cells of a table, with types that can be recovered.

A column whose values are all bools, all integers, all floats or all plain words holds them as they
are. Any other column (None beside text, 1 beside "1" or 1.5, lists, dicts, empty text) holds JSON
in every cell; what JSON does not have, such as a tuple, is the text of a Python literal in it.
`decode_column` reads both forms, and the forms that other programs write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from synaptune.search.space.values import Value, decode_choice, encode_choices, make_key

MISSING: Final = object()  # the value of a cell that holds none; None is a value
_MISSING_WORDS = frozenset(
    ("", "nan", "na", "n/a", "<na>", "#n/a", "#na", "#div/0!", "#num!", "#value!", "#ref!")
)
_NULL_WORDS = frozenset(("none", "null"))  # missing beside numbers
_WORD = re.compile(r"[^\W\d][^\x00-\x1f\"\x7f-\xa0\u2028\u2029\ufeff\ud800-\udfff]*")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?|[+-]?inf(?:inity)?", re.I)
_INT64 = 2**63
_FORMULA = tuple("=+-@")  # first characters of a formula in a spreadsheet


def encode_column(values: Sequence[Any]) -> list[Any]:
    """Return values as entries of a column of one type; None stands for MISSING."""
    present = [value for value in values if value is not MISSING]
    types = set(map(type, present))
    is_plain = (
        types in ({bool}, {float})
        or (types == {int} and all(-_INT64 <= value < _INT64 for value in present))
        or (types == {str} and all(map(_is_plain_word, present)))
    )
    return [
        None if value is MISSING else value if is_plain else _format_json(value) for value in values
    ]


def decode_column(texts: Sequence[str], *, decimal_comma: bool = False) -> list[Value]:
    """Return the values of the cells of a column; MISSING for a cell without a value.

    Args:
        texts: the cells, without spaces around them.
        decimal_comma: whether numbers have a decimal comma.
    """
    filled = {text for text in texts if text.lower() not in _MISSING_WORDS}
    values: dict[str, Value] = {text: _parse_json(text) for text in filled}
    if MISSING in values.values():
        values = {text: parse_number_text(text, decimal_comma=decimal_comma) for text in filled}
        words = {text.lower() for text, number in values.items() if number is None}
        if words and words <= {"true", "false"} and len(words) == len(values):
            values = {text: text.lower() == "true" for text in filled}
        else:
            is_missing = words <= _NULL_WORDS
            values = {
                text: (MISSING if is_missing else text) if number is None else number
                for text, number in values.items()
            }
    return [values.get(text, MISSING) for text in texts]


def protect_formula(cell: Any) -> Any:
    """Return a cell that no spreadsheet computes: a text such as `=1+1` becomes its JSON text."""
    is_text = isinstance(cell, str) and parse_number_text(cell) is None
    return json.dumps(cell, ensure_ascii=False) if is_text and cell[:1] in _FORMULA else cell


def restore_formula(cell: str) -> str:
    """Return the text of a cell that `protect_formula` made, or any other cell as it is."""
    if cell[:1] == '"' and cell[1:2] in _FORMULA:
        value = _parse_json(cell)
        return value if isinstance(value, str) else cell
    return cell


def parse_number_text(text: str, *, decimal_comma: bool = False) -> int | float | None:
    """Return the number that a cell holds, or None for any other text."""
    if decimal_comma:
        text = text.replace(",", ".")
    try:
        if _INTEGER.fullmatch(text):
            return int(text)
        return float(text) if _NUMBER.fullmatch(text) else None
    except ValueError:  # more digits than Python converts
        return None


def _is_plain_word(text: str) -> bool:
    return bool(_WORD.fullmatch(text)) and text == text.strip() and decode_column([text]) == [text]


def _format_json(value: Value) -> str:
    if not isinstance(value, str):
        try:
            text = json.dumps(value)
            if make_key(json.loads(text)) == make_key(value):
                return text
        except TypeError:  # a key of a dict is a tuple
            pass
    return json.dumps(encode_choices([value])[0])


def _parse_json(text: str) -> Value:
    """Return the value of a JSON text, or MISSING for any other text."""
    try:
        return decode_choice(json.loads(text))
    except (ValueError, SyntaxError, RecursionError):
        return MISSING
