"""The trials of a study as one table, for other programs: CSV or Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from synaptune.errors import mistake
from synaptune.search.trial import Trial
from synaptune.storage import schema
from synaptune.storage.database import close_storage, open_storage, shown, sqlite_path, with_driver
from synaptune.storage.faults import check_readable, worded
from synaptune.storage.records import read_all

FORMATS = ("csv", "parquet")
Column = list[Any]

_FIRST = ("number", schema.PHASE, schema.INDEX, schema.GENERATION, "state", "objective", schema.ESTIMATE, schema.SEED, schema.SECONDS)
_LAST = (schema.ATTEMPTS, schema.REASON)
_SHOWN_NAMES = 10
_ABSENT = ("nan", "inf", "-inf")  # how a fact that JSON has no number for is stored


def read_trials(url: str, name: str | None = None, *, prefer: str | None = None) -> list[Trial]:
    """The trials of a study by number, without holding it: its search may go on meanwhile.

    name: null is the only study of the database, or among several the one named `prefer`.
    Raises UserError: no such database or study, or a study of another program or version.
    """
    url = with_driver(url)
    path = sqlite_path(url)
    if path is not None and not path.exists():
        raise mistake(got=f"no study database {path}", expected="a study that has begun", do="check its name, or give --storage URL")
    with worded(url):
        if path is not None:
            check_readable(path)
        storage = open_storage(url)
        try:
            studies = {study.study_name: study for study in storage.get_all_studies()}
            study = studies[_choose(sorted(studies), name, prefer=prefer, where=shown(url))]
            where = f"{study.study_name} in {shown(url)}"
            if schema.CONFIGURATION in study.user_attrs or storage.get_n_trials(study._study_id) > 0:
                schema.check_schema(study.user_attrs, where)
            return read_all(storage, study._study_id, where)
        finally:
            close_storage(storage)


def _choose(names: Sequence[str], name: str | None, *, prefer: str | None, where: str) -> str:
    wanted = name or (names[0] if len(names) == 1 else prefer)
    if wanted is not None and wanted in names:
        return wanted
    known = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "") or "none"
    raise mistake(
        got=f"no study {wanted or 'chosen'} in {where}", expected=f"one of its studies: {known}", do="give its name with --storage URL"
    )


def locate(study: str, storage: str | None = None, *, root: Path = Path("outputs/studies")) -> list[Trial]:
    """The trials of a study given as a name below root, as a folder, or with its storage URL as the name there; raises UserError."""
    if storage is not None:
        return read_trials(storage, study)
    folder = Path(study) if Path(study).is_dir() else root / study
    return read_trials(f"sqlite:///{folder}/study.db", prefer=folder.resolve().name)


def columns(trials: Sequence[Trial]) -> dict[str, Column]:
    """The table by column, one entry for each trial, null where a trial has none.

    Order: what every trial has; parameters in the order of their space; attempts (a count) and reason; everything else that is
    known (metrics, fingerprints, versions) by name. A parameter or metric with the name of an earlier column has its kind before it.
    """
    table: dict[str, Column] = {
        name: [getattr(trial, name) if hasattr(trial, name) else trial.facts.get(name) for trial in trials] for name in _FIRST
    }
    for name in dict.fromkeys(name for trial in trials for name in trial.values):
        table[name if name not in (*_FIRST, *_LAST) else f"parameter.{name}"] = [trial.values.get(name) for trial in trials]
    table[schema.ATTEMPTS] = [len(trial.facts.get(schema.ATTEMPTS, ())) for trial in trials]
    table[schema.REASON] = [trial.reason for trial in trials]
    known = {*_FIRST, *_LAST, schema.TRACEBACK}
    for name in sorted({name for trial in trials for name in trial.facts} - known):
        table[name if name not in table else f"metric.{name}"] = [trial.facts.get(name) for trial in trials]
    return {name: _of_one_type(column) for name, column in table.items()}


def _of_one_type(column: Column) -> Column:
    """Truth values, integers, numbers or text: the narrowest that all entries are; anything else becomes JSON."""
    present = [entry for entry in column if entry is not None]
    if all(isinstance(entry, bool) for entry in present):
        return column
    if all(isinstance(entry, int) and not isinstance(entry, bool) for entry in present):
        return column
    if all(_is_number(entry) for entry in present):
        return [None if entry is None else float(entry) for entry in column]
    return [entry if entry is None or isinstance(entry, str) else json.dumps(entry) for entry in column]


def _is_number(entry: Any) -> bool:
    return entry in _ABSENT if isinstance(entry, str) else isinstance(entry, int | float) and not isinstance(entry, bool)


def as_csv(table: dict[str, Column]) -> str:
    """CSV with a header line; null is empty, numbers keep every digit."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return text.getvalue()


def as_parquet(table: dict[str, Column]) -> bytes:
    """Parquet; raises UserError where pyarrow is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise mistake(
            got="--format parquet without pyarrow", expected="pyarrow, which writes it", do="pip install pyarrow, or use --format csv"
        ) from None
    # An empty column has the type it would have: tables of several studies can be joined.
    types = dict.fromkeys(("objective", schema.ESTIMATE, schema.SECONDS), pyarrow.float64()) | {schema.REASON: pyarrow.string()}
    arrays = {name: pyarrow.array(column, type=types.get(name)) for name, column in table.items()}
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(arrays), sink)
    return sink.getvalue()
