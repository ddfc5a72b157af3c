"""Read a table of texts from a CSV file of any program: encoding, delimiter, ragged lines.

A Parquet file is read as the CSV that holds the same cells.
"""

from __future__ import annotations

import codecs
import csv
import io
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from synaptune.core.errors import user_error
from synaptune.study.cells import restore_formula

_MARKS = (  # UTF-32 first: its mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_ENCODINGS = ("utf-8", "cp1252", "latin-1")  # of a file without a mark
_DELIMITERS = ",;\t|"
_SAMPLE = 50  # lines that tell the delimiter
UNNAMED = "column "  # and its number: the name of a column without one
_EXPECTED = "a text file with a line of column names and a line for each run"


class TextTable(NamedTuple):
    """Cells as text.

    Attributes:
        columns: the cells by column, without spaces around them.
        lines: the line of the file at which each row begins.
        decimal_comma: whether numbers may have a decimal comma.
    """

    columns: dict[str, list[str]]
    lines: list[int]
    decimal_comma: bool


class _Row(NamedTuple):
    line: int
    cells: list[str]


def read_table(path: Path) -> TextTable:
    """Read a CSV or Parquet file.

    Raises:
        UserError: the file cannot be read, or is not a table with a header and rows.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise user_error(
            got=f"{path}: {error.strerror}", expected=_EXPECTED, do="check the path"
        ) from error
    if content.startswith(b"PAR1"):
        return _make_table(path, _read_rows(path, _convert_parquet(path), ","), ",")
    text = _decode(path, content)
    first, _, rest = text.partition("\n")
    if first.strip().lower().startswith("sep=") and len(first.strip()) == 5:  # written for Excel
        delimiter, text = first.strip()[4], "\n" + rest
    else:
        delimiter = _find_delimiter(text)
    return _make_table(path, _read_rows(path, text, delimiter), delimiter)


def _decode(path: Path, content: bytes) -> str:
    marked = [name for mark, name in _MARKS if content.startswith(mark)]
    for encoding in marked or _ENCODINGS:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text
        break
    raise user_error(
        got=f"{path}, which is not text",
        expected=_EXPECTED,
        do="save the table as CSV in UTF-8 (in Excel: Save As, CSV UTF-8)",
    )


def _convert_parquet(path: Path) -> str:
    """Return a Parquet file as CSV."""
    from synaptune.study.table import read_parquet, to_csv

    return to_csv(read_parquet(path))


def _find_delimiter(text: str) -> str:
    """Return the delimiter that gives the first line most cells, and most lines as many."""
    sample = "".join(text.splitlines(keepends=True)[:_SAMPLE])
    scores = []
    for delimiter in _DELIMITERS:
        try:
            counts = [len(row) for row in _make_reader(sample, delimiter, strict=False) if row]
        except csv.Error:
            continue
        if counts:
            scores.append((counts[0] == statistics.mode(counts), counts[0], delimiter))
    best = max((score[:2] for score in scores if score[1] > 1), default=None)
    return next((delimiter for *score, delimiter in scores if tuple(score) == best), ",")


def _make_reader(text: str, delimiter: str, *, strict: bool = True):
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    return csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=strict
    )


def _read_rows(path: Path, text: str, delimiter: str) -> list[_Row]:
    """Return the rows that are not empty."""
    reader, rows, line = _make_reader(text, delimiter), [], 1
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells):
                rows.append(_Row(line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        raise user_error(
            got=f"{path}: line {line}: {error}",
            expected='cells that are quoted as in CSV: "a ""b"" c"',
            do="correct the quotes, or export it again",
        ) from error
    return rows


def _make_table(path: Path, rows: Sequence[_Row], delimiter: str) -> TextTable:
    if len(rows) < 2:
        raise user_error(
            got=f"{path} with {len(rows)} lines",
            expected="a line of column names and a line for each run",
            do="export it again",
        )
    header, *runs = rows
    width = len(header.cells)
    for line, cells in runs:
        if len(cells) < width or any(cells[width:]):
            raise user_error(
                got=f"{path}: line {line} with {len(cells)} cells under {width} names",
                expected="as many cells in every line",
                do="correct the line (a cell with a delimiter needs quotes), or export it again",
            )
    names = [
        restore_formula(name) or f"{UNNAMED}{number}" for number, name in enumerate(header.cells, 1)
    ]
    for name, count in Counter(names).items():
        if count > 1:
            places = [str(number) for number, other in enumerate(names, 1) if other == name]
            raise user_error(
                got=f"{path}: line {header.line} with several columns {name}"
                f" (columns {', '.join(places)})",
                expected="a different name for each column",
                do="rename or remove one of them",
            )
    columns = {name: [run.cells[at] for run in runs] for at, name in enumerate(names)}
    return TextTable(columns, [run.line for run in runs], delimiter != ",")
